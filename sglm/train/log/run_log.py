"""The log of a run: writes to the console, to TensorBoard and to `metrics.jsonl`."""

import math
from collections.abc import Callable
from typing import Any, TextIO

from sglm.config import Config
from sglm.optim.schedule import Mode
from sglm.runtime.ranks import ALONE, Ranks
from sglm.scoring.metrics import finite_or_none, format_perplexity, perplexity
from sglm.scoring.results import Evaluation
from sglm.train.learner import Learner
from sglm.train.log.console import ConsoleLog
from sglm.train.log.lost_work import lost_work, restart_lines
from sglm.train.log.meter import IntervalMeans, IntervalMeter
from sglm.train.log.metrics import append_metrics
from sglm.train.log.norms import NormMeter
from sglm.train.log.tensorboard import EventFile, event_files
from sglm.train.progress import Progress
from sglm.train.run_folder import RunFolder
from sglm.train.sample import Sample
from sglm.train.step import StepResult

OnReport = Callable[[dict[str, Any]], None]

_GAUGED = ("sg/beta", "sg/parameter_cosine")


class RunLog:
    """The log of one session. It records what happens and decides nothing.

    Args:
        run: The run folder to write to.
        config: The configuration, for the HParams tab.
        total_steps: Number of steps of the whole run.
        first_step: Number of steps done before this session. What an interrupted session wrote to
            the curves after these is hidden, so that the curves continue without overlap.
        interval: The `interval_sums` in the checkpoint that the run continues from.
        norms: The meter of the learner's weights and updates, made with the same sums.
        files_before: Number of event files at that checkpoint.
        stream: The stream for progress: a bar on a terminal, plain lines elsewhere.
        on_report: Called with every validation and interval (see `sglm.train.loop.train`).
        ranks: The processes over which sums are taken; only rank 0 writes and reports.
    """

    def __init__(
        self,
        run: RunFolder,
        *,
        config: Config,
        total_steps: int,
        first_step: int,
        interval: dict[str, float],
        norms: NormMeter,
        files_before: int,
        stream: TextIO,
        on_report: OnReport | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.metrics = run.metrics
        self.on_report = on_report
        self.norms = norms
        own = {key: value for key, value in interval.items() if key not in norms.sums}
        self.meter = IntervalMeter(own, ranks=ranks)
        self.console = ConsoleLog(stream, total_steps=total_steps, first_step=first_step)
        self.events: EventFile | None = None
        self.gauge_begun = first_step > 0
        if not ranks.writes:
            return
        earlier = event_files(run.tensorboard)
        lost = lost_work(earlier[-1], first_step) if earlier else None
        self.events = EventFile(run.tensorboard, first_step=first_step, files_before=files_before)
        if not first_step:
            self.events.hyper_parameters(config)
        for line in restart_lines(first_step, total_steps, begun=bool(earlier), lost=lost):
            self.line(line)

    @property
    def event_files(self) -> int:
        """The number of event files, this session's included; 0 if another rank writes them."""
        return 0 if self.events is None else self.events.number

    def step(self, result: StepResult) -> None:
        """Adds one step to the next `interval`, without waiting for its numbers."""
        self.meter.add(result)

    def interval_sums(self) -> dict[str, float]:
        """Returns the sums over the steps since the last `interval` and over the norms since the
        last `evaluation`, for a checkpoint. All ranks must call this."""
        return self.meter.collect() | self.norms.collect()

    def interval(
        self,
        progress: Progress,
        learner: Learner,
        *,
        mode: Mode,
        cycle: int,
        rate: float,
    ) -> float:
        """Logs the steps since the last call.

        Args:
            progress: The progress after the last of them.
            learner: The learner after the last of them.
            mode, cycle, rate: The mode, cycle and learning rate of the last of them.

        Returns:
            Their mean loss in nats per token.
        """
        step, means = progress.step, self.meter.means()
        scalars = {
            "train/skipped_steps": float(progress.skipped),
            "sched/lr": rate,
            "sched/mode": float(mode is Mode.SYNTHETIC),
            "sched/cycle": float(cycle),
            **_scalars(means, learner),
        }
        if self.events is not None:
            for key, value in self.norms.read().items():
                layer, what = key.split("/")
                scalars[f"norm/{what}/{layer}"] = value
            for tag, value in (self._begin_gauge(learner) | scalars).items():
                self.events.scalar(tag, value, step)
            self.events.flush()
            self.console.progress(
                step,
                f"loss {means.loss:.3f}",
                f"cycle {cycle} {mode.value}",
                f"{means.tokens_per_s:,.0f} tokens/s",
                f"rate {rate:.2e}",
            )
            self._report(
                {
                    "step": step,
                    "tokens_seen": progress.tokens_seen,
                    "split": "train",
                    "nll_per_token": finite_or_none(means.loss),
                    "token_ppl": finite_or_none(perplexity(means.loss, 1)),
                    "lr": rate,
                    "mode": mode.value,
                    "cycle": cycle,
                    "seconds": round(progress.seconds, 3),
                    "tokens_per_s": means.tokens_per_s,
                }
            )
        self.meter.restart_clock()
        return means.loss

    def _begin_gauge(self, learner: Learner) -> dict[str, float]:
        """Returns a first point of zero for the gauge's curves, once: nothing was injected yet, and
        the curves should exist before the first measurement."""
        if learner.gauge is None or self.gauge_begun:
            return {}
        self.gauge_begun = True
        return dict.fromkeys(_GAUGED, 0.0)

    def evaluation(
        self,
        progress: Progress,
        evaluation: Evaluation,
        *,
        sample: Sample | None,
        mode: Mode,
        cycle: int,
        rate: float,
    ) -> None:
        """Logs a validation.

        Args:
            progress: The progress now, with this validation counted in its lowest loss.
            evaluation: The evaluation on the validation split.
            sample: A text that the model generates now, if there is one.
            mode, cycle, rate: The mode, cycle and learning rate of the last step.
        """
        if self.events is None:
            return
        step, best_nll = progress.step, progress.best_nll
        nll = evaluation.nll_nats / evaluation.tokens
        values = {
            "fit/valid_loss": nll,
            "fit/valid_ppl": evaluation.token_ppl,
            "fit/best_ppl": None if best_nll is None else perplexity(best_nll, 1),
            "valid/loss": nll,
            "valid/token_ppl": evaluation.token_ppl,
            "valid/bits_per_byte": evaluation.bits_per_byte,
        }
        for tag, value in values.items():
            if value is not None:
                self.events.scalar(tag, value, step)
        if sample is not None:
            self.events.text("sample/continuation", _markdown(sample), step)
        self.events.flush()
        line = {
            "step": step,
            "tokens_seen": progress.tokens_seen,
            "split": "valid",
            "nll_per_token": finite_or_none(nll),
            "token_ppl": finite_or_none(evaluation.token_ppl),
            "lr": rate,
            "mode": mode.value,
            "cycle": cycle,
            "seconds": round(progress.seconds, 3),
            "norms": self.norms.means(),
        }
        append_metrics(self.metrics, line)
        self.line(
            f"step {step:,}: validation perplexity {format_perplexity(evaluation.token_ppl)}"
            f" ({nll:.4f} nats per token)"
        )
        self._report(line)
        self.meter.restart_clock()

    def _report(self, line: dict[str, Any]) -> None:
        if self.on_report is not None:
            self.on_report(line)

    def line(self, text: str) -> None:
        """Prints a line on the console, on rank 0."""
        if self.events is not None:
            self.console.line(text)

    def flush(self) -> None:
        """Waits until everything logged so far is on the disk."""
        if self.events is not None:
            self.events.sync()

    def close(self) -> None:
        """Ends the session's log, without waiting until it is on the disk."""
        if self.events is not None:
            self.console.close()
            self.events.close()


def _scalars(means: IntervalMeans, learner: Learner) -> dict[str, float]:
    """Returns TensorBoard's points for an interval and the learner after it, by tag. All ranks must
    call this."""
    values = {
        "fit/train_loss": means.loss,
        "train/loss": means.loss,
        "train/grad_norm": means.grad_norm,
        "perf/tokens_per_s": means.tokens_per_s,
    }
    if learner.precision.scaler.is_enabled():
        values["amp/scale"] = float(learner.precision.loss_scale())
    values |= {f"sg/{name}": mean for name, mean in means.agreement.items()}
    status = learner.estimator.status()
    if status is not None:
        values["sg/factor"] = status.factor
    if learner.gauge is not None:
        reading = learner.gauge.reading()
        measured = zip(_GAUGED, (reading.beta, reading.cosine), strict=True)
        values |= {tag: value for tag, value in measured if not math.isnan(value)}
    return values


def _markdown(sample: Sample) -> str:
    """Returns the sample for TensorBoard's Text tab, indented so that nothing in it is markup."""
    return f"{_code(sample.start)}\n\nis continued:\n\n{_code(sample.continuation)}"


def _code(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
