"""What all analyses have in common: how they are carried out, saved and continued."""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from sglm import __version__
from sglm.errors import InputError
from sglm.runtime.memory import available_bytes
from sglm.storage.durable import replace_text
from sglm.storage.picture import can_draw, save_picture
from sglm.storage.untrusted import given_path, read_bounded

_LARGEST_PART_BYTES = 1 << 28
_PARTS = "parts"


@dataclass(frozen=True, kw_only=True)
class Part:
    """A piece of an analysis that is computed and saved as a whole.

    It takes a minute at most, so that an interruption loses little.

    Attributes:
        name: Name of its file, unique within the analysis.
        compute: A function that computes its values, which JSON can hold; floats may be NaN.
        seconds: Its estimated time.
        depends_on: Everything that its values depend on (models, text, numbers), which JSON can
            hold. While this is the same, saved values are used, for example when a run is added.
    """

    name: str
    compute: Callable[[], dict[str, Any]]
    seconds: float
    depends_on: Mapping[str, Any]

    @property
    def key(self) -> str:
        """A hash of everything that its values depend on, including sglm's version."""
        known = {"sglm": __version__, **self.depends_on}
        return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


class Finding(Protocol):
    """The result of an analysis."""

    def as_json(self) -> dict[str, Any]:
        """Returns all data; a number that is not defined is NaN."""
        ...

    def rows(self) -> list[list[str]]:
        """Returns a table that fits 80 columns: its heading, then its rows."""
        ...

    def summary(self) -> str:
        """Returns what the data mean, in a sentence or a few."""
        ...

    def draw(self, figure: Any) -> None:
        """Draws the picture on a matplotlib figure."""
        ...


class Analysis(Protocol):
    """A question about some models."""

    @property
    def what(self) -> str:
        """The name of the analysis, as in `sglm analyze WHAT`."""
        ...

    def memory_bytes(self) -> float:
        """Estimates the peak memory."""
        ...

    def parts(self) -> Sequence[Part]:
        """Returns the parts in the order in which they are computed.

        Every call recreates them, which reads the models' files.
        """
        ...

    def finding(self, values: Mapping[str, dict[str, Any]]) -> Finding:
        """Puts the values of all parts, by the part's name, together."""
        ...


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The progress of an analysis.

    Attributes:
        part: Name of the part that is computed next; None when all are done.
        done, parts: Number of parts that are done, and of all parts.
        seconds_left: Estimated time of the remaining parts.
    """

    part: str | None
    done: int
    parts: int
    seconds_left: float


ReportsProgress = Callable[[Progress], object]


def carry_out(
    analysis: Analysis,
    out: str | os.PathLike[str] | None = None,
    *,
    parts: Sequence[Part] | None = None,
    report: ReportsProgress | None = None,
) -> Finding:
    """Computes the parts of an analysis that are not saved yet, and returns its finding.

    Args:
        analysis: What to carry out.
        out: Folder for `WHAT.json`, for `WHAT.png` if matplotlib is installed, and for the parts,
            with which the same call continues after an interruption. None: nothing is written.
        parts: Parts of the analysis, if the caller has them already. None: `analysis.parts()`.
        report: Function that is called before every part and at the end.

    Raises:
        InputError: The analysis needs more memory than is free, or `out` is not a path or cannot
            be written to.
    """
    check_memory(analysis)
    target, folder = None, None
    if out is not None:
        target = given_path("a folder", out)
        _make_folder(target)  # fails now rather than after the first part
        folder = target / _PARTS / analysis.what
        folder.mkdir(parents=True, exist_ok=True)
    if parts is None:
        parts = analysis.parts()
    values = {part.name: _saved_values(folder, part) for part in parts}
    remaining = [part for part in parts if values[part.name] is None]
    for index, part in enumerate(remaining):
        if report is not None:
            report(
                Progress(
                    part=part.name,
                    done=len(parts) - len(remaining) + index,
                    parts=len(parts),
                    seconds_left=sum(each.seconds for each in remaining[index:]),
                )
            )
        value = json.loads(json.dumps(part.compute()))  # equal to what is read back later
        values[part.name] = value
        if folder is not None:
            text = json.dumps({"key": part.key, "value": value})
            replace_text(folder / f"{part.name}.json", text + "\n")
    if report is not None:
        report(Progress(part=None, done=len(parts), parts=len(parts), seconds_left=0.0))
    finding = analysis.finding({name: value for name, value in values.items() if value is not None})
    if target is not None:
        _write(finding, target, analysis.what)
    return finding


def _make_folder(out: Path) -> None:
    """Creates the folder, and fails early if results could not be saved there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written to ({error.strerror}); give another --out DIR"
        ) from None


def check_memory(analysis: Analysis) -> None:
    """Checks that enough memory is free.

    Raises:
        InputError: The analysis needs more memory than is free.
    """
    needed, available = analysis.memory_bytes(), available_bytes()
    if available is not None and needed > available:
        raise InputError(
            f"analyze {analysis.what} would need about {needed / 2**30:.1f} GiB of memory, and"
            f" {available / 2**30:.1f} are free; give fewer runs, or smaller models"
        )


def remaining_seconds(analysis: Analysis, parts: Sequence[Part], out: Path) -> float:
    """Estimates the seconds that `carry_out` would take with these parts and this folder."""
    folder = out / _PARTS / analysis.what
    return sum(part.seconds for part in parts if _saved_values(folder, part) is None)


def without_nan(value: Any) -> Any:
    """Returns the same tree with None for numbers that are not finite, which JSON lacks."""
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, Mapping):
        return {str(key): without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(each) for each in value]
    return value


def _saved_values(folder: Path | None, part: Part) -> dict[str, Any] | None:
    """Returns the saved values of a part if they belong to the same models and settings."""
    if folder is None:
        return None
    key = part.key
    try:
        # Not `read_json`, which rejects NaN.
        content = json.loads(read_bounded(folder / f"{part.name}.json", _LARGEST_PART_BYTES))
        value = content["value"] if content["key"] == key else None
    except (OSError, ValueError, LookupError, TypeError, RecursionError, InputError):
        return None  # missing or damaged: the part is computed again
    return value if isinstance(value, dict) else None


def _write(finding: Finding, out: Path, what: str) -> None:
    text = json.dumps(without_nan(finding.as_json()), indent=1, allow_nan=False, ensure_ascii=False)
    replace_text(out / f"{what}.json", text + "\n")
    if can_draw():
        save_picture(out / f"{what}.png", finding.draw)
