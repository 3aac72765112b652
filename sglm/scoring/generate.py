"""Continuing a text: one token after the other, drawn from the model's own prediction.

Shapes: V vocabulary. Draws come from a generator of their own: torch's global one is not touched.
"""

import math
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from sglm.errors import InputError, SglmError
from sglm.model.language_model import LSTMLanguageModel
from sglm.scoring.stream import CHUNK_STEPS, evaluating


def generate_ids(
    model: LSTMLanguageModel,
    prompt: Sequence[int],
    *,
    eos_id: int,
    tokens: int,
    temperature: float,
    top_p: float | None,
    seed: int | None,
    never: Collection[int] = (),
    stop_at_eos: bool = True,
) -> list[int]:
    """Draws up to `tokens` ids that follow the prompt.

    Args:
        model: in any mode; left as it is.
        prompt: read from the zero state after `<eos>`; may be empty.
        eos_id: see above; ends the text if `stop_at_eos`, and is then not returned.
        tokens: how many to draw.
        temperature: divides the logits; 0 always takes the likeliest token.
        top_p: draws only from the likeliest tokens that together have this probability
            (nucleus sampling, Holtzman et al. 2020); None: from all.
        seed: equal seeds give equal texts on one kind of machine; None: different every time.
        never: ids that are not drawn.

    Raises:
        InputError: a negative number of tokens, or a temperature or `top_p` out of range.
        SglmError: the model predicts nothing that is a number.
    """
    if tokens < 0:
        raise InputError(f"the number of tokens must not be negative, but is {tokens}")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise InputError(f"the temperature must be 0 (greedy) or above, but is {temperature}")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"top-p must be above 0 and at most 1, but is {top_p}")
    if seed is not None and not 0 <= seed < 2**63:
        raise InputError(f"the seed must be at least 0 and below 2**63, but is {seed}")
    # On the CPU always: a seed then means the same draws wherever the network runs.
    random = torch.Generator("cpu")
    if seed is None:
        random.seed()
    else:
        random.manual_seed(seed)
    device = model.embedding.device
    ids: list[int] = []
    with evaluating(model):
        state = model.start_state(1)
        for inputs in _prompt_chunks([eos_id, *prompt]):
            features_TBH, state = model.features(inputs.to(device), state)
        while len(ids) < tokens:
            logits_V = model.logits(features_TBH[-1, 0]).double().cpu()
            if not bool(torch.isfinite(logits_V).all()):
                raise SglmError(
                    "the model's prediction is no number: its weights are far too large, its "
                    "training diverged; take an earlier snapshot"
                )
            logits_V[list(never)] = -math.inf
            drawn = _draw(logits_V, temperature, top_p, random)
            if drawn == eos_id and stop_at_eos:
                break
            ids.append(drawn)
            features_TBH, state = model.features(torch.tensor([[drawn]], device=device), state)
    return ids


def _prompt_chunks(ids: Sequence[int]) -> Sequence[Tensor]:
    """The prompt as `(T, 1)` inputs, in pieces that bound the memory."""
    return torch.split(torch.from_numpy(np.array(ids, dtype=np.int64))[:, None], CHUNK_STEPS)


def _draw(
    logits_V: Tensor, temperature: float, top_p: float | None, random: torch.Generator
) -> int:
    """One id; float64 in, so that small temperatures do not overflow."""
    if temperature == 0:
        return int(logits_V.argmax())
    # The largest becomes 0 before the division: exp stays in range however small the divisor is.
    probabilities_V = ((logits_V - logits_V.max()) / temperature).softmax(0)
    if top_p is not None:
        sorted_V, order_V = probabilities_V.sort(descending=True, stable=True)
        # A token stays if those before it have not reached top_p yet: at least the first does.
        sorted_V[sorted_V.cumsum(0) - sorted_V >= top_p] = 0
        probabilities_V = torch.zeros_like(probabilities_V).scatter(0, order_V, sorted_V)
    return int(torch.multinomial(probabilities_V, 1, generator=random))
