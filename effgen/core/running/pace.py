"""How many steps make a chunk of about half a second."""

# Long enough to hide the host's work, short enough for Ctrl-C and a progress bar.
_CHUNK_SECONDS = 0.5

# What share of a chunk the copy of the state may take, and how far a chunk may stretch
# for that.
_COPY_SHARE = 0.02
_LONGEST_SECONDS = 5.0
_LARGE_STATE = 2**24  # bytes


class Pace:
    """How many steps make a chunk of about half a second.

    Every chunk copies the state, to have its start to go back to. Where the state is
    large and that takes long beside the steps, chunks become longer. `seconds` is what
    a step takes.
    """

    def __init__(self, nbytes: int) -> None:
        """Begin with one step, for a state of `nbytes`."""
        self.num, self.once = 1, 0.0
        self.large = nbytes > _LARGE_STATE
        self.last = (1, 0.0)
        self.seconds = _CHUNK_SECONDS

    def took(self, num: int, seconds: float) -> None:
        """Note that `num` steps took `seconds`."""
        if num == 0:
            return
        fewer, shorter = self.last
        if self.large and num >= 2 * fewer:
            each = max(seconds - shorter, 0.0) / (num - fewer)
            self.once = max(seconds - num * each, 0.0)
        self.seconds = max((seconds - self.once) / num, 1e-9)
        wanted = min(max(self.once / _COPY_SHARE, _CHUNK_SECONDS), _LONGEST_SECONDS)
        self.last = (num, seconds)
        self.num = max(1, min(int(wanted / self.seconds), 4 * self.num))
