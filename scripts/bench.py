"""How fast is a training step, and how fast could it be?

Five things are timed in turn, round after round, so that a busy moment of the machine hits all of
them; the median over the rounds is what counts:

floor          the matrix products of a step, and nothing else
plain          nn.LSTM, tied cross_entropy, clipping, fused AdamW: the loop that everybody writes
real           sglm's step, truncated backpropagation
real_learning  the same, while a synthesizer learns (the real cycles of an alternating run)
synthetic      the same, while what it says is injected (the synthetic cycles)

Shapes: T time, B lanes, V vocabulary, H units.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sglm.config import parse_config
from sglm.optim.precision import make_precision
from sglm.optim.schedule import Mode, StepPlan
from sglm.text.batcher import Upcoming, Window
from sglm.train.build import build_learner, lookahead_steps, stretch_windows
from sglm.train.step import train_step

Step = Callable[[], object]
Timer = Callable[[], float]  # does something and says how many seconds it took

WARMUP_ROUNDS = 3  # the first steps allocate memory and let libraries choose their kernels
FEWEST_ROUNDS = 5
QUICK_SECONDS, THOROUGH_SECONDS = 40, 150


@dataclass(frozen=True)
class Size:
    """Embedding and layers are equally wide, the embedding is tied."""

    layers: int = 2
    hidden: int = 256
    vocab_size: int = 7300
    batch: int = 20
    window: int = 35

    @property
    def tokens(self) -> int:
        return self.batch * self.window


def timed(step: Step) -> Timer:
    """The step, by the clock."""

    def measure_seconds() -> float:
        start = time.perf_counter()
        step()
        return time.perf_counter() - start

    return measure_seconds


def floor(size: Size) -> Timer:
    """A step's matrix products on tensors at hand: each forward one with its two backward ones.

    The recurrent products and their gradients in the state must wait for each other, step by step,
    B rows each; the gradients in the recurrent weights need not. Each product is run as often as a
    step needs it, and counts with its median.
    """
    H, V, B, T, L = size.hidden, size.vocab_size, size.batch, size.window, size.layers

    def products(rows: int, inputs: int, outputs: int) -> tuple[Step, Step, Step]:
        values, gradients = torch.randn(rows, inputs), torch.randn(rows, outputs)
        weight = torch.randn(outputs, inputs)
        out_values, out_gradients = torch.empty_like(values), torch.empty_like(gradients)
        out_weight = torch.empty_like(weight)
        return (
            lambda: torch.mm(values, weight.t(), out=out_gradients),
            lambda: torch.mm(gradients, weight, out=out_values),
            lambda: torch.mm(gradients.t(), values, out=out_weight),
        )

    forward, to_inputs, to_weights = products(T * B, H, 4 * H)
    recurrent_forward, to_state, _ = products(B, H, 4 * H)
    times_in_a_step = {forward: L, to_inputs: L, to_weights: 2 * L}
    times_in_a_step |= {recurrent_forward: T * L, to_state: T * L}
    times_in_a_step |= dict.fromkeys(products(T * B, H, V), 1)

    def measure_seconds() -> float:
        return sum(
            times * statistics.median(timed(product)() for _ in range(times))
            for product, times in times_in_a_step.items()
        )

    return measure_seconds


class PlainModel(nn.Module):
    """An LSTM language model as tutorials write it."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size.vocab_size, size.hidden)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.lstm = nn.LSTM(size.hidden, size.hidden, size.layers)
        self.decoder = nn.Linear(size.hidden, size.vocab_size)
        self.decoder.weight = self.embedding.weight

    def forward(
        self, inputs_TB: Tensor, state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        outputs_TBH, state = self.lstm(self.embedding(inputs_TB), state)
        return self.decoder(outputs_TBH), state


def plain(size: Size, window: Window) -> Step:
    """The ordinary training loop's step."""
    model = PlainModel(size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    zeros = torch.zeros(size.layers, size.batch, size.hidden)
    carried = [(zeros, zeros)]

    def step() -> None:
        hidden, cell = carried.pop()
        logits_TBV, state = model(window.inputs_TB, (hidden.detach(), cell.detach()))
        loss = F.cross_entropy(logits_TBV.flatten(0, 1), window.targets_TB.flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()
        carried.append(state)

    return step


def sglm_steps(size: Size, window: Window, schedule_mode: str, mode: Mode) -> Timer:
    """sglm's own step, its parts built as `sglm train` builds them.

    Timed over a whole stretch of windows, since the synthesizer reads and learns once in a stretch.
    """
    values = {
        "model": {"layers": size.layers, "hidden": size.hidden},
        "train": {"batch": size.batch, "window": size.window},
        "schedule": {"mode": schedule_mode},
    }
    device = torch.device("cpu")
    config = parse_config(values, "bench")
    counts_V = torch.bincount(window.targets_TB.flatten(), minlength=size.vocab_size).numpy()
    learner = build_learner(config, counts_V, make_precision("fp32", device), device)
    plan = StepPlan(lr_factor=1.0, mode=mode, cycle=0)
    stretch, ahead = stretch_windows(config), lookahead_steps(config)
    first = window
    if ahead is not None:
        ids_CB = torch.randint(size.vocab_size, (stretch * size.window + ahead + 1, size.batch))
        first = window._replace(upcoming=Upcoming(ids_CB[:-1], ids_CB[1:]))
    numbers = count()

    def measure_seconds() -> float:
        start = time.perf_counter()
        for place in range(stretch):
            train_step(learner, first if place == 0 else window, plan, next(numbers))
        return (time.perf_counter() - start) / stretch

    return measure_seconds


def measure(size: Size, seconds: float) -> dict[str, float]:
    """Tokens per second of each: the median over as many rounds as fit into so many seconds."""
    torch.manual_seed(0)
    ids_TB = torch.randint(size.vocab_size, (size.window + 1, size.batch))
    window = Window(ids_TB[:-1].contiguous(), ids_TB[1:].contiguous(), False, False)
    timers = {
        "floor": floor(size),
        "plain": timed(plain(size, window)),
        "real": sglm_steps(size, window, "real", Mode.REAL),
        "real_learning": sglm_steps(size, window, "alternating", Mode.REAL),
        "synthetic": sglm_steps(size, window, "alternating", Mode.SYNTHETIC),
    }
    taken: dict[str, list[float]] = {name: [] for name in timers}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < WARMUP_ROUNDS + FEWEST_ROUNDS or time.perf_counter() < end:
        for name, measure_seconds in timers.items():
            step_seconds = measure_seconds()
            if rounds >= WARMUP_ROUNDS:
                taken[name].append(step_seconds)
        rounds += 1
    return {
        f"{name}_tokens_per_s": round(size.tokens / statistics.median(times), 1)
        for name, times in taken.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="well under two minutes")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--window", type=int, help="T; left out: 35")
    arguments = parser.parse_args()
    size = Size()
    if arguments.window is not None:
        size = replace(size, window=arguments.window)
    result = measure(size, QUICK_SECONDS if arguments.quick else THOROUGH_SECONDS)
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"{size}, CPU, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print(f"{'':16}{'tokens/s':>10}{'ms/window':>11}{'of floor':>10}")
    for name, rate in result.items():
        share = rate / result["floor_tokens_per_s"]
        label = name.removesuffix("_tokens_per_s")
        print(f"{label:16}{rate:10,.0f}{1000 * size.tokens / rate:11.1f}{share:10.0%}")


if __name__ == "__main__":
    main()
