"""Text ↔ token ids: every kind of tokenizer, and how to get one back from its folder."""

import json
from pathlib import Path

from sglm.errors import InputError
from sglm.text.plain_tokenizers import ByteTokenizer as ByteTokenizer
from sglm.text.plain_tokenizers import CharTokenizer as CharTokenizer
from sglm.text.plain_tokenizers import WordTokenizer as WordTokenizer
from sglm.text.tokenizer_interface import EOS as EOS
from sglm.text.tokenizer_interface import FORMAT_VERSION
from sglm.text.tokenizer_interface import UNK as UNK
from sglm.text.tokenizer_interface import Tokenizer as Tokenizer
from sglm.text.tokenizer_interface import utf8 as utf8

KINDS = ("sentencepiece", "word", "char", "byte")


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that `save` wrote into `folder`.

    Raises:
        InputError: there is none, it was written by a later version, or its files were changed.
    """
    path = folder / "tokenizer.json"
    try:
        facts = json.loads(path.read_text())
        kind, version, fingerprint = (
            facts[key] for key in ("kind", "format_version", "fingerprint")
        )
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{folder}: holds no tokenizer (tokenizer.json is missing)") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged; make the folder again") from error
    if version != FORMAT_VERSION or kind not in KINDS:
        raise InputError(
            f"{path}: tokenizer {kind!r}, format {version!r}, is not known to this version of sglm"
        )
    try:
        tokenizer = _restore(kind, folder)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
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

        return SentencePieceTokenizer((folder / SentencePieceTokenizer.content_file).read_bytes())
    entries = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    return CharTokenizer(entries) if kind == "char" else WordTokenizer(entries)
