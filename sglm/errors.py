"""The errors that a user can cause. A message names the problem and its cure in a line or two."""

import difflib
import errno
import reprlib
from collections.abc import Iterable

# The end of messages about failures that leave work unfinished.
THEN_AGAIN = "then run the same command again"


class SglmError(Exception):
    """A failure while running. The command line prints the message and exits with code 1."""

    exit_code = 1


class InputError(SglmError):
    """An input that cannot be used: a file, a text, a folder or an option. The exit code is 2."""

    exit_code = 2


class ConfigError(InputError):
    """An invalid configuration: an unknown key, a wrong type or an impossible value."""


class SglmWarning(UserWarning):
    """A warning that something was done differently than a user may expect.

    The command line prints it to stderr.
    """


class Stopped(SglmError):
    """A stop that a signal requested; everything worth keeping has been saved.

    The exit code is 128 + the signal's number, as in shells: 130 for SIGINT, 143 for SIGTERM.
    """

    def __init__(self, message: str, *, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


_CURES = {
    errno.EROFS: "; give another --out",
    errno.EACCES: "; give a path that this user may use",
    errno.ENOTDIR: "; a file stands where a folder should be, give another path",
    errno.EFBIG: f"; the limit on file sizes (ulimit -f) is too low; raise it, {THEN_AGAIN}",
}


def as_sglm_error(error: Exception) -> SglmError | None:
    """Translates an error of memory or of the file system into the user's terms.

    Returns:
        The error, with its cure if one is known; None for an error of any other kind.
    """
    # torch has no exception class for running out of memory on a CPU.
    messages = ("out of memory", "DefaultCPUAllocator")
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(message in str(error) for message in messages)
    ):
        return SglmError(
            "out of memory; use shorter lines or, for training, a lower train.batch,"
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
    """Returns the end of a message about an unknown name.

    It is `"; did you mean 'x'?"` for the most similar known name; if none is similar, it lists all
    known names.
    """
    known = sorted(known)
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {nearest[0]!r}?" if nearest else f"; known: {', '.join(known)}"


def short_repr(value: object) -> str:
    """Returns the repr of a value for a message, shortened if the value is large or deep."""
    return _SHORT.repr(value)


def printable(message: str) -> str:
    """Makes a message safe to print on a terminal.

    Names in it may contain escape sequences, or characters that reverse the writing direction.
    Every unprintable character is replaced by its backslash escape; line breaks stay.
    """
    return "".join(
        character
        if character.isprintable() or character == "\n"
        else character.encode("unicode_escape").decode("ascii")
        for character in message
    )


class _Short(reprlib.Repr):
    def repr_int(self, number: int, level: int) -> str:
        # Python refuses to convert integers of thousands of digits to strings.
        size = number.bit_length()
        return repr(number) if size < 200 else f"an integer of {size} bits"


_SHORT = _Short()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxlevel = 2
