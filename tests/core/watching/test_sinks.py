"""Files that a run appends to: records are whole or not there."""

import errno
import os

import pytest

import effgen as eg
from effgen.core.watching.sinks import Sink


def appended(sink, **records):
    for name, record in records.items():
        sink.append(record, name)


def test_a_record_is_whole_or_not_there(tmp_path):
    resource = pytest.importorskip("resource")
    sink = Sink(tmp_path / "log")
    sink.append(b"first\n", "one")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9, limits[1]))
    try:
        with pytest.warns(eg.RunWarning, match="File too large.*two is miss") as caught:
            appended(sink, two=b"second\n", three=b"third\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(caught) == 1
    assert sink.path.read_bytes() == b"first\n"
    sink.append(b"fourth\n", "four")
    sink.close()
    assert sink.path.read_bytes() == b"first\nfourth\n"


def test_what_cannot_be_cut_at_once_is_cut_later(tmp_path, monkeypatch):
    sink = Sink(tmp_path / "log")
    sink.append(b"first\n", "one")

    def torn(file, data):
        if data.startswith(b"sec"):
            return file.write(data[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    def refused(*_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr("effgen.core.watching.sinks._some", torn)
        broken.setattr(os, "ftruncate", refused)
        with pytest.warns(eg.RunWarning, match="No space.*two is missing"):
            sink.append(b"second\n", "two")
    assert sink.path.read_bytes() == b"first\nsec"
    sink.append(b"third\n", "three")
    sink.close()
    assert sink.path.read_bytes() == b"first\nthird\n"


@pytest.mark.parametrize("close", [lambda f: f.close(), lambda f: os.close(f.fileno())])
def test_a_closed_file_is_opened_again(close, tmp_path):
    sink = Sink(tmp_path / "log")
    sink.append(b"first\n", "one")
    close(sink._file)
    with pytest.warns(eg.RunWarning, match="two is missing"):
        sink.append(b"second\n", "two")
    sink.append(b"third\n", "three")
    sink.close()
    assert sink.path.read_bytes() == b"first\nthird\n"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_slow_reader_gets_whole_lines(tmp_path):
    os.mkfifo(tmp_path / "log")
    ready = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    sink = Sink(tmp_path / "log")
    record = b"x" * 9_999 + b"\n"  # more than a pipe takes at once
    with pytest.warns(eg.RunWarning, match="does not keep up") as caught:
        appended(sink, **{f"line {i}": record for i in range(20)})
    assert len(caught) == 1
    got = os.read(ready, 1 << 17)
    sink.append(record, "a line")
    sink.close()
    got += os.read(ready, 1 << 17)
    os.close(ready)
    assert set(got.splitlines(keepends=True)) == {record}
