r"""What makes a synthesizer work on text: one thing varied at a time, against the shipped defaults.

    python -m scripts.experiments.search data/wap --updates 4000 --window 5 --seeds 0,1 \
        --out runs/search

One JSON file per run in OUT; what is there is not run again, so arms and seeds can be added. The
table is printed at the end: validation loss, what the synthesizer explained, seconds.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from sglm.config import Config, load_config
from sglm.dni.estimator import StateGradientEstimator, StretchBeginning
from sglm.dni.learned import LearnedEstimator
from sglm.errors import InputError, SglmError, did_you_mean
from sglm.model.state import LSTMState
from sglm.optim.precision import make_precision
from sglm.scoring.predictor import NetworkPredictor
from sglm.scoring.stream import stream_nll
from sglm.storage.durable import replace_text
from sglm.text.store import TokenStore
from sglm.train.build import (
    build_batcher,
    build_decision_rule,
    build_estimator,
    build_learner,
    build_schedule,
    token_counts,
)
from sglm.train.step import train_step

EVALUATIONS = 4  # spread evenly over the run
CYCLES = (1 / 8, 7 / 8)  # shares of the run: real gradients first, then synthetic ones to the end
DOUBLING = (1 / 16, 1 / 16, 1 / 8, 1 / 4, 1 / 2)


class PartOnly(LearnedEstimator):
    """Injects into the hidden or the cell states alone."""

    part: ClassVar[str]

    def estimate(self, outgoing: LSTMState) -> Tensor:
        hidden_BH, cell_BH = super().estimate(outgoing).chunk(2, dim=1)
        kept = (hidden_BH, 0 * cell_BH) if self.part == "hidden" else (0 * hidden_BH, cell_BH)
        return torch.cat(kept, dim=1)


class HiddenOnly(PartOnly):
    part = "hidden"


class CellOnly(PartOnly):
    part = "cell"


class MixedReturns(LearnedEstimator):
    """Teaches λ-returns instead of exact gradients: at every boundary of the stretch, λ of what the
    later windows really send back and 1 − λ of what the synthesizer predicts, in one backward pass
    (λ-mixtures: Pemberton & Costa 2024)."""

    share: ClassVar[float]

    def exact_gradients(
        self, beginning: StretchBeginning, boundaries: int
    ) -> tuple[Tensor, Tensor]:
        model, state, coming, window = beginning
        summaries, states_PBS = self.stretch.summaries, [state.packed().requires_grad_()]
        widths, injected = list(model.shape.widths) * 2, torch.zeros(())
        features = []
        for index in range(boundaries):
            packed_BS = states_PBS[-1]
            if index > 0:
                with torch.no_grad():
                    context = None if summaries is None else summaries[index]
                    s_BS = self.synthesizer(packed_BS, context).gradient_BS * self.trust.unit
                injected = injected + (1 - self.share) * (packed_BS * s_BS).sum()
                packed_BS = packed_BS.detach() + self.share * (packed_BS - packed_BS.detach())
            parts = torch.split(packed_BS, widths, dim=1)
            half = len(parts) // 2
            end = (index + 1) * window if index + 1 < boundaries else len(coming.inputs_CB)
            outputs, left = model.features(
                coming.inputs_CB[index * window : end], LSTMState(parts[:half], parts[half:])
            )
            features.append(outputs)
            states_PBS.append(left.packed())
        objective = model.nll(torch.cat(features), coming.targets_CB) + injected
        gradients = torch.autograd.grad(objective, states_PBS[:-1])
        return torch.stack([each.detach() for each in states_PBS[:-1]]), torch.stack(gradients)


class HalfReturns(MixedReturns):
    share = 0.5


class MostlyReturns(MixedReturns):
    share = 0.9


class Arm(NamedTuple):
    """What is changed: settings, the estimator, the optimizer at the restart, or the cycles.

    Attributes:
        forgets_moments: the model's optimizer starts afresh when the rate restarts.
    """

    settings: tuple[str, ...] = ()
    estimator: type[LearnedEstimator] = LearnedEstimator
    forgets_moments: bool = False
    cycles: tuple[float, ...] = CYCLES


ARMS: dict[str, Arm] = {
    "lookahead (default)": Arm(),
    "bptt": Arm(("schedule.mode=real",)),
    "noise": Arm(("synthesizer.inject=noise",)),
    "mlp": Arm(("synthesizer.kind=mlp",)),
    "mlp, factor 0.1": Arm(("synthesizer.kind=mlp", "synthesizer.factor=0.1")),
    "mlp, factor 1": Arm(("synthesizer.kind=mlp", "synthesizer.factor=1.0")),
    "linear": Arm(("synthesizer.kind=linear",)),
    "factor 0.1": Arm(("synthesizer.factor=0.1",)),
    "factor 0.5": Arm(("synthesizer.factor=0.5",)),
    "factor 1": Arm(("synthesizer.factor=1.0",)),
    "factor 1, no bound": Arm(("synthesizer.factor=1.0", "synthesizer.trust_bound=false")),
    "no bound": Arm(("synthesizer.trust_bound=false",)),
    "32 units": Arm(("synthesizer.hidden=32",)),
    "128 units": Arm(("synthesizer.hidden=128",)),
    "256 units": Arm(("synthesizer.hidden=256",)),
    "rate 5e-4": Arm(("synthesizer.learning_rate=5e-4",)),
    "rate 5e-3": Arm(("synthesizer.learning_rate=5e-3",)),
    "reads 5": Arm(("synthesizer.lookahead=5",)),
    "reads 20": Arm(("synthesizer.lookahead=20",)),
    "reads 40": Arm(("synthesizer.lookahead=40",)),
    "auxiliary": Arm(("synthesizer.auxiliary=true",)),
    "taught 1 in 2": Arm(("synthesizer.teach_every=2",)),
    "taught 1 in 8": Arm(("synthesizer.teach_every=8",)),
    "taught λ-returns, λ = 0.5": Arm(("synthesizer.teach_every=2",), HalfReturns),
    "taught λ-returns, λ = 0.9": Arm(("synthesizer.teach_every=2",), MostlyReturns),
    "hidden only": Arm(estimator=HiddenOnly),
    "cell only": Arm(estimator=CellOnly),
    "moments reset": Arm(forgets_moments=True),
    "synthetic throughout": Arm(('schedule.mode="synthetic"',), cycles=(1.0,)),
    "bptt, one cycle": Arm(("schedule.mode=real",), cycles=(1.0,)),
    "halves": Arm(cycles=(1 / 2, 1 / 2)),
    "halves, synthetic first": Arm(('schedule.start="synthetic"',), cycles=(1 / 2, 1 / 2)),
    "bptt, halves": Arm(("schedule.mode=real",), cycles=(1 / 2, 1 / 2)),
    "doubling": Arm(cycles=DOUBLING),
    "doubling, synthetic first": Arm(('schedule.start="synthetic"',), cycles=DOUBLING),
    "bptt, doubling": Arm(("schedule.mode=real",), cycles=DOUBLING),
}


def configure(arm: Arm, window: int, updates: int, seed: int) -> Config:
    """One layer of 200 units, 20 lanes: small enough to train in a minute or two on one core."""
    cycles = [share * updates for share in arm.cycles]
    return load_config(
        "tiny",
        [
            "model.hidden=200",
            "dropout.input=0.0",
            "dropout.output=0.1",
            "optimizer.weight_decay=0.0",
            "train.batch=20",
            f"train.window={window}",
            f"train.seed={seed}",
            'schedule.unit="steps"',
            f"schedule.cycles={cycles}",
            *arm.settings,
        ],
    )


def train(store: TokenStore, name: str, window: int, updates: int, seed: int) -> dict[str, Any]:
    """One run: losses in nats per token over updates, and what the synthesizer was like."""
    arm = ARMS[name]
    config = configure(arm, window, updates, seed)
    device = torch.device("cpu")
    batcher = build_batcher(config, store)
    schedule = build_schedule(config, batcher.steps_per_epoch)
    rule = build_decision_rule(config)
    learner = build_learner(
        config,
        token_counts(store),
        make_precision("fp32", device),
        make_estimator=partial(build_estimator, learned=arm.estimator),
    )
    valid_N, eos_id = store.ids("valid"), store.tokenizer().eos_id
    curve, seconds, begin = [], 0.0, time.perf_counter()
    for step in range(schedule.total_steps):
        if arm.forgets_moments and step == schedule.cycle_ends[0]:
            learner.optimizer.state.clear()
        plan, ids = schedule.at(step), batcher.at(step)
        decision = rule.decide(step, plan, ids)
        train_step(learner, ids, decision, learning_rate=learner.rate(plan))
        if (step + 1) % max(1, schedule.total_steps // EVALUATIONS) == 0:
            seconds += time.perf_counter() - begin
            nats = stream_nll(NetworkPredictor(learner.model), valid_N, eos_id)
            curve.append([step + 1, nats / len(valid_N), *measures(learner.estimator)])
            begin = time.perf_counter()
    return {"arm": name, "seed": seed, "updates": updates, "window": window} | {
        "corpus": store.fingerprint,
        "settings": list(arm.settings),
        "curve": curve,
        "seconds": round(seconds, 1),
    }


def measures(estimator: StateGradientEstimator) -> list[float]:
    """Share explained, and the factor used."""
    status = estimator.status()
    return [] if status is None else [status.explained, status.factor]


def table(results: Iterable[dict[str, Any]]) -> str:
    """Means over seeds; the difference to the default is paired by seed."""
    by_arm: dict[str, dict[int, dict[str, Any]]] = {}
    for result in results:
        by_arm.setdefault(result["arm"], {})[result["seed"]] = result
    default = by_arm.get("lookahead (default)", {})
    lines = [
        "| arm | validation loss | minus default | explained | factor | seconds | seeds |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in ARMS:
        runs = by_arm.get(name, {})
        if not runs:
            continue
        ends = {seed: run["curve"][-1] for seed, run in runs.items()}
        gaps = [
            end[1] - default[seed]["curve"][-1][1] for seed, end in ends.items() if seed in default
        ]
        measured = [end[2:] for end in ends.values() if len(end) > 2]
        cells = [
            name,
            f"{statistics.mean(end[1] for end in ends.values()):.4f}",
            ", ".join(f"{gap:+.4f}" for gap in gaps),
            f"{100 * statistics.mean(m[0] for m in measured):.1f} %" if measured else "",
            f"{statistics.mean(m[1] for m in measured):.2f}" if measured else "",
            f"{statistics.mean(run['seconds'] for run in runs.values()):.0f}",
            str(len(runs)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.experiments.search", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--arms", help="Separated by ';'. Default: all of them.")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--window", type=int, default=5)
    parser.add_argument("--updates", type=int, default=4000)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # so that two can run at once
    try:
        print(table(search(arguments)))
    except (SglmError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))


def search(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Trains what is not there yet; returns all results in the folder.

    Raises:
        InputError: no such arm; a seed that is no number; a file is there, but from other settings.
    """
    store = TokenStore.open(arguments.data)
    names = arguments.arms.split(";") if arguments.arms else list(ARMS)
    for name in names:
        if name not in ARMS:
            raise InputError(f"no arm {name!r}{did_you_mean(name, ARMS)}")
    seeds = arguments.seeds.split(",")
    if not all(seed.isdecimal() for seed in seeds):
        raise InputError(f"--seeds {arguments.seeds}: write it as 0,1,2")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for seed, name in product(map(int, seeds), names):
        slug = name.replace(" ", "-").replace(",", "").replace("(", "").replace(")", "")
        path = arguments.out / f"{slug}-seed{seed}.json"
        if not path.exists():
            result = train(store, name, arguments.window, arguments.updates, seed)
            replace_text(path, json.dumps(result, indent=1) + "\n")
    results = [json.loads(path.read_text()) for path in sorted(arguments.out.glob("*.json"))]
    wanted = (arguments.window, arguments.updates, store.fingerprint)
    for result in results:
        if (result["window"], result["updates"], result["corpus"]) != wanted:
            raise InputError(
                f"{arguments.out}: {result['arm']} was made with another window, number of updates"
                " or corpus; give another --out"
            )
    return results


if __name__ == "__main__":
    main()
