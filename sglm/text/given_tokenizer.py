"""The base class of given vocabularies: tokenizers from elsewhere, applied by their own library.

The library encodes as a whole what sglm reads as a whole: a line of running text, a record, a text
to score. It is unknown how much of a text determines its first tokens: a model may choose among the
segmentations of a whole sentence, and a normalisation may look ahead. So no prefix of a text is
safe.

If the vocabulary can write newlines, they are tokens and `<eos>` ends documents. If it cannot (most
SentencePiece models, WordPiece), `<eos>` ends each line, as at word level.
"""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import groupby

from sglm.errors import InputError
from sglm.text.lines import Piece
from sglm.text.tokenizer_interface import EOS, LARGEST_VOCABULARY, Tokenizer, utf8

_PROBE_TEXT = "The cat, don't sat (well) at 3.5 x-y as a b c the of"


class GivenTokenizer(Tokenizer):
    """The part that all tokenizers of other libraries share; a subclass sets `_names`."""

    lossless = False
    _names: list[str]
    """The names of all ids, first those of the library."""

    @abstractmethod
    def _encode(self, texts: list[str]) -> list[list[int]]:
        """Returns the library's ids for several texts."""

    @abstractmethod
    def _decode(self, ids: list[int]) -> str:
        """Returns the library's text for ids that are all its own."""

    @abstractmethod
    def _spellings(self) -> Iterator[Sequence[bytes]]:
        """Yields possible spellings: the text of every id, with the space before a word."""

    @abstractmethod
    def _named_eos(self) -> int | None:
        """Returns the library's id for the end of a text; None if it has none."""

    @property
    @abstractmethod
    def special_ids(self) -> Iterable[int]:
        """The ids of the library that stand for no text."""

    def _finish(self, eos_id: int | None) -> None:
        """Completes the construction, once `_names` and `unk_id` are set.

        Args:
            eos_id: The id of `<eos>`. None: the library's id for the end of a text, or else an
                added id.

        Raises:
            InputError: `eos_id` is not in the vocabulary.
            ValueError: The vocabulary is empty or far too large.
        """
        own = len(self._names)
        if not 0 < own < LARGEST_VOCABULARY:
            raise ValueError(f"a vocabulary of {own} tokens")
        named = self._named_eos() if eos_id is None else eos_id
        self.eos_id = own if named is None else named
        if not 0 <= self.eos_id <= own:
            raise InputError(
                f"--eos-id {eos_id}: the tokenizer has the ids 0 to {own - 1}; leave it out to use"
                " the tokenizer's own end of text, or to add one"
            )
        self.adds_eos = self.eos_id == own
        self._names += [EOS] * self.adds_eos
        self.vocab_size = len(self._names)
        self.eos_ends_lines = not self._writes_newlines()

    def _writes_newlines(self) -> bool:
        """Returns whether a newline has a token of its own, neither that of the space nor the
        unknown one."""
        try:
            newline, space, nothing = self._encode(["a\nb", "a b", "ab"])
        except InputError:
            return False
        unknown = [
            ids.count(-1 if self.unk_id is None else self.unk_id) for ids in (newline, space)
        ]
        return newline not in (space, nothing) and unknown[0] <= unknown[1]

    @property
    def eos_name(self) -> str:
        """The library's name for the end of a text; `<eos>` for an id that was added."""
        return self._names[self.eos_id]

    @property
    def settings(self) -> str:
        return f"eos {self.eos_id}"

    def encode(self, text: str) -> list[int]:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        for text in texts:
            if not text.isascii():
                utf8(text)
        # Some libraries return a token for an empty text.
        encoded = iter(self._encode([text for text in texts if text]))
        return [next(encoded) if text else [] for text in texts]

    def encode_piece(self, piece: Piece) -> list[int]:
        """Returns the ids of a piece: its lines are encoded one by one, a record as a whole."""
        if piece.ends_document:
            return super().encode_piece(piece)
        *whole, rest = piece.text.split("\n")
        if not self.eos_ends_lines:
            lines = self.encode_batch([*(f"{line}\n" for line in whole), rest])
            return [token_id for line in lines for token_id in line]
        ids = []
        for encoded in self.encode_batch([line.removesuffix("\r") for line in whole]):
            ids += encoded
            ids.append(self.eos_id)
        if rest:
            ids += self.encode(rest)
        if not piece.unfinished and not piece.text.endswith("\n"):
            ids.append(self.eos_id)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        runs = [
            "\n" * len(run) * self.eos_ends_lines if is_eos else self._decode(run)
            for is_eos, same in groupby(ids, self.eos_id.__eq__)
            if (run := list(same))
        ]
        return "".join(runs)

    def token(self, token_id: int) -> str:
        return EOS if token_id == self.eos_id else self._names[token_id]

    @property
    def unwritten_ids(self) -> list[int]:
        return sorted({*self.special_ids, *super().unwritten_ids} - {self.eos_id})

    @property
    def line_end(self) -> list[int]:
        return super().line_end or [self.eos_id]

    def safe_prefix(self, text: str) -> int:
        return 0

    def encode_word(self, word: str, *, in_text: bool) -> list[int]:
        """Returns the ids of a word. In a text: its ids as the second of two equal words, if the
        first one keeps the ids that it has alone; otherwise its ids after a space."""
        if not in_text:
            return self.encode(word)
        before, both = self.encode_batch([word, f"{word} {word}"])
        after = both[len(before) :]
        return after if both == before + after else self.encode(f" {word}")

    def begins_word(self, token_id: int) -> bool:
        return self.word_beginnings[token_id]

    @property
    def marks_words(self) -> bool:
        return self._word_marks is not None

    @cached_property
    def word_beginnings(self) -> list[bool]:
        return self._word_marks or [True] * self.vocab_size

    @cached_property
    def _word_marks(self) -> list[bool] | None:
        """For every id, whether it begins a word, determined on a text with everything that tends
        to be split off words. None if the spelling does not tell: the apostrophe of WordPiece may
        begin a word or continue one."""
        try:
            ids = self.encode(_PROBE_TEXT)
        except InputError:
            return None
        expected = list(
            zip(ids, _begins_word_flags(_PROBE_TEXT, self.offsets(_PROBE_TEXT, ids)), strict=True)
        )[1:]
        if sum(begins for _, begins in expected) != len(_PROBE_TEXT.split()) - 1:
            return None
        for marks in self._possible_marks():
            if all(marks[token_id] == begins for token_id, begins in expected):
                return marks
        return None

    def _possible_marks(self) -> Iterator[list[bool]]:
        for spelling in self._spellings():
            if any(len((text + b"x").split()) > 1 for text in spelling):
                continue  # a word ends inside some token
            marks = [text[:1].isspace() for text in spelling]
            marks += [False] * (self.vocab_size - len(marks))
            marks[self.eos_id] = True
            yield marks
            if self.unk_id is not None:
                marks[self.unk_id] = True
                yield marks
        yield [True] * self.vocab_size


def _begins_word_flags(text: str, offsets: Sequence[tuple[int, int]]) -> list[bool]:
    """Returns for each token whether a word begins with it: it starts with white space, or follows
    white space that no token covers."""
    begins, end = [], 0
    for start, stop in offsets:
        begins.append(start < stop and text[min(end, start)].isspace())
        end = max(end, stop)
    return begins
