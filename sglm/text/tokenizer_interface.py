"""The interface of all tokenizers, and the files that they write into a folder."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import ClassVar

import numpy as np

from sglm.errors import InputError
from sglm.storage.durable import errors_naming
from sglm.text.lines import LONE_SURROGATE, Piece

EOS, UNK = "<eos>", "<unk>"
FORMAT_VERSION = 1
# Files in a tokenizer's folder: its description, and its vocabulary, if its kind has one.
CARD_FILE = "tokenizer.json"
VOCABULARY_FILE, SENTENCEPIECE_FILE = "vocab.json", "sentencepiece.model"
HF_FILE = "hf-tokenizer.json"
# The largest vocabulary file that is written or read: it holds several million words.
LARGEST_FILE_BYTES = 1 << 26
LARGEST_VOCABULARY = 1 << 24


class Tokenizer(ABC):
    """A vocabulary, with its way of encoding text. Ids run from 0 to `vocab_size - 1`.

    Attributes:
        unk_id: The id for text that is not in the vocabulary; None if there is none.
        lossless: Whether `decode(encode(text)) == text`, as long as no id is `unk_id`.
        is_text: False if the text consists of ids, so that counts of words and bytes mean nothing.
        eos_ends_lines: Whether `<eos>` ends every line; otherwise it ends documents, and newlines
            have tokens.
        adds_eos: Whether `<eos>` is an id that sglm has added to a given vocabulary.
        marks_words: Whether `begins_word` is right about every token in every text.
    """

    kind: ClassVar[str]
    lossless: ClassVar[bool] = True
    is_text: ClassVar[bool] = True
    eos_ends_lines: bool = False
    adds_eos: bool = False
    vocab_size: int
    eos_id: int
    unk_id: int | None

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Returns the ids of `text`, without an `<eos>` after it.

        Raises:
            InputError: The text has a lone surrogate, which is not a character and has no UTF-8
                form, or something else that the tokenizer cannot encode.
        """

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`. An `<eos>` between documents, which is not text, is left out;
        bytes that are not whole characters, as a model may generate them, become U+FFFD."""

    @abstractmethod
    def token(self, token_id: int) -> str:
        """Returns a readable name of one id."""

    @abstractmethod
    def safe_prefix(self, text: str) -> int:
        """Returns how much of `text` has tokens that do not depend on what comes after `text`.

        Returns:
            The largest known index `i` such that, for every continuation `c`,
            `encode(text + c) == encode(text[:i]) + encode(text[i:] + c)`.
        """

    @abstractmethod
    def offsets(self, text: str, ids: Sequence[int]) -> list[tuple[int, int]]:
        """Returns where the tokens of a text lie in it.

        Args:
            text: Any text.
            ids: The ids of the text, `encode(text)`.

        Returns:
            Start and end of each token in characters, the end exclusive. Together, the tokens cover
            the whole text (except for white space between the words of a word-level vocabulary).
            Bytes inside one character share its offsets.
        """

    @abstractmethod
    def begins_word(self, token_id: int) -> bool:
        """Returns whether this token ends the word before it: its text begins with white space, or
        it is `<eos>`."""

    @cached_property
    def word_beginnings(self) -> list[bool]:
        """The result of `begins_word` for every id."""
        return [self.begins_word(token_id) for token_id in range(self.vocab_size)]

    @property
    def marks_words(self) -> bool:
        return True

    @property
    def line_end(self) -> list[int]:
        """The ids of the end of a line in running text; at least one."""
        return [self.eos_id] if self.eos_ends_lines else self.encode("\n")

    @property
    def byte_ids(self) -> frozenset[int]:
        """The ids of single bytes, which spell characters that have no token of their own."""
        return frozenset()

    @property
    def unwritten_ids(self) -> list[int]:
        """The ids that stand for no text, except `<eos>`: they are never generated."""
        return [i for i in range(self.vocab_size) if self.token(i) == UNK]

    def encode_word(self, word: str, *, in_text: bool) -> list[int]:
        """Returns the ids of one word, at the beginning of a text or after another word
        (`in_text`)."""
        return self.encode(f" {word}" if in_text else word)

    @abstractmethod
    def content(self) -> bytes:
        """Returns all that distinguishes this tokenizer from others of its kind and settings."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the ids of several texts, each encoded as by `encode`."""
        return [self.encode(text) for text in texts]

    def encode_piece(self, piece: Piece) -> list[int]:
        """Returns the ids of a piece in a stream of text: newlines are ordinary characters, and a
        document ends in `<eos>`."""
        ids = self.encode(piece.text)
        if piece.ends_document and not piece.unfinished:
            ids.append(self.eos_id)
        return ids

    @property
    def settings(self) -> str:
        """The settings that the card adds to the content; "" if there are none."""
        return ""

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of kind, settings and content: equal fingerprints mean equal ids for every
        text."""
        head = f"{self.kind} {self.settings}".rstrip()
        return hashlib.sha256(head.encode() + b"\0" + self.content()).hexdigest()

    content_file: ClassVar[str | None] = VOCABULARY_FILE

    @property
    def description(self) -> str:
        """The tokenizer's kind, size and short fingerprint, for messages."""
        return f"{self.kind}, {self.vocab_size} tokens, {self.fingerprint[:12]}"

    def save(self, folder: Path) -> None:
        """Writes `tokenizer.json` and, if the kind has a file for it, the content beside it.

        Raises:
            InputError: The vocabulary is larger than any that could be read again.
        """
        if self.content_file is not None:
            content = self.content()
            if len(content) > LARGEST_FILE_BYTES:
                raise InputError(
                    f"the vocabulary would take {len(content) >> 20} MiB, more than the "
                    f"{LARGEST_FILE_BYTES >> 20} MiB that sglm reads; give a smaller --vocab-size"
                )
            with errors_naming(folder / self.content_file):
                (folder / self.content_file).write_bytes(content)
        facts = {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "fingerprint": self.fingerprint,
            "vocab_size": self.vocab_size,
            "eos_id": self.eos_id,
            "unk_id": self.unk_id,
            **({"settings": self.settings} if self.settings else {}),
        }
        with errors_naming(folder / CARD_FILE):
            (folder / CARD_FILE).write_text(json.dumps(facts, indent=2) + "\n")


def vocabulary_too_large(vocab_size: int, *, largest: int) -> InputError:
    """Returns the error about a vocabulary that is too large for a text."""
    return InputError(
        f"--vocab-size {vocab_size} is more than the training text supports; "
        f"the largest possible is {largest}"
    )


def utf8(text: str) -> bytes:
    """Returns the bytes of `text` in UTF-8.

    Raises:
        InputError: `text` holds a lone surrogate.
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        lone = text[error.start]
        raise InputError(f"{lone!a} (character {error.start}) {LONE_SURROGATE}") from error


def byte_offsets(text: str, lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Returns start and end, in characters, of consecutive parts of a text.

    A part that begins or ends inside a character includes this character.

    Args:
        text: The text, from its beginning.
        lengths: Lengths of the parts in bytes of UTF-8.
    """
    ends = list(accumulate(lengths))
    starts = [0, *ends[:-1]]
    if text.isascii():
        return list(zip(starts, ends, strict=False))
    is_first = np.frombuffer(utf8(text), np.uint8) & 0xC0 != 0x80
    character_of_byte = np.cumsum(is_first) - 1
    firsts = character_of_byte[starts].tolist()
    lasts = (character_of_byte[np.array(ends) - 1] + 1).tolist()
    return list(zip(firsts, lasts, strict=True))
