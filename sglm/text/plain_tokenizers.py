"""Tokenizers for words, characters, bytes and ids, which need at most a list of entries."""

import json
import re
import warnings
from collections.abc import Iterable, Sequence

from sglm.errors import InputError, SglmWarning, short_repr
from sglm.text.lines import Piece
from sglm.text.tokenizer_interface import EOS, UNK, Tokenizer, byte_offsets, utf8

# Matches the parts into which `encode` splits a text.
_WORDS_AND_LINE_ENDS = re.compile(r"\n|\S+")


class ByteTokenizer(Tokenizer):
    """A tokenizer whose tokens are the 256 bytes of UTF-8, then `<eos>`."""

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
        """Returns whether the token ends the word before it. Only ASCII white space counts: other
        white space has several bytes, and its first byte alone does not identify it."""
        return token_id == self.eos_id or (chr(token_id).isspace() and token_id < 128)

    def content(self) -> bytes:
        return b""


class _Ids(dict[str, int]):
    """The ids of all tokens, by name."""


class _WithUnknown(_Ids):
    """The ids of all tokens, by name; any other key has the id 1, that of `<unk>`."""

    def __missing__(self, key: str) -> int:
        return 1


class _ListTokenizer(Tokenizer):
    """A tokenizer whose tokens are `<eos>`, `<unk>` and the entries of a list, stored as JSON."""

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
    """A tokenizer whose tokens are characters (code points). All but the given ones are `<unk>`."""

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
    """A tokenizer that splits text at white space and closes each line with one `<eos>`."""

    lossless = False
    eos_ends_lines = True
    _ids: _Ids

    def encode(self, text: str) -> list[int]:
        line_end = f" {self.token(self.eos_id)} "
        return list(map(self._ids.__getitem__, text.replace("\n", line_end).split()))

    def encode_piece(self, piece: Piece) -> list[int]:
        """Returns the ids of a piece, with exactly one `<eos>` after every line, even after an
        empty one or one without a newline."""
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
    """A tokenizer for words separated by white space, each line closed by one `<eos>`: the
    convention of the Penn Treebank and WikiText benchmarks (Mikolov et al. 2010, Merity et al.
    2017).

    A literal `<unk>` is the unknown word and a literal `<eos>` the end of a line, as in those
    corpora.
    """

    kind = "word"

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__(words)
        self._ids[EOS] = self.eos_id


class _IdOfNumeral(_Ids):
    """The ids by their numerals, each checked when it is first looked up."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self._vocab_size = vocab_size

    def __missing__(self, numeral: str) -> int:
        if not re.fullmatch(r"-?[0-9]+", numeral):
            raise InputError(
                f"{short_repr(numeral)} is not an integer; a text of ids looks like 5 7 9"
            )
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
    """A tokenizer for text that consists of ids made elsewhere: integers separated by white space,
    one sequence per line.

    The id of `<eos>` may occur in a text, also as the end of a line.
    """

    kind = "ids"
    content_file = None
    is_text = False
    unk_id = None

    def __init__(self, vocab_size: int, *, eos_id: int | None) -> None:
        """Sets the range of ids.

        Args:
            vocab_size: Number of ids; those in a text are below it.
            eos_id: The id of `<eos>`. None: an added id, which does not occur in a text.
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
                f"lines of ids end in {self.eos_id}, which sglm adds to each line, so that it"
                " occurs twice; leave it out of the text",
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
