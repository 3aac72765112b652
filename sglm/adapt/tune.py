"""Chooses settings on a text, one after the other, each from a few values."""

from collections.abc import Callable
from typing import Any

import numpy as np

from sglm.adapt.build import Adaptation
from sglm.adapt.settings import values_tried
from sglm.errors import InputError
from sglm.scoring.predictor import Predictor


def tune(
    adaptation: Adaptation,
    perplexity_of: Callable[[Predictor[Any]], float],
    *,
    fixed: tuple[str, ...] = (),
    on_tried: Callable[[dict[str, Any], float], None] | None = None,
) -> dict[str, Any]:
    """Returns the settings with the lowest perplexity on a text, each chosen given those before it.

    Args:
        adaptation: Adaptation from whose settings the search starts; it is not changed.
        perplexity_of: Function from a predictor to its perplexity on the text.
        fixed: Names of settings that are not tuned.
        on_tried: Called with all settings of each trial and their perplexity.

    Raises:
        InputError: There is no setting left to choose.
    """
    best = dict(adaptation.settings)
    names = [n for n in best if n not in fixed and values_tried(n, best)]
    if not names:
        raise InputError(f"--tune: adaptation by {adaptation.kind} has nothing left to choose")

    def tried(settings: dict[str, Any]) -> float:
        ppl = perplexity_of(adaptation.predictor(**settings))
        if on_tried:
            on_tried(settings, ppl)
        return ppl if np.isfinite(ppl) else float("inf")

    lowest = tried(best)
    for name in names:
        for value in values_tried(name, best):
            if value != adaptation.settings[name]:
                settings = {**best, name: value}
                if (ppl := tried(settings)) < lowest:
                    best, lowest = settings, ppl
    return best
