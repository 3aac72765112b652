"""The record of each session in `sessions.jsonl`: versions, commit, machine, command.

A run may be continued by another version or on another machine; `run.json` holds what all its
sessions share.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch

from sglm import __version__
from sglm.config import Config
from sglm.errors import InputError
from sglm.optim.precision import Precision
from sglm.runtime.ranks import Ranks
from sglm.storage.durable import replace_file, replace_text
from sglm.storage.untrusted import parse_json, read_bounded
from sglm.text.overlap import TRAINING_LINES, LineHashes, find_training_lines
from sglm.text.store import TokenStore, is_store
from sglm.train.run_folder import RunFolder
from sglm.train.starting_point import StartingPoint

_LARGEST_RECORD_BYTES = 1 << 26
SESSIONS = "sessions.jsonl"
_GIVE_DATA = "give --data DIR"
# Packages whose versions may change a run's numbers, and for each kind of tokenizer the package
# that made the tokens.
_PACKAGES = ("torch", "numpy", "safetensors")
_TOKENIZER_PACKAGES = {"sentencepiece": "sentencepiece", "spm": "sentencepiece", "hf": "tokenizers"}


def record_session(
    run: RunFolder,
    config: Config,
    store: TokenStore,
    *,
    precision: Precision,
    ranks: Ranks,
    step: int,
) -> None:
    """Adds this session to `sessions.jsonl`, durably, before it trains.

    Args:
        run: The run folder, opened.
        config, store: The run's configuration and token store.
        precision: The number types, and the device.
        ranks: The processes that train together.
        step: Number of steps done before this session.
    """
    device = precision.device
    session = {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "from_step": step,
        "seed": config.train.seed,
        "corpus_fingerprint": store.fingerprint,
        **_place(store.folder, run.path),
        "command": sys.argv,
        "device": str(device),
        "precision": precision.name,
        "deterministic": torch.are_deterministic_algorithms_enabled() or device.type == "cpu",
        "processes": ranks.count,
        "versions": versions(store.tokenizer().kind),
        **machine(device),
    }
    path = run.path / SESSIONS
    raw = read_bounded(path, _LARGEST_RECORD_BYTES) if path.exists() else b""
    before = raw.decode(errors="replace")
    # Rewritten as a whole, so that the line is complete or absent whenever the machine stops.
    replace_text(path, before + json.dumps(session, ensure_ascii=False) + "\n")


def _place(store: Path, run: Path) -> dict[str, str]:
    """Returns the store's absolute path and its path from the run, which still holds if both are
    moved together."""
    store, run = store.resolve(), run.resolve()
    places = {"data": str(store), "data_from_run": os.path.relpath(store, run)}
    # The folders above may have any name; the record is UTF-8.
    return {name: place.encode(errors="replace").decode() for name, place in places.items()}


def training_store(model: Path) -> TokenStore:
    """Opens the store that a run was last trained on.

    Args:
        model: A run, or a model folder inside it.

    Raises:
        InputError: The model is not part of a run, or the run does not record its store; or the
            store is no longer there, or holds another corpus.
    """
    around = (model, *model.resolve().parents[:2])
    run = next((each for each in around if (each / SESSIONS).exists()), None)
    if run is None:
        raise InputError(
            f"{model}: is not in a run, so nothing says what it was trained on; {_GIVE_DATA}"
        )
    try:
        lines = read_bounded(run / SESSIONS, _LARGEST_RECORD_BYTES).splitlines()
        session = parse_json(lines[-1])
        places = [run / str(session["data_from_run"]), Path(str(session["data"]))]
        fingerprint = session["corpus_fingerprint"]
    except (ValueError, LookupError, TypeError):
        raise InputError(
            f"{run}: does not say which store it was trained on; {_GIVE_DATA}"
        ) from None
    problem = "is not there any more"
    damaged: InputError | None = None
    for place in {place.resolve(): None for place in places if is_store(place)}:
        try:
            store = TokenStore.open(_relative_to_cwd(place))
        except InputError as error:  # the right one may be at the other place
            damaged = damaged or error
            continue
        if store.fingerprint == fingerprint:
            return store
        problem = "is another corpus now"
    if damaged is not None:
        raise damaged
    raise InputError(f"{places[-1]}, which {run} was trained on, {problem}; {_GIVE_DATA}")


def _relative_to_cwd(path: Path) -> Path:
    """Returns the path as people would write it: relative to the current folder if inside it."""
    path, here = path.resolve(), Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def keep_training_lines(run: RunFolder, store: TokenStore, start: StartingPoint | None) -> None:
    """Writes the hashes of the training lines, for `sglm eval` to compare with: those of the store
    and those that the model to start from has learned from. If either is unknown, it writes
    nothing, because a part would pass for the whole.

    They go into the run and not into `model/`, which stays small and reveals nothing of the text.
    """
    copy = run.path / TRAINING_LINES
    lines = None if copy.exists() else store.line_hashes("train")
    if lines is not None and start is not None:
        earlier = find_training_lines(start.folder)
        before = None if earlier is None else LineHashes.read(earlier)
        lines = None if before is None else before.joined(lines)
    if lines is not None:
        replace_file(copy, lines.write)


def versions(tokenizer_kind: str = "") -> dict[str, str | None]:
    """Returns the versions of everything that may change a run's numbers; None for an unknown one.

    `git_commit` is the commit of the checkout that sglm runs from; `code_sha256` is the checksum of
    sglm's own files, uncommitted changes included.
    """
    tokenizer_package = _TOKENIZER_PACKAGES.get(tokenizer_kind)
    packages = [*_PACKAGES, *([tokenizer_package] if tokenizer_package else [])]
    by_name: dict[str, str | None] = {"sglm": __version__, "python": platform.python_version()}
    for name in packages:
        try:
            by_name[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            by_name[name] = None
    by_name["cuda"] = torch.version.cuda
    cudnn: Any = torch.backends.cudnn
    by_name["cudnn"] = str(cudnn.version()) if torch.version.cuda and cudnn.is_available() else None
    package = Path(__file__).resolve().parents[1]
    by_name["git_commit"] = git_commit(package.parent)
    by_name["code_sha256"] = code_sha256(package)
    return by_name


def machine(device: torch.device) -> dict[str, Any]:
    """Describes the hardware and its settings, as far as rounding may depend on them."""
    return {
        "platform": platform.platform(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }


@cache
def code_sha256(package: Path) -> str:
    """Returns the checksum of the Python files in a folder, of their names and contents."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def git_commit(checkout: Path) -> str | None:
    """Returns the commit that a folder has checked out; None if it is not a plain checkout.

    It is read from git's files, because git itself would run commands that the folder's
    configuration names. Folders above do not count: an sglm installed inside another project's
    checkout does not belong to that project.
    """
    try:
        folder = checkout / ".git"
        if folder.is_file():  # a worktree or a submodule
            folder = checkout / folder.read_text(encoding="utf-8").removeprefix("gitdir:").strip()
        head = (folder / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref:"):
            return _as_commit(head)
        name = head.removeprefix("ref:").strip()
        shared = folder
        if (folder / "commondir").exists():
            shared = folder / (folder / "commondir").read_text(encoding="utf-8").strip()
        for place in (folder / name, shared / name):
            if place.is_file():
                return _as_commit(place.read_text(encoding="utf-8").strip())
        for line in (shared / "packed-refs").read_text(encoding="utf-8").splitlines():
            commit, _, ref = line.partition(" ")
            if ref == name:
                return _as_commit(commit)
    except (OSError, ValueError):
        pass
    return None


def _as_commit(text: str) -> str | None:
    """Returns the text if it is a commit: 40 hexadecimal digits, or 64 in newer repositories."""
    whole = len(text) in (40, 64) and all(letter in "0123456789abcdef" for letter in text)
    return text if whole else None
