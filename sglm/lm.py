"""A trained model as a Python object: it scores texts, whole or piece by piece, and continues them.

>>> lm = sglm.load("runs/tiny")
>>> lm.score("the cat sat").ppl

Log-probabilities are natural. Scoring is stateless unless a state is passed, changes nothing on
the object and draws no random number: the same text always scores the same, from any thread.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np

from sglm.errors import InputError
from sglm.model.folder import find_model_folder, load_weights, read_card
from sglm.model.language_model import LSTMLanguageModel
from sglm.model.state import LSTMState
from sglm.runtime.device import pick_device
from sglm.scoring.batch import packed_nlls
from sglm.scoring.evaluate import evaluate_pieces, evaluate_split, with_overlap
from sglm.scoring.generate import generate_ids
from sglm.scoring.results import Context, Evaluation, Score, make_score
from sglm.scoring.stream import Ids, read_on
from sglm.text.overlap import LineHasher, LineHashes, find_training_lines
from sglm.text.store import TokenStore
from sglm.text.tokenizer import UNK, Tokenizer, load_tokenizer, utf8
from sglm.text.user_text import pieces_of


@dataclass(frozen=True)
class ScoringState:
    """What `LanguageModel.extend` knows of the text so far. Immutable: one state can be extended
    in several ways.

    A tokenizer may cut the end of a text differently once more text follows. Hence only the text
    up to the last safe boundary is behind us; the tail after it is read again with what follows.
    """

    lstm: LSTMState
    """Before `previous_id` is read."""
    previous_id: int
    """The last token before the tail; `<eos>` at the start."""
    tail: str
    tail_ids: tuple[int, ...]
    tail_logprobs: tuple[float, ...]
    """What has been counted for the tail."""
    in_word: bool
    """The text ends in a word that may go on."""


class LanguageModel:
    """A network and the tokenizer whose ids it speaks."""

    def __init__(
        self,
        model: LSTMLanguageModel,
        tokenizer: Tokenizer,
        name: str = "",
        training_lines: Path | None = None,
    ) -> None:
        """Takes over `model`, which must not be trained while it scores.

        Args:
            model: put into evaluation mode here, once.
            tokenizer: its vocabulary must be the model's.
            name: what results call the model.
            training_lines: the file of what is remembered of the text that it was trained on.

        Raises:
            InputError: the vocabularies differ in size.
        """
        if model.shape.vocab_size != tokenizer.vocab_size:
            raise InputError(
                f"{name}: the model knows {model.shape.vocab_size} tokens, its tokenizer "
                f"{tokenizer.vocab_size}: they do not belong together; copy the folder again"
            )
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.training_lines = training_lines
        self._names = [tokenizer.token(token_id) for token_id in range(tokenizer.vocab_size)]

    @overload
    def score(self, text: str, *, bos: bool = True, eos: bool = False) -> Score: ...
    @overload
    def score(
        self, text: list[str] | tuple[str, ...], *, bos: bool = True, eos: bool = False
    ) -> list[Score]: ...
    def score(
        self, text: str | list[str] | tuple[str, ...], *, bos: bool = True, eos: bool = False
    ) -> Score | list[Score]:
        """Scores a text, or many at once; each on its own, from the zero state.

        Args:
            text: one or many. Many are read in batches of similar length, which is much faster
                than one by one and gives the same numbers up to rounding.
            bos: the first token is predicted from `<eos>`. Otherwise the text is a fragment: its
                first token is read, but neither predicted nor counted in `tokens` and `n_tokens`
                (`n_words` and `n_bytes` are those of the whole text all the same).
            eos: the `<eos>` after the text is scored too.

        Returns:
            One `Score` for a text, a list in the same order for many. An empty text has no
            tokens, logprob 0 and ppl nan.

        Raises:
            InputError: a text is not a str, or holds half a surrogate pair.
        """
        if isinstance(text, str):
            return self._score([text], bos, eos)[0]
        if not isinstance(text, Iterable):
            raise InputError(f"a text must be a str, but this is {type(text).__name__}")
        return self._score(list(text), bos, eos)

    def _score(self, texts: Sequence[str], bos: bool, eos: bool) -> list[Score]:
        sizes = [_checked_size(text, number) for number, text in enumerate(texts, start=1)]
        eos_id, unk_id = self.tokenizer.eos_id, self.tokenizer.unk_id
        first, last = [eos_id] * bos, [eos_id] * eos
        ids: list[int] = []
        lengths: list[int] = []
        for encoded in self.tokenizer.encode_batch(texts):
            lengths.append(bos + len(encoded) + eos)
            ids += first
            ids += encoded
            ids += last
        ids_N = np.array(ids, dtype=np.int64)
        lengths_S = np.array(lengths, dtype=np.int64)
        logprobs = (-packed_nlls(self.model, ids_N, lengths_S)).tolist()
        # Of all texts at once, because there may be many short ones.
        tokens = list(map(self._names.__getitem__, ids))
        unk = (ids_N == unk_id).tolist()
        scores = []
        start = 0
        for text, size, length in zip(texts, sizes, lengths, strict=True):
            end = start + length
            scored = slice(start + 1, end)
            scores.append(
                make_score(
                    tokens[scored],
                    logprobs[scored],
                    unk[scored],
                    n_words=len(text.split()),
                    n_bytes=size,
                    # Without the first token's nats the bytes do not have all of theirs.
                    hides_bytes=not bos,
                )
            )
            start = end
        return scores

    def perplexity(
        self,
        source: str | os.PathLike[str] | Iterable[str | bytes],
        *,
        context: Context = "carried",
    ) -> Evaluation:
        """Evaluates a text of any length; the same numbers as `sglm eval --text`.

        Args:
            source: an open file; a path (`Path("test.txt")`, any kind of file that `sglm prep`
                reads); lines, which need their newline at the end; or the text itself as a str.
            context: carried: the state runs through the text; reset: each line on its own.

        Raises:
            InputError: no text there, not UTF-8, or a str that is the name of a file.
        """
        pieces, name = pieces_of(source)
        lines = LineHasher()
        found = evaluate_pieces(
            self.model,
            self.tokenizer,
            lines.watch(pieces),
            context=context,
            name=self.name,
            split=name,
        )
        return with_overlap(found, lines.finish(), self._trained_on())

    def evaluate(self, store: TokenStore, split: str, context: Context = "carried") -> Evaluation:
        """Evaluates a split of a token store.

        Raises:
            InputError: the store was made by another tokenizer, or has no such split.
        """
        theirs, ours = store.tokenizer(), self.tokenizer
        if theirs.fingerprint != ours.fingerprint:
            raise InputError(
                f"{store.folder} was made by another tokenizer ({_describe(theirs)}) than "
                f"{self.name} ({_describe(ours)}); use the store it was trained on, or --text FILE"
            )
        found = evaluate_split(self.model, store, split, context=context, name=self.name)
        return with_overlap(found, store.lines(split), self._trained_on())

    def _trained_on(self) -> LineHashes | None:
        return LineHashes.read(self.training_lines) if self.training_lines else None

    def start(self) -> ScoringState:
        """The state before any text: the zero state, about to read `<eos>`."""
        return ScoringState(
            self.model.start_state(1), self.tokenizer.eos_id, "", (), (), in_word=False
        )

    def extend(self, state: ScoringState, text: str) -> tuple[Score, ScoringState]:
        """Scores what `text` adds to the text so far.

        However a text is cut into pieces, their `logprob`, `n_tokens`, `n_words` and `n_bytes`
        add up to those of the whole. Where a piece changes how the end of the text before it is
        cut into tokens ("hel", then "lo"), those tokens are withdrawn and scored anew: `tokens`
        and `token_logprobs` then are the new ones, `logprob` and `n_tokens` count them less the
        withdrawn ones (and may be above or below zero). Otherwise `token_logprobs` sum to
        `logprob`, as always.

        The end of the text is re-read from the last boundary that the tokenizer can be sure of: a
        space, for most; a text without spaces costs more with every piece.

        Args:
            state: from `start` or an earlier `extend`; stays valid.
            text: may be empty.

        Returns:
            The score of what was added, and the state after it.

        Raises:
            InputError: not a str, or half a surrogate pair.
        """
        n_bytes = _checked_size(text)
        tail = state.tail + text
        cut = self.tokenizer.safe_prefix(tail)
        settled, rest = self.tokenizer.encode(tail[:cut]), self.tokenizer.encode(tail[cut:])
        lstm, previous_id = state.lstm, state.previous_id
        nll_settled_T, lstm = read_on(self.model, _array(previous_id, settled), lstm)
        previous_id = settled[-1] if settled else previous_id
        nll_rest_T, _ = read_on(self.model, _array(previous_id, rest), lstm)

        ids = settled + rest
        logprobs = [*(-nll_settled_T).tolist(), *(-nll_rest_T).tolist()]
        kept = _common_length(state.tail_ids, ids)
        score = make_score(
            [self._names[token_id] for token_id in ids[kept:]],
            logprobs[kept:],
            [token_id == self.tokenizer.unk_id for token_id in ids[kept:]],
            n_words=len(text.split()) - (state.in_word and _starts_in_word(text)),
            n_bytes=n_bytes,
            withdrawn=state.tail_logprobs[kept:],
        )
        in_word = not text[-1].isspace() if text else state.in_word
        tail_logprobs = tuple(logprobs[len(settled) :])
        return score, ScoringState(
            lstm, previous_id, tail[cut:], tuple(rest), tail_logprobs, in_word
        )

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
            tokens: how many to add at most. Where `<eos>` ends documents (all tokenizers but the
                word-level one, where it ends a line), the text may end earlier.
            temperature: below 1 the likelier tokens are preferred; 0 always takes the likeliest.
            top_p: draw only from the likeliest tokens that together have this probability.
            seed: the same seed gives the same text; None gives another one every time. torch's
                global generator is neither used nor changed.

        Returns:
            The prompt and its continuation, as one text. `<unk>` is never generated.

        Raises:
            InputError: a number out of range, or half a surrogate pair in the prompt.
        """
        _checked_size(prompt)
        tokenizer = self.tokenizer
        ids = tokenizer.encode(prompt)
        added = generate_ids(
            self.model,
            ids,
            eos_id=tokenizer.eos_id,
            tokens=tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            never=[i for i in range(tokenizer.vocab_size) if tokenizer.token(i) == UNK],
            stop_at_eos=tokenizer.kind != "word",
        )
        # The prompt stays as it was typed, whatever its tokens would be decoded to.
        continuation = tokenizer.decode([*ids, *added])[len(tokenizer.decode(ids)) :]
        if not tokenizer.lossless and (not prompt or prompt[-1].isspace()):
            continuation = continuation.lstrip(" ")
        return prompt + continuation


def load(path: str | os.PathLike[str], device: str = "auto") -> LanguageModel:
    """The model of a run, or of a model folder wherever it was copied to.

    Args:
        path: a run (its `model/` is taken), a model folder, or a snapshot.
        device: `"auto"`, `"cpu"` or `"cuda"`.

    Raises:
        InputError: no model there, a damaged one, or no such device.
    """
    where = pick_device(device)
    folder = find_model_folder(Path(path))
    card = read_card(folder)
    tokenizer = load_tokenizer(folder)
    if tokenizer.fingerprint != card.tokenizer_fingerprint:
        raise InputError(
            f"{folder}: its tokenizer is not the one the model was trained with "
            f"({_describe(tokenizer)}, not {card.tokenizer_fingerprint[:12]}); copy it again"
        )
    weights, training_lines = load_weights(folder, where), find_training_lines(folder)
    return LanguageModel(weights, tokenizer, os.fspath(path), training_lines)


def _checked_size(text: str, number: int | None = None) -> int:
    """The UTF-8 bytes of a text that must be one; `number` says which of many it is."""
    which = "" if number is None else f"text {number}: "
    if not isinstance(text, str):
        raise InputError(f"{which}a text must be a str, but this is {type(text).__name__}")
    try:
        return len(utf8(text))
    except InputError as error:
        raise InputError(f"{which}{error}") from error


def _describe(tokenizer: Tokenizer) -> str:
    return f"{tokenizer.kind}, {tokenizer.vocab_size} tokens, {tokenizer.fingerprint[:12]}"


def _array(first: int, ids: Sequence[int]) -> Ids:
    return np.array([first, *ids], dtype=np.int64)


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many leading ids agree."""
    for index, (one, other) in enumerate(zip(first, second, strict=False)):
        if one != other:
            return index
    return min(len(first), len(second))


def _starts_in_word(text: str) -> bool:
    return bool(text) and not text[0].isspace()
