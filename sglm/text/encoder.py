"""Encodes a stream of pieces and counts; the result does not depend on where it was cut."""

from typing import NamedTuple

from sglm.text.lines import Piece
from sglm.text.tokenizer_interface import Tokenizer, utf8

# The longest text that is kept back until its tokens are certain: a longer word is cut.
LONGEST_TAIL_CHARACTERS = 1 << 22


class Encoded(NamedTuple):
    """What a piece adds to a stream.

    text, ids: the text whose tokens no later piece can change, and its ids. It may begin before the
        piece and end before the end of the piece.
    words, bytes: counts for the piece; a word that began in the piece before is not counted again.
    """

    text: str
    ids: list[int]
    words: int
    bytes: int


class Encoder:
    """Encodes the pieces of one stream, in order.

    A very long line or record comes in several pieces. Encoded separately, the text near their ends
    might get other tokens than in the whole line. So the end of a piece is kept back, and encoded
    together with the next piece.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tail = ""
        self._in_word = False

    def encode(self, piece: Piece) -> Encoded:
        """Encodes the next piece, together with what was kept back of the previous one."""
        text = self._tail + piece.text
        settled = len(text)
        if piece.unfinished and settled <= LONGEST_TAIL_CHARACTERS:
            settled = self._tokenizer.safe_prefix(text)
        text, self._tail = text[:settled], text[settled:]
        ids = self._tokenizer.encode_piece(piece._replace(text=text))
        words = len(piece.text.split())
        if piece.text:
            words -= self._in_word and not piece.text[0].isspace()
            self._in_word = not piece.text[-1].isspace()
        self._in_word = self._in_word and piece.unfinished
        return Encoded(text, ids, words, len(utf8(piece.text)))
