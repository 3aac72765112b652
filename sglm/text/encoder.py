"""Encodes a stream of pieces and counts its words and bytes, no matter where it was cut."""

from typing import NamedTuple

from sglm.errors import InputError
from sglm.text.lines import Piece
from sglm.text.tokenizer_interface import Tokenizer, utf8

# The longest text that is held back until its tokens are certain: a longer word is cut.
LONGEST_TAIL_CHARACTERS = 1 << 22


class Encoded(NamedTuple):
    """The ids and counts that a piece adds to a stream.

    Attributes:
        text, ids: The text whose tokens no later piece can change, and its ids. It may begin before
            the piece and end before the end of the piece.
        words, bytes: Counts for the piece, bytes in UTF-8; a word that began in the previous piece
            is not counted again.
    """

    text: str
    ids: list[int]
    words: int
    bytes: int


class Encoder:
    """An encoder of the pieces of one stream, in order.

    A very long line or record comes in several pieces. Encoded separately, the text near their ends
    might get other tokens than in the whole line. So the end of such a piece is held back, and
    encoded together with the next piece.

    Args:
        tokenizer: The tokenizer that encodes the pieces.
        name: Name of the stream, for error messages.
    """

    def __init__(self, tokenizer: Tokenizer, *, name: str = "text") -> None:
        self._tokenizer = tokenizer
        self._name = name
        self._encoded_before = 0  # number of lines or records
        self._tail = ""
        self._in_word = False

    def encode(self, piece: Piece) -> Encoded:
        """Encodes the next piece, together with what was held back of the previous one.

        Raises:
            InputError: The tokenizer cannot encode it; the message says which line or record.
        """
        text = self._tail + piece.text
        settled = len(text)
        if piece.unfinished and settled <= LONGEST_TAIL_CHARACTERS:
            settled = self._tokenizer.safe_prefix(text)
        text, self._tail = text[:settled], text[settled:]
        try:
            ids = self._tokenizer.encode_piece(piece._replace(text=text))
        except InputError as error:
            raise self._located(error, piece._replace(text=text)) from error
        ended = not piece.unfinished if piece.ends_document else text.count("\n")
        self._encoded_before += ended
        words = len(piece.text.split())
        if piece.text:
            words -= self._in_word and not piece.text[0].isspace()
            self._in_word = not piece.text[-1].isspace()
        self._in_word = self._in_word and piece.unfinished
        return Encoded(text, ids, words, len(utf8(piece.text)))

    def _located(self, error: InputError, piece: Piece) -> InputError:
        """Returns the error about the first line or record that cannot be encoded, with its
        number."""
        number = self._encoded_before
        if piece.ends_document:
            return InputError(f"{self._name}, record {number + 1}: {error}")
        for line in piece.text.split("\n"):
            number += 1
            try:
                self._tokenizer.encode(line)
            except InputError as first:
                error = first
                break
        return InputError(f"{self._name}, line {number}: {error}")
