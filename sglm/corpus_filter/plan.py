"""The plan of the result files, and the settings that the results of a folder were made with.

The folder of results also holds `score.json`, the settings; `errors.json`, if files failed; and
under hidden names, which no command reads as text, the records of finished files (`.sglm/done`) and
files that still lack their buckets (`.sglm/scored`).
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from sglm.errors import InputError
from sglm.model.folder import find_model_folder
from sglm.storage.digest import sha256_of
from sglm.storage.durable import replace_text
from sglm.storage.untrusted import read_json
from sglm.text.sources import (
    FILES_OF_SCORES,
    RECORD_ENDINGS,
    TEXT_ENDINGS,
    file_version,
    find_sources,
)

Format = Literal["jsonl", "parquet"]
SETTINGS_FILE, ERRORS_FILE = FILES_OF_SCORES
LOCK_FILE = ".lock"
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings that decide what the results are; results are continued only with equal ones."""

    model: str
    """The hash of the model, by `model_hash`."""
    text_field: str
    fields: tuple[str, ...]
    prefix: str
    format: Format | None
    """The format of the results. None: that of the source."""
    percentiles: tuple[float, float] | None
    bos: bool
    eos: bool
    precision: str


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A file of the corpus and its result, below the folder of results."""

    source: str
    out: str
    name: str
    """The path of the result, relative to `out`."""

    @property
    def result_path(self) -> Path:
        return Path(self.out, self.name)

    @property
    def unbucketed_path(self) -> Path:
        """The path of the result as long as it lacks its buckets."""
        return Path(self.out, ".sglm", "scored", self.name)

    @property
    def record_path(self) -> Path:
        """The path of the finished file's record."""
        return Path(self.out, ".sglm", "done", f"{self.name}.json")

    def size(self) -> int:
        """Returns the number of bytes of the source."""
        return os.stat(self.source).st_size

    def version(self) -> list[int]:
        """Returns the version of the source (`file_version`)."""
        return [*file_version(Path(self.source))]


def plan_shards(
    sources: Sequence[str], out: Path, *, text_field: str, format: Format | None
) -> list[Shard]:
    """Returns a shard for every file, named after the file, or after its path in the given folder.

    Raises:
        InputError: There are no files, two files would have the same result, or `out` lies within
            the sources or they within `out`.
    """
    shards: dict[str, Shard] = {}
    for source in sources:
        if source == "-" or source.startswith(("builtin:", "hf:")):
            raise InputError(f"{source}: --out takes files and folders; write this into one first")
        folder = Path(source) if os.path.isdir(source) else Path(source).parent
        if os.path.isdir(source) and out.resolve().is_relative_to(folder.resolve()):
            raise InputError(
                f"--out {out} lies in {source}, where it would be read as text; give another"
            )
        if folder.resolve().is_relative_to(out.resolve()):  # results would replace their sources
            raise InputError(f"--out {out} has {source} in it; give another")
        for found in find_sources(source, text_field, keep_empty=True):
            name = _result_name(str(Path(found.name).relative_to(folder)), format)
            if name in shards and os.path.samefile(shards[name].source, found.name):
                raise InputError(f"{found.name}: given twice; give it once")
            if name in shards:
                beside = Path(shards[name].source).parent == Path(found.name).parent
                cure = "rename one of them" if beside else "give one folder that has both"
                raise InputError(
                    f"{shards[name].source} and {found.name} would both become {out / name};"
                    f" score them into two folders, or {cure}"
                )
            shards[name] = Shard(source=found.name, out=str(out), name=name)
    return list(shards.values())


def _result_name(name: str, format: Format | None) -> str:
    """Returns the name of a result. JSON lines from a compressed file are compressed too."""
    ending = next(e for e in (*TEXT_ENDINGS, *RECORD_ENDINGS)[::-1] if name.lower().endswith(e))
    if format is None:
        format = "parquet" if ending == ".parquet" else "jsonl"
    packed = ".gz" if ending.endswith(".gz") and format == "jsonl" else ""
    return f"{name[: -len(ending)]}.{format}{packed}"


def model_hash(run: Path) -> str:
    """Returns the SHA-256 hash of all files in a model's folder on which its scores depend.

    Raises:
        InputError: There is no model.
    """
    digest = hashlib.sha256()
    for path in sorted(find_model_folder(run).iterdir()):
        if path.is_file() and not path.name.startswith((".", "adapt.")):
            digest.update(f"{path.name}\0{sha256_of(path)}\0".encode())
    return digest.hexdigest()


@dataclass(kw_only=True)
class Folder:
    """The folder of results: its settings, and, once known, the perplexities that separate the
    buckets."""

    path: Path
    settings: Settings
    cutoffs: tuple[float, float] | None = None

    def save(self) -> None:
        """Writes `score.json`."""
        content = {
            "format_version": FORMAT_VERSION,
            "settings": asdict(self.settings),
            "cutoffs": self.cutoffs,
        }
        replace_text(self.path / SETTINGS_FILE, json.dumps(content, indent=2) + "\n")


def open_folder(path: Path, settings: Settings) -> Folder:
    """Opens a new folder of results, or one to be continued.

    Raises:
        InputError: The folder holds results of other settings, or something else.
    """
    file = path / SETTINGS_FILE
    if not file.exists():
        if any(not entry.name.startswith(".") for entry in path.iterdir()):
            raise InputError(f"{path}: not empty, and no results of sglm score; give another --out")
        return _new_folder(path, settings)
    content = _checked(file)
    if not any(path.glob(".sglm/done/**/*.json")):  # no file was ever finished
        return _new_folder(path, settings)
    before, now = content["settings"], json.loads(json.dumps(asdict(settings)))
    for key, value in now.items():
        if before.get(key) != value:
            raise InputError(
                f"{path}: made with {_as_option(key, before.get(key))}, now it is"
                f" {_as_option(key, value)}; give another --out, or the same as before"
            )
    cutoffs = content.get("cutoffs")
    return Folder(
        path=path, settings=settings, cutoffs=None if cutoffs is None else (cutoffs[0], cutoffs[1])
    )


def _new_folder(path: Path, settings: Settings) -> Folder:
    shutil.rmtree(path / ".sglm", ignore_errors=True)  # belongs to results that were deleted
    folder = Folder(path=path, settings=settings)
    folder.save()
    return folder


def _checked(file: Path) -> dict[str, Any]:
    try:
        content = read_json(file)
        cutoffs = content["cutoffs"]
        known = (
            content["format_version"] == FORMAT_VERSION
            and isinstance(content["settings"], dict)
            and (cutoffs is None or [type(each) for each in cutoffs] == [float, float])
        )
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise InputError(f"{file}: damaged, or of another version of sglm; give another --out")
    return dict(content)


def _as_option(key: str, value: Any) -> str:
    names = {
        "model": "the model",
        "text_field": "--text-field",
        "fields": "--fields",
        "prefix": "--prefix",
        "format": "--format",
        "percentiles": "--buckets",
        "bos": "--bos",
        "eos": "--eos",
        "precision": "--precision",
    }
    if isinstance(value, list):
        value = ",".join(f"{each:g}" if isinstance(each, float) else str(each) for each in value)
    shown = str(value)[:12] if key == "model" else "none" if value is None else str(value)
    return f"{names[key]} {shown}"
