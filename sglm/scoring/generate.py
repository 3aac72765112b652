"""Generation: a text is continued by drawing each token from the predicted distribution.

Shapes: T time, V vocabulary. Draws use a generator of their own, not torch's global one.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sglm.errors import InputError, SglmError
from sglm.scoring.arguments import real_number, whole_number
from sglm.scoring.predictor import Predictor
from sglm.scoring.stream import CHUNK_STEPS
from sglm.text.tokenizer import Tokenizer
from sglm.text.user_text import checked_bytes


def continue_text(
    predictor: Predictor[Any],
    tokenizer: Tokenizer,
    prompt: str,
    *,
    bos_id: int,
    tokens: int,
    temperature: float,
    top_p: float | None,
    seed: int | None,
) -> str:
    """Continues a text: see `LanguageModel.generate`."""
    checked_bytes(prompt)
    ids = tokenizer.encode(prompt)
    added = generate_ids(
        predictor,
        ids,
        bos_id=bos_id,
        eos_id=tokenizer.eos_id,
        tokens=tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        never=tokenizer.unwritten_ids,
        stop_at_eos=not tokenizer.eos_ends_lines,
    )
    # The prompt is returned as it was given, even if its tokens decode to something else.
    continuation = tokenizer.decode([*ids, *added])[len(tokenizer.decode(ids)) :]
    if not tokenizer.lossless and (not prompt or prompt[-1].isspace()):
        continuation = continuation.lstrip(" ")
    return prompt + continuation


def generate_ids(
    predictor: Predictor[Any],
    prompt: Sequence[int],
    *,
    bos_id: int,
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
        predictor: The model.
        prompt: The first ids of the text; may be empty.
        bos_id: The id that is read before the prompt, from the start state.
        eos_id: The id that ends the text if `stop_at_eos`; it is then not returned.
        tokens: The largest number of ids to draw.
        temperature: The divisor of the log-probabilities; 0 always takes the likeliest token.
        top_p: Draws only from the likeliest tokens that together have this probability
            (nucleus sampling, Holtzman et al. 2020). None: from all tokens.
        seed: Equal seeds give equal texts on one kind of machine. None: a different text each time.
        never: Ids that are never drawn.
        stop_at_eos: Whether the text ends when `eos_id` is drawn.

    Raises:
        InputError: The number of tokens is negative; the temperature, `top_p` or the seed is out of
            range; one of them is not a number.
        SglmError: The predicted log-probabilities are NaN, or no token can be drawn.
    """
    tokens = whole_number("the number of tokens", tokens)
    temperature = real_number("the temperature", temperature)
    top_p = None if top_p is None else real_number("top-p", top_p)
    seed = None if seed is None else whole_number("the seed", seed)
    _check(tokens, temperature, top_p=top_p, seed=seed)
    random = _generator(seed)
    never_drawn = torch.tensor([*never], dtype=torch.int64, device="cpu")
    ids: list[int] = []
    state = predictor.start(1)
    *before, inputs_T1 = _prompt_chunks([bos_id, *prompt])
    for chunk_T1 in before:
        _, state = predictor.read(chunk_T1, None, state)
    while len(ids) < tokens:
        blocks, state = predictor.distributions(inputs_T1, state, last_steps=1)
        [(_, logprobs_1V)] = blocks
        logprobs_V = logprobs_1V[0].double().cpu().index_fill(0, never_drawn, -math.inf)
        if not bool(logprobs_V.max() > -math.inf):  # NaN, or no possible token
            raise SglmError(
                "the model's prediction is not a number: its weights are far too large, because "
                "its training diverged; use an earlier snapshot"
            )
        drawn = _draw(logprobs_V, temperature, top_p=top_p, random=random)
        if drawn == eos_id and stop_at_eos:
            break
        ids.append(drawn)
        inputs_T1 = torch.tensor([[drawn]], device="cpu")
    return ids


def _generator(seed: int | None) -> torch.Generator:
    """Returns a generator on the CPU, so that the draws do not depend on the model's device."""
    random = torch.Generator("cpu")
    if seed is None:
        random.seed()
    else:
        random.manual_seed(seed)
    return random


def _check(tokens: int, temperature: float, *, top_p: float | None, seed: int | None) -> None:
    if tokens < 0:
        raise InputError(f"the number of tokens must not be negative, but is {tokens}")
    if not (math.isfinite(temperature) and temperature >= 0):
        raise InputError(f"the temperature must be 0 (greedy) or above, but is {temperature}")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError(f"top-p must be above 0 and at most 1, but is {top_p}")
    if seed is not None and not 0 <= seed < 2**63:
        raise InputError(f"the seed must be at least 0 and below 2**63, but is {seed}")


def _prompt_chunks(ids: Sequence[int]) -> Sequence[Tensor]:
    """Returns the prompt as `(T, 1)` inputs, in pieces that bound the memory."""
    return torch.split(torch.from_numpy(np.array(ids, dtype=np.int64))[:, None], CHUNK_STEPS)


def _draw(
    logprobs_V: Tensor, temperature: float, *, top_p: float | None, random: torch.Generator
) -> int:
    """Draws one id. Log-probabilities are float64, so that small temperatures do not overflow."""
    if temperature == 0:
        return int(logprobs_V.argmax())
    # The maximum is subtracted before the division: exp stays in range, however small the divisor.
    probabilities_V = ((logprobs_V - logprobs_V.max()) / temperature).softmax(0)
    if top_p is not None:
        sorted_V, order_V = probabilities_V.sort(descending=True, stable=True)
        # A token stays if those before it have not reached top_p yet: at least the first does.
        sorted_V[sorted_V.cumsum(0) - sorted_V >= top_p] = 0
        probabilities_V = torch.zeros_like(probabilities_V).scatter(0, order_V, sorted_V)
    return int(torch.multinomial(probabilities_V, 1, generator=random))
