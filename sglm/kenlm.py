"""KenLM's Python interface for models of sglm, so that code written for KenLM can use them.

>>> import sglm.kenlm as kenlm
>>> model = kenlm.Model("runs/book")
>>> model.score("the cat sat", bos=True, eos=True)      # log10

Names and meanings are those of KenLM's module (Heafield 2011). A recurrent model differs from an
n-gram model in three ways. `order` is `ORDER`, longer than any text. With `bos=False` the state is
still that of the beginning of a text, because a recurrent model must start from some state, but the
words are scored as in the middle of a text. If the tokens are pieces, characters or bytes, a word's
probability is the product of those of its tokens, the space before it included, and hardly any word
is out of vocabulary.
"""

import math
import os
import sys
from collections.abc import Iterator
from hashlib import blake2b
from typing import NamedTuple

import numpy as np

from sglm.errors import InputError
from sglm.lm import LanguageModel as _LanguageModel
from sglm.loading import load
from sglm.scoring.branching import Branch
from sglm.scoring.incremental import FOREIGN_STATE_MESSAGE
from sglm.scoring.metrics import perplexity
from sglm.scoring.predictor import identity_of

ORDER = sys.maxsize  # of an n-gram model: its largest n
_BEGIN, _END = "<s>", "</s>"


class LoadMethod:
    """KenLM's constants for the ways to load a model; they have no effect here."""

    LAZY, POPULATE_OR_LAZY, POPULATE_OR_READ, READ, PARALLEL_READ = range(5)


class ARPALoadComplain:
    """KenLM's constants for the warnings about ARPA files; they have no effect here."""

    ALL, EXPENSIVE, NONE = range(3)


class FullScoreReturn(NamedTuple):
    """The score of one word.

    Attributes:
        log_prob: The word's log10 probability.
        ngram_length: The number of words that took part: the word itself and all words before it,
            including `<s>`.
        oov: Whether the word is out of vocabulary.
    """

    log_prob: float
    ngram_length: int
    oov: bool


class Config:
    """KenLM's settings for loading a model, set as attributes as in KenLM; they have no effect
    here."""

    def __init__(self) -> None:
        self.load_method = LoadMethod.POPULATE_OR_READ
        self.show_progress = False
        self.arpa_complain = ARPALoadComplain.ALL


class State:
    """A model's state after some words; empty until a method of `Model` writes to it."""

    def __init__(self) -> None:
        self._branch: Branch | None = None
        self._identity = ""
        self._words = 0
        self._in_text = False
        self._history = b""

    def _write(self, other: "State") -> None:
        vars(self).update(vars(other))

    def __copy__(self) -> "State":
        copy = State()
        copy._write(self)
        return copy

    def __deepcopy__(self, memo: object) -> "State":
        return self.__copy__()  # the objects in a state are never changed, only replaced

    def __eq__(self, other: object) -> bool:
        return isinstance(other, State) and self._history == other._history

    def __hash__(self) -> int:
        return hash(self._history)


def _as_str(data: str | bytes) -> str:
    """Returns a text as a str; like KenLM, it also takes UTF-8 bytes.

    Raises:
        InputError: `data` is neither a str nor bytes in UTF-8.
    """
    if isinstance(data, bytes):
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{data!r}: not UTF-8 text; decode it") from error
    if not isinstance(data, str):
        raise InputError(f"a text must be a str, but this is {type(data).__name__}")
    return data


class UnreadableModel(InputError, OSError):
    """A model that is missing or damaged; an `OSError` too, which is what KenLM raises."""


class Model:
    """A language model of sglm with KenLM's methods. It is pickled as its path.

    Attributes:
        path: The absolute path in bytes, as in KenLM.

    Args:
        path: A run or a model folder.
        config: KenLM's settings; they have no effect.

    Raises:
        UnreadableModel: There is no model at `path`, or it is damaged.
    """

    def __init__(self, path: str | bytes | os.PathLike[str], config: Config | None = None) -> None:
        # Absolute, as in KenLM: a pickle may be loaded in another folder.
        self.path = os.path.abspath(os.fsencode(path))
        try:
            self._lm: _LanguageModel = load(os.fsdecode(path), "cpu")
        except InputError as error:
            raise UnreadableModel(str(error)) from error

    @property
    def language_model(self) -> _LanguageModel:
        """The `LanguageModel` that does the scoring."""
        return self._lm

    @property
    def order(self) -> int:
        """The constant `ORDER`, longer than any text."""
        return ORDER

    def __reduce__(self) -> tuple[type["Model"], tuple[bytes]]:
        return Model, (self.path,)

    def __repr__(self) -> str:
        return f"<Model from {os.path.basename(self.path)!r}>"

    def __contains__(self, word: str | bytes) -> bool:
        """Tells whether `word` is a single word, none of whose tokens is unknown."""
        word = _as_str(word)
        return word in (_BEGIN, _END) or (word.split() == [word] and not self._is_unknown(word))

    def score(self, sentence: str | bytes, bos: bool = True, eos: bool = True) -> float:
        """Returns the log10 probability of a sentence.

        Args:
            sentence: Words separated by white space, as a str or in UTF-8.
            bos: Whether the sentence is scored from its beginning; otherwise as in mid-text.
            eos: Whether the end of the sentence is scored too.
        """
        return math.fsum(each.log_prob for each in self.full_scores(sentence, bos=bos, eos=eos))

    def perplexity(self, sentence: str | bytes) -> float:
        """Returns 10^(−log10 probability / words), where the end counts as a word, as in KenLM."""
        words = len(_as_str(sentence).split()) + 1
        return perplexity(-self.score(sentence) * math.log(10), words)

    def full_scores(
        self, sentence: str | bytes, bos: bool = True, eos: bool = True
    ) -> Iterator[FullScoreReturn]:
        """Yields the `FullScoreReturn` of each word and, with `eos`, of the end (see `score`)."""
        state, after = State(), State()
        (self.BeginSentenceWrite if bos else self.NullContextWrite)(state)
        for word in [*_as_str(sentence).split(), *[_END] * eos]:
            yield self.BaseFullScore(state, word, after)
            state, after = after, state

    def BeginSentenceWrite(self, state: State) -> None:  # noqa: N802
        """Sets `state` to the beginning of a sentence."""
        state._write(State())
        state._words = 1  # <s>
        predictor = self._lm.predictor
        state._branch = Branch(predictor, state=predictor.start(1), token_id=self._lm.bos_id)
        state._history = b"begin"
        state._identity = identity_of(predictor)

    def NullContextWrite(self, state: State) -> None:  # noqa: N802
        """Sets `state` to the middle of a text whose earlier words are unknown."""
        self.BeginSentenceWrite(state)
        state._words = 0
        state._in_text = True
        state._history = b"null"

    def BaseScore(  # noqa: N802
        self, in_state: State, word: str | bytes, out_state: State
    ) -> float:
        """Returns the log10 probability of a word after `in_state`; `out_state` is set as in
        `BaseFullScore`."""
        return self.BaseFullScore(in_state, word, out_state).log_prob

    def BaseFullScore(  # noqa: N802
        self, in_state: State, word: str | bytes, out_state: State
    ) -> FullScoreReturn:
        """Returns the `FullScoreReturn` of a word.

        Args:
            in_state: The state before the word; it is not changed.
            word: A single word, or `</s>` for the end.
            out_state: Is set to the state after the word.

        Raises:
            InputError: `in_state` is empty or was written by another model; `word` is not a single
                word, or has no token.
        """
        word = _as_str(word)
        if in_state._branch is None:
            raise InputError("the state is empty; call BeginSentenceWrite(state) first")
        if in_state._identity != identity_of(self._lm.predictor):
            raise InputError(f"{FOREIGN_STATE_MESSAGE} BeginSentenceWrite(state) of this one")
        ids = self._ids(word, in_text=in_state._in_text)
        logprob, branch = in_state._branch.follow(ids)
        words = in_state._words + 1
        after = State()
        after._branch, after._identity = branch, in_state._identity
        after._words, after._in_text = words, True
        read = np.array(ids, dtype=np.int64).tobytes()
        after._history = blake2b(in_state._history + read, digest_size=16).digest()
        out_state._write(after)
        oov = word != _END and self._is_unknown(word)
        return FullScoreReturn(logprob / math.log(10), words, oov)

    def _ids(self, word: str, *, in_text: bool) -> list[int]:
        tokenizer = self._lm.tokenizer
        if word == _END:
            return [self._lm.bos_id]
        if len(word.split()) != 1:
            raise InputError(f"{word!r} is not one word; for a sentence, use score or full_scores")
        if ids := tokenizer.encode_word(word, in_text=in_text):
            return ids
        raise InputError(f"{word!r} has no token: the tokenizer's normalisation removes all of it")

    def _is_unknown(self, word: str) -> bool:
        unk_id = self._lm.tokenizer.unk_id
        try:
            ids = self._lm.tokenizer.encode(word)
        except InputError:  # the word cannot be encoded, and there is no unknown token for it
            return True
        return unk_id in ids or not ids


LanguageModel = Model  # KenLM's older name
