"""All kinds of tokenizers (text ↔ token ids), and how to load one from its folder."""

from pathlib import Path
from typing import Any

from sglm.errors import InputError, short_repr
from sglm.storage.names import BEST_MODEL
from sglm.storage.untrusted import is_count, parse_json, read_bounded, read_json
from sglm.text.plain_tokenizers import ByteTokenizer as ByteTokenizer
from sglm.text.plain_tokenizers import CharTokenizer as CharTokenizer
from sglm.text.plain_tokenizers import IdsTokenizer as IdsTokenizer
from sglm.text.plain_tokenizers import WordTokenizer as WordTokenizer
from sglm.text.tokenizer_interface import (
    CARD_FILE,
    FORMAT_VERSION,
    HF_FILE,
    LARGEST_FILE_BYTES,
    LARGEST_VOCABULARY,
    SENTENCEPIECE_FILE,
    VOCABULARY_FILE,
)
from sglm.text.tokenizer_interface import EOS as EOS
from sglm.text.tokenizer_interface import UNK as UNK
from sglm.text.tokenizer_interface import Tokenizer as Tokenizer
from sglm.text.tokenizer_interface import utf8 as utf8

# Kinds that sglm makes from the training text, and given ones: a Hugging Face file, a SentencePiece
# model, plain ids.
KINDS = ("sentencepiece", "word", "char", "byte")
GIVEN_KINDS = ("hf", "spm", "ids")


def load_tokenizer(folder: Path) -> Tokenizer:
    """Loads the tokenizer that `save` wrote into `folder`.

    Raises:
        InputError: There is none, its kind or format is unknown to this version, its files are
            damaged or were changed, or a package that it needs is missing.
    """
    path = folder / CARD_FILE
    try:
        facts = read_json(path)
        kind, version, fingerprint = (
            facts[key] for key in ("kind", "format_version", "fingerprint")
        )
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder}: holds no tokenizer ({CARD_FILE} is missing)") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged; recreate the folder") from error
    if version != FORMAT_VERSION or kind not in (*KINDS, *GIVEN_KINDS):
        raise InputError(
            f"{path}: tokenizer {short_repr(kind)}, format {short_repr(version)}, is not known to"
            " this version of sglm"
        )
    try:
        given = kind in GIVEN_KINDS
        tokenizer = _restore_given(kind, folder, facts) if given else _restore(kind, folder)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{folder}: the tokenizer's files are damaged or incomplete") from error
    if tokenizer.fingerprint != fingerprint:
        raise InputError(
            f"{folder}: the tokenizer's files are not those that {path.name} describes; "
            "recreate the folder"
        )
    return tokenizer


def find_tokenizer(path: Path) -> Tokenizer:
    """Loads the tokenizer of a run, a model folder or a store.

    Raises:
        InputError: The path is none of these; see also `load_tokenizer`.
    """
    for folder in (path / BEST_MODEL, path):
        if (folder / CARD_FILE).is_file():
            return load_tokenizer(folder)
    if not path.exists():
        raise InputError(f"{path}: no such folder; give a run, a model folder or a store")
    raise InputError(
        f"{path}: holds no tokenizer of sglm; give a run that has saved a model, a model folder or"
        " a store"
    )


def _restore_given(kind: str, folder: Path, facts: dict[str, Any]) -> Tokenizer:
    vocab_size, eos_id = facts.get("vocab_size"), facts.get("eos_id")
    if not is_count(vocab_size) or not 2 <= vocab_size <= LARGEST_VOCABULARY:
        raise ValueError("no vocabulary")
    if not is_count(eos_id) or eos_id >= vocab_size:
        raise ValueError("no end of text")
    if kind == "ids":
        adds_eos = facts.get("settings") == "adds eos"
        return IdsTokenizer(vocab_size - adds_eos, eos_id=None if adds_eos else eos_id)
    if kind == "spm":
        from sglm.text.spm_tokenizer import SpmTokenizer

        content = read_bounded(folder / SENTENCEPIECE_FILE, LARGEST_FILE_BYTES)
        return SpmTokenizer(content, eos_id=eos_id)
    from sglm.text.hf_tokenizer import HfTokenizer

    content = read_bounded(folder / HF_FILE, LARGEST_FILE_BYTES)
    try:
        return HfTokenizer(content, eos_id=eos_id)
    except InputError as error:
        raise InputError(f"{folder / HF_FILE}: {error}") from error


def _restore(kind: str, folder: Path) -> Tokenizer:
    if kind == "byte":
        return ByteTokenizer()
    if kind == "sentencepiece":
        from sglm.text.sentencepiece_tokenizer import SentencePieceTokenizer

        content = read_bounded(folder / SENTENCEPIECE_FILE, LARGEST_FILE_BYTES)
        return SentencePieceTokenizer(content)
    content = read_bounded(folder / VOCABULARY_FILE, LARGEST_FILE_BYTES)
    entries = parse_json(content)
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise ValueError("not a list of texts")
    "".join(entries).encode()  # refuses lone surrogates: UnicodeEncodeError is a ValueError
    if len(set(entries)) < len(entries):
        raise ValueError("an entry occurs twice in the list")
    if kind == "char":
        if not all(len(entry) == 1 for entry in entries):
            raise ValueError("not a list of characters")
        return CharTokenizer(entries)
    if not all(entry.split() == [entry] for entry in entries):
        raise ValueError("not a list of words")
    return WordTokenizer(entries)
