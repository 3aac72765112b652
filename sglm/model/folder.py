"""Model folders: `config.json`, `model.safetensors`, and a tokenizer, which other modules write.

They contain no pickle, so a folder from elsewhere cannot run code. Everything is checked before
memory is allocated: a damaged or foreign folder is refused with a one-line error that names it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sglm.errors import InputError, did_you_mean, short_repr
from sglm.model.language_model import LSTMLanguageModel, ModelShape
from sglm.storage.digest import sha256_of
from sglm.storage.durable import replace_file, replace_text, write_tensors
from sglm.storage.names import BEST_MODEL, CONFIG_FILE, META_FILE, RUN_CONFIG
from sglm.storage.untrusted import is_count, read_json

# Models with a full softmax are still written as version 1, which every version of sglm reads;
# models with an adaptive softmax have version 2.
FORMAT_VERSION: Literal[1] = 1
ADAPTIVE_VERSION: Literal[2] = 2
WEIGHTS_FILE = "model.safetensors"

# The header of a model of a thousand layers is a third as long. A header with millions of tensor
# names would take the safetensors library minutes to parse.
LARGEST_HEADER_BYTES = 1 << 20
# Far above any size that is trained, and far below the sizes that overflow in Python or torch.
_Size = Annotated[int, Field(ge=1, le=2**24)]


class _Shape(BaseModel):
    """`ModelShape` as stored in a file: types and bounds are checked, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    vocab_size: _Size
    layers: Annotated[int, Field(ge=1, le=1000)]
    hidden: _Size
    embedding: _Size
    tied: bool
    cutoffs: Annotated[list[_Size], Field(min_length=1, max_length=100)] | None = None
    """The cutoffs of an adaptive softmax, in version 2; None for a full softmax, in version 1."""


class ModelCard(BaseModel):
    """The content of `config.json`."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    format_version: Literal[1, 2]
    shape: _Shape
    tokenizer_fingerprint: str
    extra: dict[str, Any] = {}
    """Anything else that the writer adds. Only its `bos_id` is read here: the token that stands
    before every text, if that is not `<eos>` (`TokenStore.bos_id`)."""

    def model_shape(self) -> ModelShape:
        """Returns the shape as the network's constructor takes it."""
        return ModelShape(
            **self.shape.model_dump(exclude={"cutoffs"}), cutoffs=tuple(self.shape.cutoffs or ())
        )

    @model_validator(mode="after")
    def _belongs_together(self) -> "ModelCard":
        cutoffs = self.shape.cutoffs
        if (self.format_version == ADAPTIVE_VERSION) != (cutoffs is not None):
            raise ValueError("shape.cutoffs belong to format version 2 only, which requires them")
        if cutoffs is not None and (
            sorted(set(cutoffs)) != cutoffs or cutoffs[-1] >= self.shape.vocab_size
        ):
            raise ValueError("shape.cutoffs must ascend and be below vocab_size")
        bos_id = self.extra.get("bos_id", 0)
        if not is_count(bos_id) or bos_id >= self.shape.vocab_size:
            raise ValueError(f"extra.bos_id: {short_repr(bos_id)} is not in the vocabulary")
        return self


def save_model(
    model: LSTMLanguageModel,
    folder: Path,
    tokenizer_fingerprint: str,
    *,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes `config.json` and `model.safetensors` (float32) into `folder`, created if needed.

    Each file is written under a temporary name, synced to the disk and renamed: whenever the
    machine stops, each file is complete, either the old or the new one. To replace the files of a
    folder together, fill a fresh folder and rename it (`write_new_folder`).

    Args:
        model: The model, on any device, in any mode; not changed.
        folder: Folder to write to.
        tokenizer_fingerprint: Fingerprint of the tokenizer whose ids the model reads.
        extra: Further content of `config.json`, anything that JSON can hold.

    Raises:
        OSError: The files cannot be written.
    """
    card = ModelCard(
        format_version=ADAPTIVE_VERSION if model.shape.cutoffs else FORMAT_VERSION,
        shape=_Shape(**{**asdict(model.shape), "cutoffs": list(model.shape.cutoffs) or None}),
        tokenizer_fingerprint=tokenizer_fingerprint,
        extra=dict(extra or {}),
    )
    tensors = {
        name: tensor.detach()
        .to("cpu", torch.float32 if tensor.is_floating_point() else tensor.dtype)
        .contiguous()
        for name, tensor in model.state_dict().items()
    }
    text = json.dumps(card.model_dump(exclude_none=True), indent=2, ensure_ascii=False) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / WEIGHTS_FILE, lambda path: write_tensors(path, tensors))
    replace_text(folder / CONFIG_FILE, text)


def read_card(folder: Path) -> ModelCard:
    """Reads and checks `config.json`.

    Raises:
        InputError: The folder holds no model, or `config.json` holds an invalid value.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise InputError(
            f"{folder} is not a model folder: it has no {CONFIG_FILE}; "
            "give the model/ folder of a run, or one of its snapshots"
        )
    try:
        content = read_json(path)
    except ValueError as error:
        raise InputError(f"{path} is damaged: not JSON ({error}); copy the folder again") from None
    version = content.get("format_version") if isinstance(content, dict) else None
    if version is None:
        raise InputError(f"{path} is not the {CONFIG_FILE} of an sglm model: no format_version")
    if version not in (FORMAT_VERSION, ADAPTIVE_VERSION):
        raise InputError(
            f"{path} has format version {short_repr(version)}, this sglm reads {FORMAT_VERSION} "
            f"and {ADAPTIVE_VERSION}; use the version of sglm that wrote it"
        )
    try:
        return ModelCard.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part)[:60] for part in first["loc"])
        problem = f"{where}: {first['msg']}" if where else first["ctx"]["error"]
        raise InputError(f"{path}: {problem}; copy the folder again") from None


def weights_sha256(folder: Path) -> str:
    """Returns the digest by which others recognize the weights of a model folder.

    Raises:
        OSError: The weights cannot be read.
    """
    return sha256_of(folder / WEIGHTS_FILE)


def check_same_tokenizer(folders: Mapping[str, Path], cure: str) -> None:
    """Checks that models have the same tokenizer, without which ids and losses are not comparable.

    Args:
        folders: Model folders, at least one, by the names that the error message uses.
        cure: What the error message tells the user to do.

    Raises:
        InputError: A model has another tokenizer than the first; or see `read_card`.
    """
    fingerprints = {
        name: read_card(folder).tokenizer_fingerprint for name, folder in folders.items()
    }
    first = next(iter(fingerprints))
    for name, fingerprint in fingerprints.items():
        if fingerprint != fingerprints[first]:
            raise InputError(f"{name} has another tokenizer than {first}; {cure}")


def load_weights(folder: Path, device: torch.device | str = "cpu") -> LSTMLanguageModel:
    """Loads the network of a model folder, in evaluation mode; draws no random numbers.

    Raises:
        InputError: It is not a model folder, its version is unknown, its sizes do not match the
            weights, a file is cut off or holds other tensors, or weights are not finite.
    """
    card = read_card(folder)
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise InputError(f"{folder} is not a whole model: it has no {WEIGHTS_FILE}; copy it again")
    # Tensors that are created in inference mode, which the caller may be in, cannot be trained.
    with torch.inference_mode(False):
        # On "meta" nothing is allocated or drawn; the tensors of the file are then assigned.
        with torch.device("meta"):
            model = LSTMLanguageModel(card.model_shape())
        try:
            tensors = read_tensors(path, model.state_dict())
        except SafetensorError as error:
            raise InputError(f"{path} is cut off or damaged ({error}); copy it again") from None
        if model.adaptive is not None:
            _check_permutation(path, "adaptive.word_rows", tensors["adaptive.word_rows"])
        model.load_state_dict(tensors, assign=True)
        return model.to(device).eval()


def find_model_folder(path: Path) -> Path:
    """Returns the model folder that a user means by `path`: a run, or a model folder itself.

    Raises:
        InputError: The path is neither. The message names what was looked for and, if a run or
            model is nearby, which path to give.
    """
    if _is_model_folder(path / BEST_MODEL):
        return path / BEST_MODEL
    if _is_model_folder(path):
        return path
    if not path.exists():
        near = [
            entry.name
            for entry in _subfolders(path.parent)
            if _is_model_folder(entry / BEST_MODEL) or _is_model_folder(entry)
        ]
        none_near = "; give a folder that `sglm train --out` wrote"
        hint = did_you_mean(path.name, near) if near else none_near
        raise InputError(f"no run or model at {path}: there is no such folder{hint}")
    wanted = f"neither model/{CONFIG_FILE} nor {CONFIG_FILE} and {WEIGHTS_FILE} in it"
    if path.is_file():
        wanted = "it is a file"
    raise InputError(f"{path} is not a run or a model folder: {wanted}{_nearby(path)}")


def _is_model_folder(path: Path) -> bool:
    # A config.json is enough here: loading the folder reports any file that is missing.
    return (path / CONFIG_FILE).is_file()


def _subfolders(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir()) if path.is_dir() else []


def _nearby(path: Path) -> str:
    """Returns `"; use …"` with a run or model above or below, or why there is none, or `""`."""
    if (path / RUN_CONFIG).is_file():
        return "; the run has not saved a model yet: continue it with `sglm train`"
    if (path / META_FILE).is_file():
        return "; it looks like a token store: give the run that was trained on it"
    above = path.absolute().parents[:2]
    for near in (*above, *_subfolders(path)):
        if _is_model_folder(near / BEST_MODEL) or _is_model_folder(near):
            return f"; use {near}"
    return ""


def read_tensors(
    path: Path, expected: Mapping[str, Tensor], *, card: str = CONFIG_FILE
) -> dict[str, Tensor]:
    """Reads the tensors of a file, after checking that its header lists exactly the expected ones.

    Args:
        path: A safetensors file.
        expected: Tensors with the expected names, shapes and types; their values are not used.
        card: Name of the file beside it that states what is expected.

    Raises:
        InputError: The file holds other tensors, or values that are not finite.
        SafetensorError: It is not a safetensors file.
    """
    with path.open("rb") as start:
        if int.from_bytes(start.read(8), "little") > LARGEST_HEADER_BYTES:
            raise InputError(
                f"{path} is cut off or damaged (its header is too long); copy it again"
            )
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        if missing := sorted(expected.keys() - names):
            raise InputError(f"{path} lacks {missing[0]!r}: {card} describes a different model")
        if unknown := sorted(names - expected.keys()):
            raise InputError(
                f"{path} holds {short_repr(unknown[0])}, which {card} does not mention: "
                "the two files belong to different models"
            )
        for name, tensor in expected.items():
            entry = file.get_slice(name)
            shape, dtype = tuple(entry.get_shape()), _stored_dtype(tensor)
            if shape != tuple(tensor.shape) or entry.get_dtype() != dtype:
                raise InputError(
                    f"{path}: {name!r} is {entry.get_dtype()} {shape}, but {card} wants "
                    f"{dtype} {tuple(tensor.shape)}: the two files belong to different models"
                )
        # Copied because the file may be replaced while the model is in use.
        tensors = {name: file.get_tensor(name).clone() for name in expected}
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(
                f"{path}: {name!r} is not finite: its training diverged; use an earlier snapshot"
            )
    return tensors


def _stored_dtype(tensor: Tensor) -> str:
    """Returns the type that a file must have for a tensor: floats are saved as float32."""
    return "F32" if tensor.is_floating_point() else "I64"


def _check_permutation(path: Path, name: str, rows_V: Tensor) -> None:
    """Checks that every row occurs once.

    Raises:
        InputError: It does not.
    """
    if not torch.equal(rows_V.sort().values, torch.arange(len(rows_V))):
        raise InputError(
            f"{path}: {name!r} is not a permutation of the {len(rows_V)} rows; copy it again"
        )
