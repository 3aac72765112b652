"""KenLM's Python interface for a model of sglm, so that code written for KenLM runs on.

>>> import sglm.kenlm as kenlm
>>> model = kenlm.Model("runs/book")
>>> model.score("the cat sat", bos=True, eos=True)      # log10

Names and meanings are those of KenLM's module (Heafield 2011). What differs, because this is not an
n-gram model: `order` is `ORDER`, longer than any text; `bos=False` still starts as a text begins,
because a recurrent model must start from some state, but scores the words as in the middle of one;
and where the vocabulary is of pieces, characters or bytes, a word's probability is the product of
its tokens', the space before it included, and hardly any word is out of vocabulary.
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
from sglm.scoring.incremental import ANOTHER_MODELS
from sglm.scoring.metrics import perplexity
from sglm.scoring.predictor import identity_of

ORDER = sys.maxsize  # an n-gram model's longest n
_BEGIN, _END = "<s>", "</s>"


class LoadMethod:
    """KenLM's constants for ways to load a model; they have no effect here."""

    LAZY, POPULATE_OR_LAZY, POPULATE_OR_READ, READ, PARALLEL_READ = range(5)


class ARPALoadComplain:
    """KenLM's constants for warnings about ARPA files; they have no effect here."""

    ALL, EXPENSIVE, NONE = range(3)


class FullScoreReturn(NamedTuple):
    """A word's log10 probability; how many words it was predicted from, `<s>` and itself included;
    and whether it is out of vocabulary."""

    log_prob: float
    ngram_length: int
    oov: bool


class Config:
    """Takes the arguments of KenLM's `Config`; they have no effect here."""

    def __init__(self) -> None:
        self.load_method = LoadMethod.POPULATE_OR_READ
        self.show_progress = False
        self.arpa_complain = ARPALoadComplain.ALL


class State:
    """A model's state after some words. Empty until `BeginSentenceWrite` or the like writes it."""

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
        return self.__copy__()  # no state is ever changed, only replaced

    def __eq__(self, other: object) -> bool:
        return isinstance(other, State) and self._history == other._history

    def __hash__(self) -> int:
        return hash(self._history)


def _as_str(data: str | bytes) -> str:
    """A text, which KenLM takes in UTF-8 as well.

    Raises:
        InputError: something else.
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
    """No model there, or a damaged one."""


class Model:
    """A language model of sglm behind KenLM's methods. Picklable, by its path.

    Attributes:
        path: in bytes, as KenLM has it.

    Args:
        path: a run or a model folder.
        config: as in KenLM; has no effect.

    Raises:
        UnreadableModel: no model there; an OSError, as KenLM's.
    """

    def __init__(self, path: str | bytes | os.PathLike[str], config: Config | None = None) -> None:
        # Absolute, as KenLM's: a pickle may be loaded in another folder.
        self.path = os.path.abspath(os.fsencode(path))
        try:
            self._lm: _LanguageModel = load(os.fsdecode(path), "cpu")
        except InputError as error:
            raise UnreadableModel(str(error)) from error

    @property
    def language_model(self) -> _LanguageModel:
        """The model behind KenLM's methods."""
        return self._lm

    @property
    def order(self) -> int:
        """`ORDER`."""
        return ORDER

    def __reduce__(self) -> tuple[type["Model"], tuple[bytes]]:
        return Model, (self.path,)

    def __repr__(self) -> str:
        return f"<Model from {os.path.basename(self.path)!r}>"

    def __contains__(self, word: str | bytes) -> bool:
        """Whether a word is in the vocabulary: a single one, and none of its tokens is unknown."""
        word = _as_str(word)
        return word in (_BEGIN, _END) or (word.split() == [word] and not self._is_unknown(word))

    def score(self, sentence: str | bytes, bos: bool = True, eos: bool = True) -> float:
        """The log10 probability of a sentence; with `eos`, its end is included."""
        return math.fsum(each.log_prob for each in self.full_scores(sentence, bos=bos, eos=eos))

    def perplexity(self, sentence: str | bytes) -> float:
        """10^(-log10 probability / words), the end counted as a word, as KenLM does."""
        words = len(_as_str(sentence).split()) + 1
        return perplexity(-self.score(sentence) * math.log(10), words)

    def full_scores(
        self, sentence: str | bytes, bos: bool = True, eos: bool = True
    ) -> Iterator[FullScoreReturn]:
        """`FullScoreReturn` of each word, and of the end."""
        state, after = State(), State()
        (self.BeginSentenceWrite if bos else self.NullContextWrite)(state)
        for word in [*_as_str(sentence).split(), *[_END] * eos]:
            yield self.BaseFullScore(state, word, after)
            state, after = after, state

    def BeginSentenceWrite(self, state: State) -> None:  # noqa: N802
        """The state at the beginning of a sentence."""
        state._write(State())
        state._words = 1  # <s>
        predictor = self._lm.predictor
        state._branch = Branch(predictor, state=predictor.start(1), token_id=self._lm.bos_id)
        state._history = b"begin"
        state._identity = identity_of(predictor)

    def NullContextWrite(self, state: State) -> None:  # noqa: N802
        """The state in the middle of a text whose earlier words are unknown."""
        self.BeginSentenceWrite(state)
        state._words = 0
        state._in_text = True
        state._history = b"null"

    def BaseScore(  # noqa: N802
        self, in_state: State, word: str | bytes, out_state: State
    ) -> float:
        """The log10 probability of a word after a state; writes the state after it."""
        return self.BaseFullScore(in_state, word, out_state).log_prob

    def BaseFullScore(  # noqa: N802
        self, in_state: State, word: str | bytes, out_state: State
    ) -> FullScoreReturn:
        """`FullScoreReturn` of a word after a state; writes the state after it.

        Raises:
            InputError: the state has not been written, or by another model; `word` is not a single
                word.
        """
        word = _as_str(word)
        if in_state._branch is None:
            raise InputError("the state is empty: BeginSentenceWrite(state) comes first")
        if in_state._identity != identity_of(self._lm.predictor):
            raise InputError(f"{ANOTHER_MODELS} BeginSentenceWrite(state) of this one")
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
            raise InputError(f"{word!r} is not one word; for a sentence, score or full_scores")
        if ids := tokenizer.encode_word(word, in_text=in_text):
            return ids
        raise InputError(f"{word!r} has no token: the tokenizer's normalisation takes it away")

    def _is_unknown(self, word: str) -> bool:
        unk_id = self._lm.tokenizer.unk_id
        try:
            ids = self._lm.tokenizer.encode(word)
        except InputError:  # no unknown token either
            return True
        return unk_id in ids or not ids


LanguageModel = Model  # KenLM's older name
