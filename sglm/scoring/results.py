"""The results of scoring a text and of evaluating a model: likelihoods, and measures of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from sglm.errors import InputError
from sglm.scoring.metrics import bits_per_byte, finite_or_none, perplexity
from sglm.scoring.words import UNMARKED, Base, Correction, Word, check_correction, words_of

Context = Literal["carried", "reset"]
Half = Literal["first", "second"] | None
CONTEXTS: tuple[Context, ...] = get_args(Context)
HALVES = ("first", "second")


@dataclass(frozen=True, kw_only=True, repr=False)
class Score:
    """The score of a text. `tokens`, `token_logprobs` and `unk` have one entry for each token."""

    tokens: list[str]
    """The scored tokens, readable."""
    token_logprobs: list[float]
    logprob: float
    """Their sum in nats (see `LanguageModel.extend` for the one exception)."""
    n_tokens: int
    n_words: int | None
    """Whitespace-separated words of the text; None where it is ids."""
    n_bytes: int | None
    """UTF-8 bytes of the text; None where it is ids."""
    unk: list[bool]
    """Which of the tokens stand for something outside the vocabulary."""
    ppl: float
    """exp(-logprob / n_tokens), per token; nan without tokens, as for the empty text."""
    bits_per_byte: float | None
    """-logprob / (n_bytes · ln 2); None without bytes or bos, and where `<unk>` hides bytes."""
    offsets: list[tuple[int, int]] = field(default_factory=list)
    """Start and end of each scored token in the text, in characters, the end exclusive; bytes
    inside one character share its offsets. Of `extend`: in all of the text so far."""
    text: str | None = None
    """What was scored; None where that was a piece (`extend`)."""
    ranks: list[int] | None = None
    """Of each token, 1 for the likeliest; None unless asked for (`distribution=True`)."""
    entropies: list[float] | None = None
    """Of the predicted distribution at each token, in nats; None unless asked for."""
    boundaries: list[float] | None = None
    """-log of the probability that a word begins, at each token and after the last one; 0 at the
    beginning of a text without context. None unless asked for, and where the tokenizer does not
    mark the beginnings of words."""

    def words(self, base: Base = 2, correction: Correction = "none") -> list[Word]:
        """The words of the text and their surprisals.

        Uncorrected surprisals sum to -logprob, in the base's unit. A tokenizer that marks where
        words begin shows that a word has ended only in the token after it. The correction moves the
        probability of that boundary from the next word's tokens to the end of the word (Pimentel &
        Meister 2024, "How to compute the probability of a word"; Oh & Schuler 2024). Corrected
        surprisals sum to -logprob plus the surprisal of the boundary after the last word.

        Args:
            base: of the logarithm: 2, 10 or "e".
            correction: "none" or "bow" (beginning of word), which needs `distribution=True`.

        Raises:
            InputError: unknown base or correction, or what it needs was not recorded or cannot be.
        """
        check_correction(correction)
        if self.text is None:
            raise InputError("words are of whole texts: score(text), not a piece of extend()")
        if correction == "bow" and self.boundaries is None:
            if self.ranks is not None:
                raise InputError(f'correction "bow" {UNMARKED}')
            raise InputError(
                'correction "bow" needs what was expected: score(text, distribution=True)'
            )
        return words_of(
            self.text,
            offsets=self.offsets,
            logprobs=self.token_logprobs,
            unk=self.unk,
            ranks=self.ranks,
            entropies=self.entropies,
            boundaries=self.boundaries if correction == "bow" else None,
            base=base,
        )

    def __repr__(self) -> str:
        """The measures, and only the number of the tokens, which may be thousands."""
        return (
            f"Score(logprob={self.logprob:.4f}, ppl={self.ppl:.2f},"
            f" bits_per_byte={_digits(self.bits_per_byte)}, n_tokens={self.n_tokens},"
            f" n_words={self.n_words}, n_bytes={self.n_bytes})"
        )


def _digits(measure: float | None) -> str:
    return "None" if measure is None else f"{measure:.4f}"


def make_score(
    tokens: list[str],
    logprobs: list[float],
    unk: list[bool],
    *,
    n_words: int | None,
    n_bytes: int | None,
    offsets: list[tuple[int, int]],
    text: str | None = None,
    hides_bytes: bool = False,
    withdrawn: Sequence[float] = (),
) -> Score:
    """From the scored tokens to the sums.

    Args:
        tokens, logprobs, unk: of the tokens, in parallel.
        n_words, n_bytes: of the text; None where it is ids.
        offsets, text: see `Score`.
        hides_bytes: some of the text's bytes have no scored token.
        withdrawn: log-probabilities that were counted before and are replaced by these.
    """
    logprob = sum(logprobs, start=0.0) - sum(withdrawn)
    n_tokens = len(tokens) - len(withdrawn)
    return Score(
        tokens=tokens,
        token_logprobs=logprobs,
        logprob=logprob,
        n_tokens=n_tokens,
        n_words=n_words,
        n_bytes=n_bytes,
        unk=unk,
        ppl=perplexity(-logprob, n_tokens),
        bits_per_byte=bits_per_byte(-logprob, n_bytes, hides_bytes or True in unk),
        offsets=offsets,
        text=text,
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class Evaluation:
    """The likelihood of a text and the measures made of it.

    `words` and `bytes` are those of the original text, not of what the tokenizer made of it, so
    that models with different vocabularies compare (as in lm-evaluation-harness).
    """

    nll_nats: float
    """Sum over all tokens."""
    tokens: int
    words: int | None
    """Whitespace-separated; None where the text is ids."""
    bytes: int | None
    """In UTF-8; 0 where that is not known, as of a part of a split; None where the text is ids."""
    unknown: int
    """How many of the tokens are `<unk>`."""
    context: Context = "carried"
    """carried: the state runs through the whole text; reset: each line or document on its own."""
    model: str = ""
    """Where the model came from."""
    split: str = ""
    """What was evaluated: the name of a split, or of a file."""
    seconds: float = 0.0
    lines: int | None = None
    """How many of its lines have five words or more; None where nobody counted."""
    lines_in_training: int | None = None
    """How many of those occur in the training text too, an estimate where that is very large
    (`sglm.text.overlap`); None where that is not known: of a model without its run."""
    adapt: str = "none"
    """How the model adapted while it read (`sglm.adapt.settings.KINDS`)."""
    adapt_settings: Mapping[str, Any] = field(default_factory=dict)
    cost: float | None = None
    """Of reading so, in units of reading the text without adapting; None where not measured."""

    def __repr__(self) -> str:
        """What was evaluated, and the measures."""
        known = self.lines_in_training
        also = "" if known is None else f", lines_in_training={known} of {self.lines}"
        return (
            f"Evaluation({self.model!r} on {self.split!r}, context={self.context!r},"
            f" token_ppl={self.token_ppl:.2f}, word_ppl={self.word_ppl:.2f},"
            f" bits_per_byte={_digits(self.bits_per_byte)}, tokens={self.tokens},"
            f" words={self.words}, bytes={self.bytes}{also})"
        )

    @property
    def token_ppl(self) -> float:
        """exp(nats per token); inf beyond the range of floats."""
        return perplexity(self.nll_nats, self.tokens)

    @property
    def word_ppl(self) -> float:
        """exp(nats per word), comparable across tokenizers; nan without words, and of ids."""
        return perplexity(self.nll_nats, self.words)

    @property
    def bits_per_byte(self) -> float | None:
        """None where the text has `<unk>`, whose original bytes are not scored, and of ids."""
        return bits_per_byte(self.nll_nats, self.bytes, self.unknown)

    def to_json(self) -> dict[str, Any]:
        """The object that `sglm eval --json` prints; infinite and undefined numbers are None."""
        adapted: dict[str, Any] = {}
        if self.adapt != "none":
            cost = None if self.cost is None else round(self.cost, 2)
            adapted = {"adapt_settings": dict(self.adapt_settings), "static_evaluations": cost}
        return {
            "model": self.model,
            "split": self.split,
            "tokens": self.tokens,
            "words": self.words,
            "bytes": self.bytes or None,
            "nll_nats": finite_or_none(self.nll_nats),
            "token_ppl": finite_or_none(self.token_ppl),
            "word_ppl": finite_or_none(self.word_ppl),
            "bits_per_byte": finite_or_none(self.bits_per_byte),
            "context": self.context,
            "adapt": self.adapt,
            "seconds": round(self.seconds, 3),
            "lines": self.lines,
            "lines_in_training": self.lines_in_training,
            **adapted,
        }
