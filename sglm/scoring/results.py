"""What a scored text comes to."""

from collections.abc import Sequence
from dataclasses import dataclass

from sglm.scoring.evaluate import bits_per_byte, perplexity


@dataclass(frozen=True)
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
