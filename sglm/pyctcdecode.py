"""`SglmLanguageModel`: a model of sglm as the language model of pyctcdecode's beam search.

>>> from pyctcdecode import Alphabet, BeamSearchDecoderCTC
>>> from sglm.pyctcdecode import SglmLanguageModel
>>> alphabet = Alphabet.build_alphabet([" ", "a", "b", …])
>>> model = SglmLanguageModel("runs/book", unigrams=words, alpha=0.5, beta=1.0)
>>> decoder = BeamSearchDecoderCTC(alphabet, model)

Scores have the units of pyctcdecode's own class for KenLM models: a word adds
alpha · (natural logarithm of its probability) + beta to a beam; an out-of-vocabulary word adds
alpha · ln 10 · `unk_score_offset` as well. Two things differ. A word-level model knows its words,
so only other models need a list of unigrams. And a text that ends in a space does not get an empty
out-of-vocabulary word at its end.
"""

import json
import math
import os
import shutil
from bisect import bisect_left
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglm.errors import InputError, short_repr
from sglm.kenlm import Model, State
from sglm.model.folder import find_model_folder
from sglm.scoring.arguments import checked_bool, real_number
from sglm.storage.durable import replace_text
from sglm.storage.untrusted import read_json
from sglm.text.tokenizer_interface import LARGEST_FILE_BYTES

if TYPE_CHECKING:
    AbstractLanguageModel = object
else:
    try:
        from pyctcdecode.language_model import AbstractLanguageModel
    except ImportError:  # without pyctcdecode, the class can still be used by itself
        AbstractLanguageModel = object

# Beyond this many characters, the penalty of an unfinished unknown word grows in proportion to its
# length, as in pyctcdecode.
_WORD_CHARACTERS = 6
_MODEL, _ATTRIBUTES = "model", "attrs.json"


class SglmLanguageModel(AbstractLanguageModel):
    """A scorer of the words in beams; the state after a beam's words is a `sglm.kenlm.State`.

    The distribution after a state is computed once, however many words are tried there. The model
    is pickled as its path.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        unigrams: Iterable[str] | None = None,
        alpha: float = 0.5,
        beta: float = 1.5,
        unk_score_offset: float = -10.0,
        score_boundary: bool | None = None,
    ) -> None:
        """
        Args:
            path: A run or a model folder.
            unigrams: The known words. None: those of a word-level model. With another model and no
                list, every word is known; since the search then cannot tell which beginnings lead
                to a word, every unfinished word gets the penalty. A list makes it far better.
            alpha: The weight of the model.
            beta: A bonus for each word, in nats.
            unk_score_offset: The penalty of an unknown word, as a log10 probability. It is also
                added, unweighted, to an unfinished word with which no known word begins.
            score_boundary: Whether a beam begins at the beginning of a text and the end of the text
                is scored after its last word; otherwise beams are in the middle of a text. None:
                True if each line was a text (`lm.lines_are_texts`), as at word level.

        Raises:
            InputError: There is no model at `path`; a weight is not a finite number; `unigrams` is
                not a list of words.
        """
        self._model = Model(path)
        self._tokenizer = self._model.language_model.tokenizer
        self._words = self._own_words() if unigrams is None else _sorted_words(unigrams)
        self.alpha = self.beta = self.unk_score_offset = 0.0
        self.score_boundary = self._model.language_model.lines_are_texts
        self.reset_params(
            alpha=alpha,
            beta=beta,
            unk_score_offset=unk_score_offset,
            score_boundary=score_boundary,
        )

    def reset_params(self, **params: Any) -> None:
        """Changes `alpha`, `beta`, `unk_score_offset` or `score_boundary`; None changes nothing.

        Raises:
            InputError: A number is not finite, or `score_boundary` is not True or False.
        """
        for name in ("alpha", "beta", "unk_score_offset"):
            if params.get(name) is not None:
                value = real_number(name, params[name])
                if not math.isfinite(value):
                    raise InputError(f"{name} must be finite, but is {value}")
                setattr(self, name, value)
        if params.get("score_boundary") is not None:
            self.score_boundary = checked_bool("score_boundary", params["score_boundary"])

    @property
    def order(self) -> int:
        """The order, longer than any text, so that beams with different words are never merged."""
        return self._model.order

    def get_start_state(self) -> State:
        """Returns the state before a beam's first word."""
        state = State()
        if self.score_boundary:
            self._model.BeginSentenceWrite(state)
        else:
            self._model.NullContextWrite(state)
        return state

    def score(
        self, prev_state: State, word: str, is_last_word: bool = False
    ) -> tuple[float, State]:
        """Scores a word of a beam.

        Args:
            prev_state: The state before the word.
            word: The word; "" if the beam ends in a space and so has no last word.
            is_last_word: Whether the end of the text follows and, with `score_boundary`, counts.

        Returns:
            The weighted score that the word adds to the beam, in nats; and the state after the
            word, before any end of the text.
        """
        state, added, logprob = prev_state, 0.0, 0.0
        if word:
            state = State()
            logprob, _, oov = self._model.BaseFullScore(prev_state, word, state)
            logprob += self.unk_score_offset * (oov or not self._is_word(word))
            added = self.beta
        if is_last_word and self.score_boundary:
            logprob += self._model.BaseScore(state, "</s>", State())
        return self.alpha * logprob * math.log(10) + added, state

    def score_partial_token(self, partial_token: str) -> float:
        """Returns the score that an unfinished word adds to a beam: 0 if a known word begins with
        it, otherwise a penalty that depends on its length."""
        if self._words is not None and self._first_word(partial_token).startswith(partial_token):
            return 0.0
        return self.unk_score_offset * max(1.0, len(partial_token) / _WORD_CHARACTERS)

    def _is_word(self, word: str) -> bool:
        return self._words is None or self._first_word(word) == word

    def _first_word(self, beginning: str) -> str:
        """Returns the first known word in sorted order that is not before `beginning`, or ""."""
        assert self._words is not None
        place = bisect_left(self._words, beginning)
        return self._words[place] if place < len(self._words) else ""

    def _own_words(self) -> list[str] | None:
        if self._tokenizer.kind != "word":
            return None
        vocabulary = range(self._tokenizer.vocab_size)
        special = (self._tokenizer.eos_id, self._tokenizer.unk_id)
        return sorted(self._tokenizer.token(i) for i in vocabulary if i not in special)

    def save_to_dir(self, filepath: str) -> None:
        """Copies the model and the settings into a folder for `load_from_dir`, and overwrites what
        an earlier call wrote there."""
        folder = Path(filepath)
        source = find_model_folder(Path(os.fsdecode(self._model.path)))
        if not (folder / _MODEL).exists() or not source.samefile(folder / _MODEL):
            shutil.copytree(source, folder / _MODEL, dirs_exist_ok=True)
        names = ("alpha", "beta", "unk_score_offset", "score_boundary")
        attributes = {name: getattr(self, name) for name in names} | {"unigrams": self._words}
        replace_text(folder / _ATTRIBUTES, json.dumps(attributes))

    @classmethod
    def load_from_dir(cls, filepath: str) -> "SglmLanguageModel":
        """Loads what `save_to_dir` wrote. A decoder's own `load_from_dir` reads only KenLM models.

        Raises:
            InputError: The folder holds something else.
        """
        folder = Path(filepath)
        try:
            return cls(folder / _MODEL, **read_json(folder / _ATTRIBUTES, LARGEST_FILE_BYTES))
        except (OSError, ValueError, TypeError):
            raise InputError(f"{folder}: save_to_dir did not write this; save it again") from None


def _sorted_words(unigrams: Iterable[str]) -> list[str]:
    """Returns the different words in sorted order.

    Raises:
        InputError: `unigrams` is not a list of words.
    """
    words = unigrams if isinstance(unigrams, str) else list(unigrams)
    wrong = words if isinstance(words, str) else [w for w in words if not isinstance(w, str)][:1]
    if wrong:
        what = short_repr(wrong if isinstance(wrong, str) else wrong[0])
        raise InputError(f"unigrams must be a list of words, but there is {what}")
    return sorted(set(words))
