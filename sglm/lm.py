"""`LanguageModel`: a trained model that scores texts, whole or piece by piece, and continues them.

>>> lm = sglm.load("runs/tiny")
>>> lm.score("the cat sat").ppl

Log-probabilities are natural logarithms. Scoring changes nothing on the object, draws no random
number and keeps no state except the states that a caller passes: the same text always has the same
score, from any thread.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from sglm.adapt.adaptable import Adaptable
from sglm.errors import InputError
from sglm.model.language_model import LSTMLanguageModel
from sglm.scoring.arguments import checked_bool, checked_choice
from sglm.scoring.evaluate import evaluate_pieces, evaluate_split, with_overlap
from sglm.scoring.generate import continue_text
from sglm.scoring.incremental import ScoringState, extend_text, next_logprobs, start_text
from sglm.scoring.predictor import NetworkPredictor, Predictor
from sglm.scoring.results import CONTEXTS, HALVES, Context, Evaluation, Half, Score
from sglm.scoring.texts import running_scores, score_texts
from sglm.text.overlap import LineHasher, LineHashes
from sglm.text.store import TokenStore
from sglm.text.tokenizer import Tokenizer
from sglm.text.user_text import checked_bytes, list_of_texts, pieces_of


class LanguageModel(Adaptable):
    """A language model: scores, evaluates and continues texts. `sglm.load` returns one."""

    def __init__(
        self,
        predictor: Predictor[Any],
        *,
        tokenizer: Tokenizer,
        name: str = "",
        training_lines: Path | None = None,
        bos_id: int | None = None,
    ) -> None:
        """Wraps a predictor, which must not change while it scores.

        Args:
            predictor: The model's predictor. Threads can share it if its calls are independent of
                each other, as those of a `NetworkPredictor` in evaluation mode are.
            tokenizer: A tokenizer with the same vocabulary as the predictor.
            name: The name of the model in results.
            training_lines: The file with the hashes of the training text's lines. None: evaluations
                do not count the lines that were trained on.
            bos_id: The id of the token that stands before every text. None: `<eos>`.

        Raises:
            InputError: The vocabularies differ in size.
        """
        if predictor.vocab_size != tokenizer.vocab_size:
            raise InputError(
                f"{name}: the model has {predictor.vocab_size} tokens, but its tokenizer "
                f"{tokenizer.vocab_size}: they do not belong together; copy the folder again"
            )
        self.predictor = predictor
        self.tokenizer = tokenizer
        self.name = name
        self.training_lines = training_lines
        self.bos_id = tokenizer.eos_id if bos_id is None else bos_id
        """The id of the token that separates texts and stands before each: `<eos>`, or a newline
        for a model that was trained on lines and never saw `<eos>`."""
        self._names = [tokenizer.token(token_id) for token_id in range(tokenizer.vocab_size)]

    @property
    def lines_are_texts(self) -> bool:
        """Whether each line of the training text ended with `bos_id`, as a text of its own."""
        return self.tokenizer.line_end == [self.bos_id]

    @property
    def model(self) -> LSTMLanguageModel:
        """The network behind the predictor.

        Raises:
            AttributeError: The predictor is not a single network.
        """
        if not isinstance(self.predictor, NetworkPredictor):
            raise AttributeError(f"{type(self.predictor).__name__} is not a single network")
        return self.predictor.model

    @overload
    def score(
        self,
        text: str,
        *,
        bos: bool = True,
        eos: bool = False,
        distribution: bool = False,
        context: str = "",
    ) -> Score: ...
    @overload
    def score(
        self,
        text: list[str] | tuple[str, ...],
        *,
        bos: bool = True,
        eos: bool = False,
        distribution: bool = False,
        context: str = "",
    ) -> list[Score]: ...
    def score(
        self,
        text: str | list[str] | tuple[str, ...],
        *,
        bos: bool = True,
        eos: bool = False,
        distribution: bool = False,
        context: str = "",
    ) -> Score | list[Score]:
        """Scores one text or many, each on its own, from the zero state.

        Args:
            text: One text, or many: a list, a generator or a column of a table. Many texts are read
                in batches of similar length, which is much faster than one by one and gives the
                same numbers up to rounding. For a model of plain ids, a text lists them: "5 7 9".
            bos: Whether to predict the first token, from `bos_id`. If False, the text is a
                fragment: its first token is read, but neither predicted nor counted in `tokens` and
                `n_tokens` (`n_words` and `n_bytes` still count the whole text).
            eos: Whether to score the end of the text too, which is `bos_id` again.
            distribution: Whether to record ranks, entropies and boundaries too (see `Score`), which
                takes about twice the time.
            context: Text that is read before each text and not scored. A token that begins in the
                context and ends in the text is scored.

        Returns:
            A `Score` for one text; for many, a list of scores in the same order. An empty text has
            no tokens, logprob 0 and ppl nan.

        Raises:
            InputError: A text is not a str, holds a lone surrogate, or cannot be encoded by a given
                tokenizer; the texts have no order or are an open file; `context` without `bos`.
        """
        texts = [text] if isinstance(text, str) else list_of_texts(text)
        bos, eos = checked_bool("bos", bos), checked_bool("eos", eos)
        checked_bytes(context)
        if context and not bos:
            raise InputError("bos=False scores a fragment that nothing precedes; give no context")
        scores = score_texts(
            self.predictor,
            self.tokenizer,
            texts,
            sizes=[checked_bytes(each, number) for number, each in enumerate(texts, start=1)],
            names=self._names,
            bos=bos,
            eos=eos,
            bos_id=self.bos_id,
            distribution=checked_bool("distribution", distribution),
            context=context,
        )
        return scores[0] if isinstance(text, str) else scores

    def score_nbest(self, prefix: str, candidates: Sequence[str]) -> list[Score]:
        """Scores candidates for the continuation of a text: `score(candidates, context=prefix)`.

        The part that all candidates have in common is read once.

        Args:
            prefix: The text so far, which is not scored.
            candidates: The possible continuations, including any white space at their beginning.
        """
        return self.score(list_of_texts(candidates), context=prefix)

    def score_running(self, lines: Iterable[str | list[str]]) -> Iterator[Score]:
        """Scores the lines of one text in order, each after all lines before it.

        Line ends are read but not scored. Ranks, entropies and boundaries are recorded.

        Args:
            lines: The lines without their line ends, or lists of such lines; they are taken from
                the iterable when they are needed. The lines of a list are read together, two to
                three times as fast as one by one, with the same numbers up to rounding.

        Raises:
            InputError: A line is not a str, holds a lone surrogate, or cannot be encoded by a given
                tokenizer. The lines before it have been scored.
        """
        return running_scores(
            self.predictor, self.tokenizer, lines, names=self._names, bos_id=self.bos_id
        )

    def perplexity(
        self,
        source: str | os.PathLike[str] | Iterable[str | bytes],
        *,
        context: Context = "carried",
        text_field: str = "text",
    ) -> Evaluation:
        """Evaluates a text of any length; gives the same numbers as `sglm eval --text`.

        Args:
            source: A path (`Path("test.txt")`) of any kind of file that `sglm prep` reads; an open
                file, whose unread rest is evaluated; lines, with or without their newlines; or the
                text itself as a str.
            context: "carried": the state runs through the text. "reset": each line on its own.
            text_field: The field of a record that holds its text.

        Raises:
            InputError: There is no text, or it is not UTF-8; a str is the name of a file; an open
                file has already translated its line ends; the lines have no order.
        """
        checked_choice("context", context, CONTEXTS)
        pieces, name = pieces_of(source, text_field)
        lines = LineHasher()
        evaluation = evaluate_pieces(
            self.predictor,
            self.tokenizer,
            lines.watch(pieces),
            context=context,
            name=self.name,
            split=name,
            bos_id=self.bos_id,
        )
        return with_overlap(self._adapted(evaluation), lines.finish(), self._trained_on())

    def evaluate(
        self,
        store: TokenStore | str | os.PathLike[str],
        split: str,
        context: Context = "carried",
        *,
        half: Half = None,
    ) -> Evaluation:
        """Evaluates a split of a token store, or half of it.

        Args:
            store: An open store, or its path.
            split: The name of the split.
            context: "carried": the state runs through the split. "reset": each text on its own.
            half: "first" or "second": only that half of the split's tokens. None: all of them.

        Raises:
            InputError: The store was made by another tokenizer or has no such split; `context` is
                "reset" and the split does not show where texts end; an unknown context or half.
        """
        checked_choice("context", context, CONTEXTS)
        if half is not None:
            checked_choice("half", half, HALVES)
        if not isinstance(store, TokenStore):
            store = TokenStore.open(store)
        store.check_made_by(self.tokenizer, self.name)
        evaluation = evaluate_split(
            self.predictor,
            store,
            split,
            context=context,
            name=self.name,
            half=half,
            bos_id=self.bos_id,
        )
        lines = None if half else store.line_hashes(split)
        return with_overlap(self._adapted(evaluation), lines, self._trained_on())

    def _trained_on(self) -> LineHashes | None:
        return LineHashes.read(self.training_lines) if self.training_lines else None

    def start(self) -> ScoringState:
        """Returns the state before any text: the zero state, about to read `bos_id`."""
        return start_text(self.predictor, self.bos_id)

    def extend(self, state: ScoringState, text: str) -> tuple[Score, ScoringState]:
        """Scores what `text` adds to the text so far.

        However a text is cut into pieces, their `logprob`, `n_tokens`, `n_words` and `n_bytes`
        add up to those of the whole. If a piece changes how the end of the text before it is cut
        into tokens ("hel", then "lo"), those tokens are withdrawn and scored again. `tokens` and
        `token_logprobs` are then those of the new tokens; `logprob` and `n_tokens` are the sums
        over the new tokens minus those over the withdrawn ones, so `logprob` may be positive and
        `n_tokens` negative. If no token is withdrawn, `token_logprobs` sum to `logprob` as always.

        The end of the text is read again from the last position before which no further text can
        change the tokens: a space, for most tokenizers. In a text without spaces, and with a given
        tokenizer (`hf:`, `spm:`), each piece therefore costs more than the one before it.

        Args:
            state: A state from `start` or an earlier `extend`; it stays valid.
            text: The next piece of the text; may be empty.

        Returns:
            The score of the piece, and the state after it.

        Raises:
            InputError: `text` is not a str or holds a lone surrogate; `state` is not a state, or
                belongs to another model.
        """
        return extend_text(self.predictor, self.tokenizer, state, text=text)

    def next(self, state: ScoringState) -> npt.NDArray[np.float32]:
        """Returns the log-probability of each token as the next one after a text, `(V,)`.

        Indices are token ids (`lm.tokenizer`). The text's last word is read in its present tokens,
        although the tokenizer might cut it differently if the text continued.

        Args:
            state: A state from `start` or `extend`; it stays valid.

        Raises:
            InputError: `state` is not a state, or belongs to another model.
        """
        return next_logprobs(self.predictor, state)

    def generate(
        self,
        prompt: str = "",
        *,
        tokens: int = 50,
        temperature: float = 0.8,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> str:
        """Continues a text with tokens drawn from the model.

        Args:
            prompt: The beginning of the text; may be empty.
            tokens: The largest number of tokens to add. The text may end earlier, at an `<eos>`,
                unless `<eos>` ends lines, as at word level.
            temperature: Below 1 likelier tokens are preferred; 0 always takes the likeliest.
            top_p: Draws only from the likeliest tokens that together have this probability; None:
                from all.
            seed: The same seed gives the same text; None gives a different text every time. torch's
                global generator is neither used nor changed.

        Returns:
            The prompt and its continuation as one text. `<unk>` is never generated.

        Raises:
            InputError: An argument is not a number or is out of range; the prompt is not a str or
                holds a lone surrogate.
            SglmError: The model predicts NaN, because its training diverged.
        """
        return continue_text(
            self.predictor,
            self.tokenizer,
            prompt,
            bos_id=self.bos_id,
            tokens=tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
        )
