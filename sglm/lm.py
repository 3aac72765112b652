"""A trained model as a Python object: it scores texts, whole or piece by piece, and continues them.

>>> lm = sglm.load("runs/tiny")
>>> lm.score("the cat sat").ppl

Log-probabilities are natural. Scoring is stateless unless a state is passed, changes nothing on
the object and draws no random number: the same text always scores the same, from any thread.
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
from sglm.scoring.arguments import one_of, truth
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
    """A predictor and its tokenizer: scores, evaluates and continues text."""

    def __init__(
        self,
        predictor: Predictor[Any],
        *,
        tokenizer: Tokenizer,
        name: str = "",
        training_lines: Path | None = None,
        bos_id: int | None = None,
    ) -> None:
        """Takes over `predictor`, which must not change while it scores.

        Args:
            predictor: threads can share it if its calls are independent of each other: a
                `NetworkPredictor` if its network is in evaluation mode.
            tokenizer: its vocabulary must be the predictor's.
            name: what results call the model.
            training_lines: the file that records the lines of the model's training text.
            bos_id: the token that stands before every text; None: `<eos>`.

        Raises:
            InputError: the vocabularies differ in size.
        """
        if predictor.vocab_size != tokenizer.vocab_size:
            raise InputError(
                f"{name}: the model knows {predictor.vocab_size} tokens, its tokenizer "
                f"{tokenizer.vocab_size}: they do not belong together; copy the folder again"
            )
        self.predictor = predictor
        self.tokenizer = tokenizer
        self.name = name
        self.training_lines = training_lines
        self.bos_id = tokenizer.eos_id if bos_id is None else bos_id
        """The token between texts, which stands before every one: `<eos>`; a newline for a model
        of lines that never saw `<eos>`."""
        self._names = [tokenizer.token(token_id) for token_id in range(tokenizer.vocab_size)]

    @property
    def lines_are_texts(self) -> bool:
        """Whether its training text ended each line as a text: at word level, and where newlines
        are tokens and it was lines."""
        return self.tokenizer.line_end == [self.bos_id]

    @property
    def model(self) -> LSTMLanguageModel:
        """The network.

        Raises:
            AttributeError: the predictor is not a single network.
        """
        if not isinstance(self.predictor, NetworkPredictor):
            raise AttributeError(f"{type(self.predictor).__name__} is not one network")
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
        """Scores a text, or many at once; each on its own, from the zero state.

        Args:
            text: one, or many: a list, a generator, a column of a table. Many are read in batches
                of similar length, which is much faster than one by one and gives the same numbers
                up to rounding. For a model of ids a text is these: "5 7 9".
            bos: the first token is predicted from `bos_id`. Otherwise the text is a fragment: its
                first token is read, but neither predicted nor counted in `tokens` and `n_tokens`
                (`n_words` and `n_bytes` are those of the whole text all the same).
            eos: what ends a text, `bos_id` again, is scored too.
            distribution: also record ranks, entropies and boundaries (`Score`), which takes
                about twice the time.
            context: is read before each text and not scored. A token that begins in it and ends in
                the text counts.

        Returns:
            One `Score` for a text, a list in the same order for many. An empty text has no
            tokens, logprob 0 and ppl nan.

        Raises:
            InputError: a text is not a str, or holds half a surrogate pair, or what a given
                tokenizer cannot encode; many that have no order, or are lines of an open file; a
                context without bos.
        """
        texts = [text] if isinstance(text, str) else list_of_texts(text)
        bos, eos = truth("bos", bos), truth("eos", eos)
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
            distribution=truth("distribution", distribution),
            context=context,
        )
        return scores[0] if isinstance(text, str) else scores

    def score_nbest(self, prefix: str, candidates: Sequence[str]) -> list[Score]:
        """Scores what may follow a text: `score(candidates, context=prefix)`.

        What all have in common is read once.

        Args:
            prefix: the text so far; not scored.
            candidates: how each may go on, its white space at the beginning included.
        """
        return self.score(list_of_texts(candidates), context=prefix)

    def score_running(self, lines: Iterable[str | list[str]]) -> Iterator[Score]:
        """Scores lines one after the other, each after all that stood before it.

        Line ends are read and not scored. Ranks, entropies and boundaries are recorded.

        Args:
            lines: of one text, without their line ends, or lists of them; taken when they are
                needed. The lines of a list are read together, two to three times as fast as one
                by one, with the same numbers up to rounding.

        Raises:
            InputError: a line is not a str, holds half a surrogate pair, or what a given tokenizer
                cannot encode; those before it have been scored.
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
        """Evaluates a text of any length; the same numbers as `sglm eval --text`.

        Args:
            source: an open file, of which what has not been read is evaluated; a path
                (`Path("test.txt")`, any kind of file that `sglm prep` reads); lines, with
                their newlines or without; or the text itself as a str.
            context: carried: the state runs through the text; reset: each line on its own.
            text_field: the field of a record that holds its text.

        Raises:
            InputError: no text there, not UTF-8, or a str that is the name of a file; an open file
                whose line ends can no longer be told; what has no order of lines.
        """
        one_of("context", context, CONTEXTS)
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
        """Evaluates a split of a token store, given opened or as its path; or half of its tokens.

        Raises:
            InputError: the store was made by another tokenizer, or has no such split; no half.
        """
        one_of("context", context, CONTEXTS)
        if half is not None:
            one_of("half", half, HALVES)
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
        lines = None if half else store.lines(split)
        return with_overlap(self._adapted(evaluation), lines, self._trained_on())

    def _trained_on(self) -> LineHashes | None:
        return LineHashes.read(self.training_lines) if self.training_lines else None

    def start(self) -> ScoringState:
        """The state before any text: the zero state, about to read `bos_id`."""
        return start_text(self.predictor, self.bos_id)

    def extend(self, state: ScoringState, text: str) -> tuple[Score, ScoringState]:
        """Scores what `text` adds to the text so far.

        However a text is cut into pieces, their `logprob`, `n_tokens`, `n_words` and `n_bytes`
        add up to those of the whole. Where a piece changes how the end of the text before it is
        cut into tokens ("hel", then "lo"), those tokens are withdrawn and scored again: `tokens`
        and `token_logprobs` are then those of the new tokens; `logprob` and `n_tokens` are the new
        tokens' minus the withdrawn ones', so `logprob` may be positive and `n_tokens` negative.
        Where no token is withdrawn, `token_logprobs` sum to `logprob`, as always.

        The end of the text is read again from the last position before which no further text can
        change the tokens: a space, for most tokenizers. In a text without spaces, and with a
        tokenizer that was given (`hf:`, `spm:`), each piece costs more than the one before it.

        Args:
            state: from `start` or an earlier `extend`; stays valid.
            text: may be empty.

        Returns:
            The score of what was added, and the state after it.

        Raises:
            InputError: not a str, or half a surrogate pair; not a state, or another model's.
        """
        return extend_text(self.predictor, self.tokenizer, state, text=text)

    def next(self, state: ScoringState) -> npt.NDArray[np.float32]:
        """Log-probabilities of all tokens that may come after a text, `(V,)`.

        Indices are token ids (`lm.tokenizer`). The text's last word is read in its present tokens,
        although the tokenizer might cut it differently if the text continued.

        Args:
            state: from `start` or `extend`; stays valid.

        Raises:
            InputError: not a state, or another model's.
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
        """Continues a text.

        Args:
            prompt: what it begins with; may be empty.
            tokens: how many to add at most. Where `<eos>` ends documents and not lines, as at word
                level, the text may end earlier.
            temperature: below 1 the likelier tokens are preferred; 0 always takes the likeliest.
            top_p: draw only from the likeliest tokens that together have this probability.
            seed: the same seed gives the same text; None gives another one every time. torch's
                global generator is neither used nor changed.

        Returns:
            The prompt and its continuation, as one text. `<unk>` is never generated.

        Raises:
            InputError: a number out of range, or none; no str as the prompt, or half a surrogate
                pair in it.
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
