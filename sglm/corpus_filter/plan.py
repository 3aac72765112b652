"""Which files become which, and what the results of a folder were made with.

In the folder of results, besides these: `score.json`, the settings; `errors.json`, where files
failed; and below hidden names, which no command takes for text, what is known of each finished file
(`.sglm/done`) and files that still lack their buckets (`.sglm/scored`).
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
    """All that decides what the results are. Results of other settings are no continuation."""

    model: str
    """SHA-256 of the model's folder."""
    text_field: str
    fields: tuple[str, ...]
    prefix: str
    format: Format | None
    """None: as the source."""
    percentiles: tuple[float, float] | None
    bos: bool
    eos: bool
    precision: str


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A file of the corpus and the file that it becomes, below the folder of results."""

    source: str
    out: str
    name: str
    """The path of the result below `out`."""

    @property
    def result(self) -> Path:
        return Path(self.out, self.name)

    @property
    def scored(self) -> Path:
        """The result as long as it lacks its buckets."""
        return Path(self.out, ".sglm", "scored", self.name)

    @property
    def record(self) -> Path:
        """What is known of the finished file."""
        return Path(self.out, ".sglm", "done", f"{self.name}.json")

    def size(self) -> int:
        """Bytes of the source."""
        return os.stat(self.source).st_size

    def version(self) -> list[int]:
        """Of the source (`file_version`)."""
        return [*file_version(Path(self.source))]


def plan_shards(
    sources: Sequence[str], out: Path, *, text_field: str, format: Format | None
) -> list[Shard]:
    """A shard for every file, named after it; below a folder, after its path in there.

    Raises:
        InputError: no files; two would become one; `out` lies among them, or they in `out`.
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
    """Compressed JSON lines stay compressed; parquet is so anyway."""
    ending = next(e for e in (*TEXT_ENDINGS, *RECORD_ENDINGS)[::-1] if name.lower().endswith(e))
    if format is None:
        format = "parquet" if ending == ".parquet" else "jsonl"
    packed = ".gz" if ending.endswith(".gz") and format == "jsonl" else ""
    return f"{name[: -len(ending)]}.{format}{packed}"


def model_hash(run: Path) -> str:
    """SHA-256 of all files of a model's folder that its scores depend on.

    Raises:
        InputError: no model there.
    """
    digest = hashlib.sha256()
    for path in sorted(find_model_folder(run).iterdir()):
        if path.is_file() and not path.name.startswith((".", "adapt.")):
            digest.update(f"{path.name}\0{sha256_of(path)}\0".encode())
    return digest.hexdigest()


@dataclass(kw_only=True)
class Folder:
    """The folder of results: its settings, and the perplexities that bound the buckets, once they
    are known."""

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
    """The folder of results, made or continued.

    Raises:
        InputError: results of other settings are in there, or something else.
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
                f"{path}: made with {_described(key, before.get(key))}, now it is"
                f" {_described(key, value)}; give another --out, or what it was made with"
            )
    cutoffs = content.get("cutoffs")
    return Folder(
        path=path, settings=settings, cutoffs=None if cutoffs is None else (cutoffs[0], cutoffs[1])
    )


def _new_folder(path: Path, settings: Settings) -> Folder:
    shutil.rmtree(path / ".sglm", ignore_errors=True)  # of results that were deleted
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


def _described(key: str, value: Any) -> str:
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
