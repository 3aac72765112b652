"""Words, characters and bytes: vocabularies that need no learning beyond a list."""

import json
import re
import warnings
from collections.abc import Iterable, Sequence

from sglm.errors import InputError, SglmWarning, short_repr
from sglm.text.lines import Piece
from sglm.text.tokenizer_interface import EOS, UNK, Tokenizer, byte_offsets, utf8

# Splits text as `encode` does.
_WORDS_AND_LINE_ENDS = re.compile(r"\n|\S+")


class ByteTokenizer(Tokenizer):
    """The 256 bytes of UTF-8, then `<eos>`."""

    kind = "byte"
    content_file = None
    vocab_size, eos_id, unk_id = 257, 256, None

    def encode(self, text: str) -> list[int]:
        return list(utf8(text))

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(i for i in ids if i != self.eos_id).decode("utf-8", errors="replace")

    def token(self, token_id: int) -> str:
        if token_id == self.eos_id:
            return EOS
        return chr(token_id) if 32 < token_id < 127 else f"<0x{token_id:02X}>"

    def safe_prefix(self, text: str) -> int:
        return len(text)

    def offsets(self, text: str, ids: Sequence[int]) -> list[tuple[int, int]]:
        return byte_offsets(text, [1] * len(ids))

    def begins_word(self, token_id: int) -> bool:
        """Only ASCII white space counts: other white space has several bytes, and its first byte
        alone does not identify it."""
        return token_id == self.eos_id or (chr(token_id).isspace() and token_id < 128)

    def content(self) -> bytes:
        return b""


class _Ids(dict[str, int]):
    """The id of every token."""


class _WithUnknown(_Ids):
    """A vocabulary that maps any other key to id 1, the id of `<unk>`."""

    def __missing__(self, key: str) -> int:
        return 1


class _ListTokenizer(Tokenizer):
    """`<eos>`, `<unk>`, then the entries of a list, kept on disk as JSON."""

    eos_id, unk_id = 0, 1

    def __init__(self, entries: Sequence[str]) -> None:
        self._entries = list(entries)
        self._names = [EOS, UNK, *entries]
        self.vocab_size = len(self._names)
        self._ids: _Ids = _WithUnknown((name, i) for i, name in enumerate(self._entries, start=2))

    def token(self, token_id: int) -> str:
        return self._names[token_id]

    def content(self) -> bytes:
        return json.dumps(self._entries, ensure_ascii=False, separators=(",", ":")).encode()


class CharTokenizer(_ListTokenizer):
    """Characters (code points). All but the given ones are `<unk>`."""

    kind = "char"

    def encode(self, text: str) -> list[int]:
        return list(map(self._ids.__getitem__, text))

    def decode(self, ids: Iterable[int]) -> str:
        names = ["", "\ufffd", *self._entries]
        return "".join([names[i] for i in ids])

    def safe_prefix(self, text: str) -> int:
        return len(text)

    def offsets(self, text: str, ids: Sequence[int]) -> list[tuple[int, int]]:
        return [(place, place + 1) for place in range(len(ids))]

    def begins_word(self, token_id: int) -> bool:
        return token_id == self.eos_id or self.token(token_id).isspace()


class _LinesOfWords(Tokenizer):
    """What stands between white space, each line closed by one `<eos>`."""

    lossless = False
    eos_ends_lines = True
    _ids: _Ids

    def encode(self, text: str) -> list[int]:
        line_end = f" {self.token(self.eos_id)} "
        return list(map(self._ids.__getitem__, text.replace("\n", line_end).split()))

    def encode_piece(self, piece: Piece) -> list[int]:
        """Ends every line in exactly one `<eos>`, also an empty line or one without a newline."""
        ids = self.encode(piece.text)
        if not piece.text.endswith("\n") and not piece.unfinished:
            ids.append(self.eos_id)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        words = " ".join(["\n" if i == self.eos_id else self.token(i) for i in ids])
        return words.replace(" \n", "\n").replace("\n ", "\n")

    def safe_prefix(self, text: str) -> int:
        if not text or text[-1].isspace():
            return len(text)
        return len(text) - len(text.rsplit(None, 1)[-1])

    def offsets(self, text: str, ids: Sequence[int]) -> list[tuple[int, int]]:
        return [match.span() for match in _WORDS_AND_LINE_ENDS.finditer(text)]

    def begins_word(self, token_id: int) -> bool:
        return True


class WordTokenizer(_LinesOfWords, _ListTokenizer):
    """Whitespace-separated words, each line closed by one `<eos>`: the convention of the Penn
    Treebank and WikiText benchmarks (Mikolov et al. 2010, Merity et al. 2017).

    A literal `<unk>` is the unknown word, a literal `<eos>` the end of a line, as those corpora
    have them.
    """

    kind = "word"

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__(words)
        self._ids[EOS] = self.eos_id


class _IdOfNumeral(_Ids):
    """Numeral → id, checked when it is looked up for the first time."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self._vocab_size = vocab_size

    def __missing__(self, numeral: str) -> int:
        if not re.fullmatch(r"-?[0-9]+", numeral):
            raise InputError(f"{short_repr(numeral)} is not an integer; a text of ids is 5 7 9")
        if numeral.startswith("-"):
            raise InputError(f"the id {numeral[:20]} is negative; ids begin at 0")
        digits = numeral.lstrip("0") or "0"
        if len(digits) > 18 or int(digits) >= self._vocab_size:
            raise InputError(
                f"the id {digits[:20]} is not in the vocabulary, 0 to {self._vocab_size - 1};"
                " larger ids need a larger --vocab-size in sglm prep"
            )
        if len(numeral) <= 8:  # numerals may have any number of leading zeros
            self[numeral] = int(digits)
        return int(digits)


class IdsTokenizer(_LinesOfWords):
    """Ids that somebody else has made: integers between white space, a sequence a line.

    The id of `<eos>` may stand in a text, as the end of a line too.
    """

    kind = "ids"
    content_file = None
    is_text = False
    unk_id = None

    def __init__(self, vocab_size: int, *, eos_id: int | None) -> None:
        """
        Args:
            vocab_size: the ids of a text are below it.
            eos_id: None adds an id for it, which stands in no text.
        """
        self._ids = _IdOfNumeral(vocab_size)
        self.adds_eos = eos_id is None
        self.eos_id = vocab_size if eos_id is None else eos_id
        self.vocab_size = vocab_size + self.adds_eos
        self._ended = re.compile(rf"(?<!\S)0*{self.eos_id}[^\S\n]*(?:\n|\Z)")
        self._has_warned = False

    def encode(self, text: str) -> list[int]:
        lines = [list(map(self._ids.__getitem__, line.split())) for line in text.split("\n")]
        ids = lines[0]
        for line in lines[1:]:
            ids.append(self.eos_id)
            ids += line
        return ids

    def encode_piece(self, piece: Piece) -> list[int]:
        ids = super().encode_piece(piece)
        if not self._has_warned and self._ended.search(piece.text):
            self._has_warned = True
            warnings.warn(
                f"lines of ids end in {self.eos_id}, which is added to each line: it stands there"
                " twice; leave it out of the text",
                SglmWarning,
                stacklevel=2,
            )
        return ids

    def token(self, token_id: int) -> str:
        return str(token_id)

    @property
    def settings(self) -> str:
        return "adds eos" if self.adds_eos else ""

    def content(self) -> bytes:
        return f"{self.vocab_size} {self.eos_id}".encode()
