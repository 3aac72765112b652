"""A stream of pieces to token ids and counts, the same however it was cut into pieces."""

from typing import NamedTuple

from sglm.text.lines import Piece
from sglm.text.tokenizer_interface import Tokenizer, utf8

# Of a text that a tokenizer may still join to what follows: a longer word is cut.
LONGEST_TAIL_CHARACTERS = 1 << 22


class Encoded(NamedTuple):
    """What a piece adds to a stream.

    text, ids: what is settled by now, which may begin before the piece and end before its end.
    words, bytes: of the piece; a word that goes on from the piece before it is no new one.
    """

    text: str
    ids: list[int]
    words: int
    bytes: int


class Encoder:
    """Encodes the pieces of one stream, in order.

    Where an enormous line or record comes in several pieces, a tokenizer might make other tokens at
    their ends than in the whole: what is not settled at the end of a piece waits for the next one.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tail = ""
        self._in_word = False

    def encode(self, piece: Piece) -> Encoded:
        """What the next piece adds."""
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
