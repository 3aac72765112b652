"""Measures that are computed from a negative log-likelihood in nats."""

import math


def perplexity(nll_nats: float, units: int | None) -> float:
    """Returns exp(nll_nats / units): inf beyond the range of floats, nan without units (None: their
    number is unknown)."""
    if units is None or units <= 0:
        return math.nan
    try:
        return math.exp(nll_nats / units)
    except OverflowError:
        return math.inf


def format_perplexity(value: float) -> str:
    """Formats a perplexity. Large ones get an exponent: that of a model that has diverged may have
    hundreds of digits."""
    return f"{value:,.2f}" if value < 1e7 else f"{value:.3g}"


def bits_per_byte(nll_nats: float, text_bytes: int | None, unknown: int) -> float | None:
    """Returns nll_nats / (bytes · ln 2); None if there are no bytes, or if unknown tokens stand for
    some of them."""
    if unknown or not text_bytes:
        return None
    return nll_nats / (text_bytes * math.log(2)) + 0.0  # not −0


def finite_or_none(value: float | None) -> float | None:
    """Replaces inf and nan, which JSON lacks, by None."""
    return value if value is not None and math.isfinite(value) else None
