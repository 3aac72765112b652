"""What scoring a text and evaluating a model result in: likelihoods, and the measures of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sglm.scoring.metrics import bits_per_byte, finite_or_none, perplexity

Context = Literal["carried", "reset"]


@dataclass(frozen=True, kw_only=True)
class Score:
    """How probable a text is. `tokens`, `token_logprobs` and `unk` run in parallel."""

    tokens: list[str]
    """The scored tokens, readable."""
    token_logprobs: list[float]
    logprob: float
    """Their sum in nats (see `LanguageModel.extend` for the one exception)."""
    n_tokens: int
    n_words: int
    """Whitespace-separated words of the text."""
    n_bytes: int
    """UTF-8 bytes of the text."""
    unk: list[bool]
    """Which of the tokens stand for something outside the vocabulary."""
    ppl: float
    """exp(-logprob / n_tokens), per token; nan without tokens, as for the empty text."""
    bits_per_byte: float | None
    """-logprob / (n_bytes · ln 2); None without bytes or bos, and where `<unk>` hides bytes."""


def make_score(
    tokens: list[str],
    logprobs: list[float],
    unk: list[bool],
    *,
    n_words: int,
    n_bytes: int,
    hides_bytes: bool = False,
    withdrawn: Sequence[float] = (),
) -> Score:
    """From the scored tokens to the sums.

    Args:
        tokens, logprobs, unk: of the tokens, in parallel.
        n_words, n_bytes: of the text.
        hides_bytes: tokens beyond these stand for unknown text.
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
    )


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The likelihood of a text and the measures made of it.

    `words` and `bytes` are those of the original text, not of what the tokenizer made of it, so
    that models with different vocabularies compare (as in lm-evaluation-harness).
    """

    nll_nats: float
    """Sum over all tokens."""
    tokens: int
    words: int
    """Whitespace-separated."""
    bytes: int
    """In UTF-8."""
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

    @property
    def token_ppl(self) -> float:
        """exp(nats per token); inf beyond the range of floats."""
        return perplexity(self.nll_nats, self.tokens)

    @property
    def word_ppl(self) -> float:
        """exp(nats per word), comparable across tokenizers; nan without words."""
        return perplexity(self.nll_nats, self.words)

    @property
    def bits_per_byte(self) -> float | None:
        """None where `<unk>` stands in the text, for it hides bytes."""
        return bits_per_byte(self.nll_nats, self.bytes, self.unknown)

    def to_json(self) -> dict[str, Any]:
        """The object that `sglm eval --json` prints; infinite and undefined numbers are None."""
        return {
            "model": self.model,
            "split": self.split,
            "tokens": self.tokens,
            "words": self.words,
            "bytes": self.bytes,
            "nll_nats": finite_or_none(self.nll_nats),
            "token_ppl": finite_or_none(self.token_ppl),
            "word_ppl": finite_or_none(self.word_ppl),
            "bits_per_byte": finite_or_none(self.bits_per_byte),
            "context": self.context,
            "adapt": "none",
            "seconds": round(self.seconds, 3),
            "lines": self.lines,
            "lines_in_training": self.lines_in_training,
        }
