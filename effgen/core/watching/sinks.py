"""Files that a run appends to, which never stop it."""

import contextlib
import errno
import io
import os
import stat
import warnings
from pathlib import Path

from effgen.core.outcome.results import RunWarning


class Sink:
    """A file that records are appended to, each whole or not at all.

    A record that cannot be written is left out, with one warning for the file; the next
    one is tried again. The path keeps what it is: a file, a link, a pipe, a device. A
    pipe whose reader is away or slow loses records; it is not waited for.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Take the path, as seen from where the process is now; open nothing yet."""
        self.path = Path(path).absolute()
        self._file: io.FileIO | None = None
        self._end: int | None = None  # where a torn record begins, in a regular file
        self._rest = b""  # of a record that a pipe has taken in part
        self._warned = False

    def check(self) -> None:
        """Make the folder, and raise `OSError` if the path cannot be written."""
        self._make_folder()
        if self.path.is_fifo():  # opened and closed, it would end its reader
            if not os.access(self.path, os.W_OK):
                raise PermissionError(errno.EACCES, "Permission denied", self.path)
            return
        with _opened(self.path):
            pass

    def append(self, record: bytes, name: str) -> None:
        """Append `record`; warn, the first time, that `name` is missing."""
        try:
            self._write(record)
        except (OSError, ValueError) as error:
            self.fail(error, name)

    def fail(self, error: Exception, name: str) -> None:
        """Warn, once, that `name` is missing because of `error`; close the file."""
        if not isinstance(error, BlockingIOError):
            self._drop()
        if self._warned:
            return
        self._warned = True
        warn(
            f"`{self.path}` cannot be written ({type(error).__name__}: {error}): "
            f"{name} is missing in it, and so is what follows until it can be. "
            "Training goes on."
        )

    def close(self) -> None:
        """Close the file; warn if only now it turns out that writing failed."""
        file, self._file = self._file, None
        if file is None:
            return
        try:
            file.close()
        except (OSError, ValueError) as error:
            self.fail(error, "its end")

    def _write(self, record: bytes) -> None:
        file = self._ready()
        regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        self._end = os.fstat(file.fileno()).st_size if regular else None
        data, begun, taken = self._rest + record, len(self._rest), 0
        try:
            while taken < len(data):
                taken += _some(file, data[taken:])
        finally:
            if regular and taken < len(data):
                with contextlib.suppress(OSError):  # else before the next record
                    self._cut(file)
            if not regular:
                self._rest = data[taken:] if taken > begun else self._rest[taken:]
        self._end = None

    def _ready(self) -> io.FileIO:
        """Return the open file, without the half of a record at its end."""
        if self._file is not None and not os.fstat(self._file.fileno()).st_nlink:
            self._drop()  # removed meanwhile: a new one is made
        if self._file is None:
            self._make_folder()
            self._file = _opened(self.path)
        if self._end is not None:
            self._cut(self._file)
        return self._file

    def _cut(self, file: io.FileIO) -> None:
        """Take back what was written of a record."""
        assert self._end is not None
        if os.fstat(file.fileno()).st_size > self._end:
            os.ftruncate(file.fileno(), self._end)
        self._end = None

    def _make_folder(self) -> None:
        """Make the folder of the file, or of what a link leads to."""
        Path(os.path.realpath(self.path)).parent.mkdir(parents=True, exist_ok=True)

    def _drop(self) -> None:
        self._rest = b""  # another reader has not seen the record's first half
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError, ValueError):
                file.close()


def warn(text: str) -> None:
    """Warn, though standard error may be closed: no run ends for lack of a console."""
    with contextlib.suppress(OSError, ValueError):
        warnings.warn(text, RunWarning, stacklevel=2)


def _some(file: io.FileIO, data: bytes) -> int:
    num = file.write(data)
    if num is None:
        raise BlockingIOError(errno.EAGAIN, "its reader does not keep up")
    return num


def _opened(path: Path) -> io.FileIO:
    return open(path, "ab", buffering=0, opener=_without_waiting)


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)
