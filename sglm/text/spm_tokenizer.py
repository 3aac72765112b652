"""Tokenizers from SentencePiece models made elsewhere, applied by the package sentencepiece."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import sentencepiece

from sglm.text.given_tokenizer import GivenTokenizer
from sglm.text.sentencepiece_model import METASPACE, check_given_model, message_fields
from sglm.text.tokenizer_interface import SENTENCEPIECE_FILE, utf8

_PIECE, _BEGIN, _END = 2, 4, 5  # fields of SentencePieceText and of its pieces


class SpmTokenizer(GivenTokenizer):
    """A tokenizer of any SentencePiece type (byte pair encoding, unigram, words, characters), with
    the model's own normalisation."""

    kind = "spm"
    content_file = SENTENCEPIECE_FILE

    def __init__(self, content: bytes, *, eos_id: int | None = None) -> None:
        """Loads the tokenizer from the content of a `.model` file.

        Args:
            content: The content of the file.
            eos_id: The id of `<eos>`. None: the model's own, or else an added id.

        Raises:
            InputError: `eos_id` is impossible.
            ValueError, RuntimeError: The file is not a `.model` file, or is damaged.
        """
        check_given_model(content)
        self._content = content
        # One thread: on more, short texts take longer.
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=content, num_threads=1)
        self._names = [
            self._processor.id_to_piece(token_id)
            for token_id in range(self._processor.vocab_size())
        ]
        self.unk_id = self._processor.unk_id()
        self._own_eos_id = self._processor.eos_id()
        self._finish(eos_id)

    def _named_eos(self) -> int | None:
        return self._own_eos_id if self._own_eos_id >= 0 else None

    def _encode(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self._processor.encode(texts)
        return ids

    def _decode(self, ids: list[int]) -> str:
        text: str = self._processor.decode(ids)
        return text

    @property
    def special_ids(self) -> Iterable[int]:
        processor = self._processor
        return [
            token_id
            for token_id in range(processor.vocab_size())
            if processor.is_control(token_id)
            or processor.is_unknown(token_id)
            or processor.is_unused(token_id)
        ]

    @cached_property
    def byte_ids(self) -> frozenset[int]:
        every = range(self._processor.vocab_size())
        return frozenset(token_id for token_id in every if self._processor.is_byte(token_id))

    def offsets(self, text: str, ids: Sequence[int]) -> list[tuple[int, int]]:
        encoded = self._processor.encode(text, out_type="serialized_proto")
        spans = []
        for field, message in message_fields(encoded):
            if field == _PIECE and isinstance(message, bytes):
                places = dict(message_fields(message))
                spans.append((places.get(_BEGIN, 0), places.get(_END, 0)))
        bytes_N2 = np.array(spans, dtype=np.int64).reshape(-1, 2)
        # All pieces of one character (its bytes; "..." from "…") share its offsets; SentencePiece
        # sets the end of the character only for the last of them.
        for place in range(len(spans) - 2, -1, -1):
            start, end = bytes_N2[place]
            is_added_space = self._names[ids[place]] == METASPACE
            if start == end == bytes_N2[place + 1, 0] and not is_added_space:
                bytes_N2[place, 1] = bytes_N2[place + 1, 1]
        return [(start, end) for start, end in _in_characters(text, bytes_N2).tolist()]

    def _spellings(self) -> Iterator[Sequence[bytes]]:
        yield [name.replace(METASPACE, " ").encode() for name in self._names]

    def content(self) -> bytes:
        return self._content


def _in_characters(text: str, bytes_N2: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Converts offsets in a text from bytes to characters."""
    if text.isascii():
        return bytes_N2
    is_first = np.frombuffer(utf8(text), np.uint8) & 0xC0 != 0x80
    return np.concatenate([[0], np.cumsum(is_first)])[bytes_N2]
