"""Measures of a likelihood, from its nats."""

import math


def perplexity(nll_nats: float, units: int | None) -> float:
    """exp(nll_nats / units); inf where that leaves the range of floats, nan for no units at all or
    an unknown number (None)."""
    if units is None or units <= 0:
        return math.nan
    try:
        return math.exp(nll_nats / units)
    except OverflowError:
        return math.inf


def shown(value: float) -> str:
    """A perplexity for people; of a model that has diverged it may have hundreds of digits."""
    return f"{value:,.2f}" if value < 1e7 else f"{value:.3g}"


def bits_per_byte(nll_nats: float, text_bytes: int | None, unknown: int) -> float | None:
    """nll_nats / (bytes · ln 2); None where an unknown token hides bytes, or there are none."""
    if unknown or not text_bytes:
        return None
    return nll_nats / (text_bytes * math.log(2)) + 0.0  # not −0


def finite_or_none(value: float | None) -> float | None:
    """JSON has neither inf nor nan."""
    return value if value is not None and math.isfinite(value) else None
