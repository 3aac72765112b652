"""The errors a user can cause. Each message names the thing and its cure, in one or two lines."""

import difflib
import errno
import reprlib
from collections.abc import Iterable

# The end of messages about what is left half done.
THEN_AGAIN = "then run the same command again"


class SglmError(Exception):
    """Something failed while running. The command line prints the message and leaves with 1."""

    exit_code = 1


class InputError(SglmError):
    """What was given cannot be used: a file, a text, a folder, an option."""

    exit_code = 2


class ConfigError(InputError):
    """The configuration is wrong: an unknown key, a wrong type, an impossible value."""


class SglmWarning(UserWarning):
    """Something was done otherwise than one may expect. The command line prints it on stderr."""


class Stopped(SglmError):
    """A signal asked to stop; everything worth keeping has been saved.

    The exit code is 128 + the signal's number, as shells have it: 130 for SIGINT, 143 for SIGTERM.
    """

    def __init__(self, message: str, *, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


_CURES = {
    errno.EROFS: "; give another --out",
    errno.EACCES: "; give one that this user may use",
    errno.ENOTDIR: "; a file stands where a folder should, give another path",
    errno.EFBIG: f"; a limit on the size of files (ulimit -f) is too low, raise it, {THEN_AGAIN}",
}


def as_sglm_error(error: Exception) -> SglmError | None:
    """An error of memory or of the file system in the user's terms, with its cure where there is
    one; None for any other error."""
    # torch has no class of its own for a CPU that is out of memory.
    messages = ("out of memory", "DefaultCPUAllocator")
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(message in str(error) for message in messages)
    ):
        return SglmError(
            "out of memory; shorter lines take less, and a training with a lower train.batch,"
            " train.window or model.hidden"
        )
    if not isinstance(error, OSError):
        return None
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SglmError(f"no space left on the device{where}; free some, {THEN_AGAIN}")
    cure = _CURES.get(error.errno or 0, "")
    return SglmError(f"{error.strerror or error}{where}{cure}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the nearest known name, or the list of all known ones."""
    known = sorted(known)
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]!r}?" if nearest else f"; known: {', '.join(known)}"


def short_repr(value: object) -> str:
    """A value from a file, for a message: its repr, short however large or deep the value is."""
    return _SHORT.repr(value)


def printable(message: str) -> str:
    """A message for a terminal: names from elsewhere may hold escape sequences or turn the writing
    direction around, which are shown as escapes instead. Line breaks stay."""
    return "".join(
        character
        if character.isprintable() or character == "\n"
        else character.encode("unicode_escape").decode("ascii")
        for character in message
    )


class _Short(reprlib.Repr):
    def repr_int(self, number: int, level: int) -> str:
        # Python refuses to write down integers of thousands of digits.
        size = number.bit_length()
        return repr(number) if size < 200 else f"an integer of {size} bits"


_SHORT = _Short()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxlevel = 2
