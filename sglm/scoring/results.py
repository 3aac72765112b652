"""The results of scoring a text and of evaluating a model: likelihoods, and measures from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from sglm.errors import InputError
from sglm.scoring.metrics import bits_per_byte, finite_or_none, perplexity
from sglm.scoring.words import (
    NO_WORD_MARKS_MESSAGE,
    Base,
    Correction,
    Word,
    check_correction,
    words_of,
)

Context = Literal["carried", "reset"]
Half = Literal["first", "second"] | None
CONTEXTS: tuple[Context, ...] = get_args(Context)
HALVES = ("first", "second")


@dataclass(frozen=True, kw_only=True, repr=False)
class Score:
    """The score of a text. Lists have one entry per scored token; `boundaries` has one more."""

    tokens: list[str]
    """The scored tokens, in readable form."""
    token_logprobs: list[float]
    """The log-probability of each token in nats, given all text before it."""
    logprob: float
    """The sum of `token_logprobs` (see `LanguageModel.extend` for the one exception)."""
    n_tokens: int
    """The number of scored tokens."""
    n_words: int | None
    """The number of words of the text, separated by white space; None if the text is ids."""
    n_bytes: int | None
    """The number of bytes of the text in UTF-8; None if the text is ids."""
    unk: list[bool]
    """Whether each token is `<unk>`, which stands for text outside the vocabulary."""
    ppl: float
    """exp(-logprob / n_tokens), the perplexity per token; nan without tokens."""
    bits_per_byte: float | None
    """-logprob / (n_bytes · ln 2). None if not all bytes are scored (there is an `<unk>`, or the
    text was scored with `bos=False`), and without bytes."""
    offsets: list[tuple[int, int]] = field(default_factory=list)
    """The start and end of each token in the text, in characters, the end exclusive. The bytes of
    one character share its offsets. After `extend` they count from the beginning of all text."""
    text: str | None = None
    """The text that was scored; None for a piece (`extend`)."""
    ranks: list[int] | None = None
    """The rank of each token, 1 for the likeliest; None unless recorded (`distribution=True`)."""
    entropies: list[float] | None = None
    """The entropy of the distribution that predicted each token, in nats; None unless recorded."""
    boundaries: list[float] | None = None
    """-log of the probability that a word begins, at each token and after the last one; 0 at the
    beginning of a text without context. None unless recorded, and if the tokenizer does not mark
    where words begin."""

    def words(self, base: Base = 2, correction: Correction = "none") -> list[Word]:
        """Returns the words of the text and their surprisals.

        Uncorrected surprisals sum to -logprob, in the base's unit. With tokens that mark where
        words begin, only the token after a word shows that the word has ended. The correction moves
        the probability of that boundary from the next word's tokens to the end of the word
        (Pimentel & Meister 2024, "How to compute the probability of a word"; Oh & Schuler 2024).
        Corrected surprisals sum to -logprob plus the surprisal of the boundary after the last word.

        Args:
            base: The base of the logarithm: 2, 10 or "e".
            correction: "none" or "bow" (beginning of word), which needs `distribution=True`.

        Raises:
            InputError: The base or correction is unknown; the score is that of a piece (`extend`);
                boundaries were not recorded, or the tokenizer does not mark where words begin.
        """
        check_correction(correction)
        if self.text is None:
            raise InputError("words() needs a whole text: score(text), not a piece of extend()")
        if correction == "bow" and self.boundaries is None:
            if self.ranks is not None:
                raise InputError(f'correction "bow" {NO_WORD_MARKS_MESSAGE}')
            raise InputError(
                'correction "bow" needs word boundaries: score(text, distribution=True)'
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
        """Shows the measures and the number of tokens; the tokens may be thousands."""
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
    has_unscored_bytes: bool = False,
    withdrawn: Sequence[float] = (),
) -> Score:
    """Computes the sums and measures of a `Score` from the scored tokens.

    Args:
        tokens, logprobs, unk, n_words, n_bytes, offsets, text: See `Score`.
        has_unscored_bytes: Whether some bytes of the text belong to no scored token.
        withdrawn: Log-probabilities that earlier scores counted and that these tokens replace.
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
        bits_per_byte=bits_per_byte(-logprob, n_bytes, has_unscored_bytes or True in unk),
        offsets=offsets,
        text=text,
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class Evaluation:
    """The likelihood of a text and the measures computed from it.

    `words` and `bytes` are counted in the original text, before the tokenizer changed any of it, so
    that models with different vocabularies can be compared (as in lm-evaluation-harness).
    """

    nll_nats: float
    """The negative log-likelihood: the sum over all tokens."""
    tokens: int
    """The number of tokens."""
    words: int | None
    """The number of words, separated by white space; None if the text is ids."""
    bytes: int | None
    """The number of bytes in UTF-8; 0 if unknown, as it may be for half a split; None if the text
    is ids."""
    unknown: int
    """The number of tokens that are `<unk>`."""
    context: Context = "carried"
    """The context of each token: "carried", the state runs through the whole text; or "reset", each
    line or document is read on its own."""
    model: str = ""
    """The name of the model, usually its path."""
    split: str = ""
    """The name of the split or of the file that was evaluated."""
    seconds: float = 0.0
    """The time that the evaluation took."""
    lines: int | None = None
    """The number of lines with five words or more; None if they were not counted."""
    lines_in_training: int | None = None
    """The number of these lines that occur in the training text too; an estimate if that text is
    very large (`sglm.text.overlap`). None if unknown, as for a model without its run."""
    adapt: str = "none"
    """The kind of adaptation while reading (`sglm.adapt.settings.KINDS`)."""
    adapt_settings: Mapping[str, Any] = field(default_factory=dict)
    """The settings of the adaptation."""
    cost: float | None = None
    """The time of this evaluation in units of one without adaptation; None if not measured."""

    def __repr__(self) -> str:
        """Shows the name of the model and of the text, and the measures."""
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
        """The perplexity per token, exp(nats per token); inf beyond the range of floats."""
        return perplexity(self.nll_nats, self.tokens)

    @property
    def word_ppl(self) -> float:
        """The perplexity per word, exp(nats per word), comparable across tokenizers; nan without
        words and for a text of ids."""
        return perplexity(self.nll_nats, self.words)

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per byte. None if the text has `<unk>`, whose original bytes are not scored; if the
        number of bytes is unknown; and for a text of ids."""
        return bits_per_byte(self.nll_nats, self.bytes, self.unknown)

    def to_json(self) -> dict[str, Any]:
        """Returns the object that `sglm eval --json` prints; inf and nan become None."""
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
