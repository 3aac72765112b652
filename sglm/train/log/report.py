"""What a run says of itself: TensorBoard, `metrics.jsonl`, and lines on the console."""

import json
import math
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from torch import Tensor
from torch.utils.tensorboard.summary import hparams

from sglm.config import Config
from sglm.optim.schedule import Mode, StepPlan
from sglm.runtime.ranks import ALONE, Ranks
from sglm.scoring.metrics import finite_or_none
from sglm.scoring.results import Evaluation
from sglm.storage.durable import replace_text, sync
from sglm.storage.untrusted import read_bounded
from sglm.train.log.event_file import EventFile
from sglm.train.run_folder import RunFolder
from sglm.train.step import Learner, StepResult

_AGREEMENT = ("cosine", "relative_mse", "norm_ratio")
_BAR_WIDTH = 20
_LARGEST_METRICS_BYTES = 1 << 28  # a million evaluations


class Report:
    """Writes down what happens; decides nothing.

    Args:
        run: where to write.
        config: for the HParams tab.
        total_steps: of the whole run.
        first_step: steps done before this session; curves that an interrupted session wrote after
            them are hidden, so that they continue without overlap.
        interval: `interval_sums` of the checkpoint that is continued.
        event_files: how many there were at that checkpoint.
        console: where progress goes; a bar on a terminal, plain lines elsewhere.
        ranks: their sums are added up; only rank 0 writes and speaks.
    """

    def __init__(
        self,
        run: RunFolder,
        config: Config,
        total_steps: int,
        first_step: int,
        interval: dict[str, float],
        event_files: int,
        console: TextIO,
        ranks: Ranks = ALONE,
    ) -> None:
        self.total_steps = total_steps
        self.first_step = first_step
        self.console = console
        self.metrics = run.metrics
        self.session_started = self.interval_started = time.monotonic()
        self.interval_tokens = 0
        self.sums = dict(interval)
        self.waiting: list[StepResult] = []
        self.ranks = ranks
        self.events: EventFile | None = None
        if not ranks.writes:
            return
        self.events = EventFile(run.tensorboard, first_step, event_files)
        if first_step:
            self.say(f"continuing at step {first_step:,} of {total_steps:,}")
        else:
            self._hyper_parameters(config, self.events)

    def _hyper_parameters(self, config: Config, events: EventFile) -> None:
        # torch's SummaryWriter would open a second run for them; the same three records go here.
        values = {
            f"{section}.{key}": value if isinstance(value, bool | int | float) else str(value)
            for section, keys in config.model_dump().items()
            for key, value in keys.items()
        }
        records: Any = hparams  # torch has no types for it
        for record in records(values, {"valid/token_ppl": 0.0, "valid/loss": 0.0}):
            events.summary(record)

    def step(self, result: StepResult) -> None:
        """Keeps one step for the next `interval`, without waiting for its numbers."""
        self.waiting.append(result)
        self.interval_tokens += result.tokens * self.ranks.count

    @property
    def event_files(self) -> int:
        """How many there are now, with this session's; 0 where another rank writes them."""
        return 0 if self.events is None else self.events.number

    def interval_sums(self) -> dict[str, float]:
        """Sums over the steps since the last `interval`; a checkpoint takes them along.

        To be called by all ranks: likelihoods are added up over them.
        """
        nats = self.ranks.totals([float(result.nll_nats) for result in self.waiting])
        for result, nll_nats in zip(self.waiting, nats, strict=True):
            if math.isfinite(nll_nats):  # else the step was skipped
                self._add("nll_nats", nll_nats)
                self._add("tokens", result.tokens * self.ranks.count)
            if result.agreement is not None and result.agreement.relative_mse.isfinite():
                self._add("probes", 1)
                for name in _AGREEMENT:
                    self._add(name, getattr(result.agreement, name))
            self.sums["grad_norm"] = float(result.grad_norm)
        self.waiting = []
        return dict(self.sums)

    def _add(self, name: str, value: float | Tensor) -> None:
        self.sums[name] = self.sums.get(name, 0.0) + float(value)

    def interval(self, step: int, plan: StepPlan, learner: Learner, skipped: int = 0) -> float:
        """Reports the steps since the last call.

        Args:
            step: steps done.
            plan: of the last one.
            learner: after it.
            skipped: how many of all steps changed nothing.

        Returns:
            Their mean loss in nats per token.
        """
        sums = self.interval_sums()
        loss = sums["nll_nats"] / sums["tokens"] if "tokens" in sums else math.nan
        speed = self.interval_tokens / max(time.monotonic() - self.interval_started, 1e-9)
        values = {
            "train/loss": loss,
            "train/grad_norm": sums["grad_norm"],
            "train/skipped_steps": float(skipped),
            "sched/lr": learner.rate(plan),
            "sched/mode": float(plan.mode is Mode.SYNTHETIC),
            "sched/cycle": float(plan.cycle),
            "perf/tokens_per_s": speed,
            "amp/scale": float(learner.precision.loss_scale()),
        }
        if "probes" in sums:
            values |= {f"sg/{name}": sums[name] / sums["probes"] for name in _AGREEMENT}
        if learner.boundary is not None:
            values["sg/factor"] = float(learner.boundary.factor)
        if self.events is not None:
            for tag, value in values.items():
                self.events.scalar(tag, value, step)
            self.events.flush()
            self._progress(step, plan, loss, learner.rate(plan), speed)
        self.sums = {}
        self.interval_started, self.interval_tokens = time.monotonic(), 0
        return loss

    def evaluation(
        self,
        step: int,
        tokens_seen: int,
        plan: StepPlan,
        rate: float,
        found: Evaluation,
        seconds: float,
    ) -> None:
        """Reports a validation after `seconds` of training."""
        if self.events is None:
            return
        nll = found.nll_nats / found.tokens
        self.events.scalar("valid/loss", nll, step)
        self.events.scalar("valid/token_ppl", found.token_ppl, step)
        if found.bits_per_byte is not None:
            self.events.scalar("valid/bits_per_byte", found.bits_per_byte, step)
        line = {
            "step": step,
            "tokens_seen": tokens_seen,
            "split": "valid",
            "nll_per_token": finite_or_none(nll),
            "token_ppl": finite_or_none(found.token_ppl),
            "lr": rate,
            "mode": plan.mode.value,
            "cycle": plan.cycle,
            "seconds": round(seconds, 3),
        }
        is_new = not self.metrics.exists()
        with open(self.metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            sync(self.metrics.parent)
        self.say(
            f"step {step:,}: validation perplexity {found.token_ppl:.2f}"
            f" ({nll:.4f} nats per token), cycle {plan.cycle} {plan.mode.value}"
        )
        self.interval_started, self.interval_tokens = time.monotonic(), 0

    def say(self, text: str) -> None:
        """A line on the console; a bar that stands there gives way."""
        if self.events is not None:
            clear = "\r\x1b[2K" if _is_terminal(self.console) else ""
            print_if_heard(f"{clear}{text}\n", self.console)

    def _progress(self, step: int, plan: StepPlan, loss: float, rate: float, speed: float) -> None:
        seconds_per_step = (time.monotonic() - self.session_started) / (step - self.first_step)
        text = (
            f"step {step:,}/{self.total_steps:,}  cycle {plan.cycle} {plan.mode.value}"
            f"  loss {loss:.3f}  rate {rate:.2e}  {speed:,.0f} tokens/s"
            f"  {duration(seconds_per_step * (self.total_steps - step))} left"
        )
        if not _is_terminal(self.console):
            print_if_heard(f"{text}\n", self.console)
            return
        filled = round(_BAR_WIDTH * step / self.total_steps)
        bar = "█" * filled + "░" * (_BAR_WIDTH - filled)
        columns = os.get_terminal_size(self.console.fileno()).columns
        print_if_heard(f"\r\x1b[2K{f'{bar} {text}'[: columns - 1]}", self.console)

    def flush(self) -> None:
        """What was reported so far reaches the disk."""
        if self.events is not None:
            self.events.sync()

    def close(self) -> None:
        """Ends the report; everything is on disk after this."""
        if self.events is None:
            return
        if _is_terminal(self.console):
            print_if_heard("\n", self.console)
        self.events.close()


def print_if_heard(text: str, console: TextIO) -> None:
    """Prints, if anybody is there to read: a terminal that was closed, or a pipe whose reader has
    gone, must not end what takes days."""
    with suppress(OSError, ValueError):  # ValueError: the stream itself is closed
        print(text, end="", file=console, flush=True)


def _is_terminal(console: TextIO) -> bool:
    with suppress(OSError, ValueError):
        return console.isatty()
    return False


def drop_later_lines(metrics: Path, step: int) -> None:
    """Drops lines of steps after `step`, and a line that a crash cut off."""
    if not metrics.exists():
        return
    kept = []
    raw = read_bounded(metrics, _LARGEST_METRICS_BYTES)
    for line in raw.decode(errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
    replace_text(metrics, "".join(kept))


def duration(seconds: float) -> str:
    """`m:ss`, or `h:mm:ss` from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
