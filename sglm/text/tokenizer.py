"""Text ↔ token ids: every kind of tokenizer, and how to get one back from its folder."""

from pathlib import Path

from sglm.errors import InputError, short_repr
from sglm.storage.untrusted import parse_json, read_bounded, read_json
from sglm.text.plain_tokenizers import ByteTokenizer as ByteTokenizer
from sglm.text.plain_tokenizers import CharTokenizer as CharTokenizer
from sglm.text.plain_tokenizers import WordTokenizer as WordTokenizer
from sglm.text.tokenizer_interface import (
    CARD_FILE,
    FORMAT_VERSION,
    LARGEST_FILE_BYTES,
    SENTENCEPIECE_FILE,
    VOCABULARY_FILE,
)
from sglm.text.tokenizer_interface import EOS as EOS
from sglm.text.tokenizer_interface import UNK as UNK
from sglm.text.tokenizer_interface import Tokenizer as Tokenizer
from sglm.text.tokenizer_interface import utf8 as utf8

KINDS = ("sentencepiece", "word", "char", "byte")


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that `save` wrote into `folder`.

    Raises:
        InputError: there is none, it was written by a later version, or its files were changed.
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
        raise InputError(f"{path}: damaged; make the folder again") from error
    if version != FORMAT_VERSION or kind not in KINDS:
        raise InputError(
            f"{path}: tokenizer {short_repr(kind)}, format {short_repr(version)}, is not known to"
            " this version of sglm"
        )
    try:
        tokenizer = _restore(kind, folder)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{folder}: the tokenizer's files are damaged or incomplete") from error
    if tokenizer.fingerprint != fingerprint:
        raise InputError(
            f"{folder}: the tokenizer's files are not those that {path.name} describes; "
            "make the folder again"
        )
    return tokenizer


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
    "".join(entries).encode()  # a lone surrogate is no text: UnicodeEncodeError is a ValueError
    if len(set(entries)) < len(entries):
        raise ValueError("an entry stands twice in the list")
    if kind == "char":
        if not all(len(entry) == 1 for entry in entries):
            raise ValueError("not a list of characters")
        return CharTokenizer(entries)
    if not all(entry.split() == [entry] for entry in entries):
        raise ValueError("not a list of words")
    return WordTokenizer(entries)
