"""What every tokenizer offers, and what it writes into a folder."""

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
from sglm.storage.durable import named
from sglm.text.lines import LONE_SURROGATE, Piece

EOS, UNK = "<eos>", "<unk>"
FORMAT_VERSION = 1
# Files of a tokenizer's folder: its description, and its vocabulary, if its kind has one.
CARD_FILE = "tokenizer.json"
VOCABULARY_FILE, SENTENCEPIECE_FILE = "vocab.json", "sentencepiece.model"
HF_FILE = "hf-tokenizer.json"
# The largest vocabulary on disk: several million words. No larger file is written or read.
LARGEST_FILE_BYTES = 1 << 26
LARGEST_VOCABULARY = 1 << 24


class Tokenizer(ABC):
    """One vocabulary. Ids run from 0 to `vocab_size - 1`.

    unk_id: the id for text that is not in the vocabulary; None if there is none.
    lossless: `decode(encode(text)) == text`, as long as no id is `unk_id`.
    is_text: False where the text is ids, of which the number of words and bytes means nothing.
    eos_ends_lines: `<eos>` ends every line; otherwise documents, and newlines have tokens.
    adds_eos: of a given vocabulary: `<eos>` is an id that sglm has added to it.
    marks_words: `begins_word` is right about every token in every text.
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
        """The ids of `text` as it is, no `<eos>` added.

        Raises:
            InputError: a lone surrogate, which is no character and has no UTF-8 form.
        """

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`. An `<eos>` between documents, which is no text, is left out; bytes
        that are not whole characters, as a model may generate them, become U+FFFD."""

    @abstractmethod
    def token(self, token_id: int) -> str:
        """A readable name of one id."""

    @abstractmethod
    def safe_prefix(self, text: str) -> int:
        """How much of `text` has tokens that do not depend on what comes after `text`.

        Returns:
            An index `i`, as large as can be, such that for every continuation `c`
            `encode(text + c) == encode(text[:i]) + encode(text[i:] + c)`.
        """

    @abstractmethod
    def offsets(self, text: str, ids: Sequence[int]) -> list[tuple[int, int]]:
        """Where in a text its tokens lie.

        Args:
            text: any.
            ids: `encode(text)`.

        Returns:
            Start and end of each in characters, the end exclusive. Together they are all of the
            text (but for the white space between the words of a word-level vocabulary). Bytes
            inside one character share its offsets.
        """

    @abstractmethod
    def begins_word(self, token_id: int) -> bool:
        """Whether this token ends the word before it: its text begins with white space, or it is
        `<eos>`."""

    @cached_property
    def word_beginnings(self) -> list[bool]:
        """`begins_word` of every id."""
        return [self.begins_word(token_id) for token_id in range(self.vocab_size)]

    @property
    def marks_words(self) -> bool:
        return True

    @property
    def line_end(self) -> list[int]:
        """The ids of the end of a line in running text; one at least."""
        return [self.eos_id] if self.eos_ends_lines else self.encode("\n")

    @property
    def byte_ids(self) -> frozenset[int]:
        """Ids of single bytes, which spell characters that have no token of their own."""
        return frozenset()

    @property
    def unwritten_ids(self) -> list[int]:
        """Ids that stand for no text, `<eos>` aside: they are never generated."""
        return [i for i in range(self.vocab_size) if self.token(i) == UNK]

    def encode_word(self, word: str, *, in_text: bool) -> list[int]:
        """The ids of one word, at the beginning of a text or after another word."""
        return self.encode(f" {word}" if in_text else word)

    @abstractmethod
    def content(self) -> bytes:
        """All that distinguishes this tokenizer from others of its kind."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each."""
        return [self.encode(text) for text in texts]

    def encode_piece(self, piece: Piece) -> list[int]:
        """The ids of a piece in a stream of text: newlines are ordinary, a document ends in
        `<eos>`."""
        ids = self.encode(piece.text)
        if piece.ends_document and not piece.unfinished:
            ids.append(self.eos_id)
        return ids

    @property
    def settings(self) -> str:
        """What the card adds to the content; "" where the content says everything."""
        return ""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of kind, settings and content: equal fingerprints mean equal ids for every
        text."""
        head = f"{self.kind} {self.settings}".rstrip()
        return hashlib.sha256(head.encode() + b"\0" + self.content()).hexdigest()

    content_file: ClassVar[str | None] = VOCABULARY_FILE

    @property
    def description(self) -> str:
        """Which it is, for messages."""
        return f"{self.kind}, {self.vocab_size} tokens, {self.fingerprint[:12]}"

    def save(self, folder: Path) -> None:
        """Writes `tokenizer.json` and, where there is any, the content beside it.

        Raises:
            InputError: the vocabulary is larger than any that could be read again.
        """
        if self.content_file is not None:
            content = self.content()
            if len(content) > LARGEST_FILE_BYTES:
                raise InputError(
                    f"the vocabulary would take {len(content) >> 20} MiB, more than the "
                    f"{LARGEST_FILE_BYTES >> 20} MiB that sglm reads; give a smaller --vocab-size"
                )
            with named(folder / self.content_file):
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
        with named(folder / CARD_FILE):
            (folder / CARD_FILE).write_text(json.dumps(facts, indent=2) + "\n")


def vocabulary_too_large(vocab_size: int, *, largest: int) -> InputError:
    """The error about a vocabulary that a text is too short for."""
    return InputError(
        f"--vocab-size {vocab_size} is more than the training text supports; "
        f"the largest possible is {largest}"
    )


def utf8(text: str) -> bytes:
    """The bytes of `text`.

    Raises:
        InputError: `text` holds a lone surrogate.
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        lone = text[error.start]
        raise InputError(f"{lone!a} (character {error.start}) {LONE_SURROGATE}") from error


def byte_offsets(text: str, lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Start and end, in characters, of parts of a text that are so many bytes of UTF-8 long.

    A part that begins or ends inside a character counts that character.
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
