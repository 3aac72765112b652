"""A session of training: how it begins from the run folder, and how it is saved there."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from typing import TextIO

import torch
from torch import Tensor

from sglm.config import Config
from sglm.errors import ConfigError, InputError, SglmError, as_sglm_error
from sglm.optim.precision import Precision
from sglm.optim.schedule import Schedule
from sglm.runtime.ranks import Ranks
from sglm.runtime.terminal import print_while_open
from sglm.storage.checkpoint import (
    Checkpoint,
    put_damaged_aside,
    random_state,
    restore_random_state,
)
from sglm.text.batcher import Batcher
from sglm.text.store import TokenStore
from sglm.train.learner import Learner, capture, restore
from sglm.train.log.metrics import drop_later_lines
from sglm.train.log.norms import NormMeter
from sglm.train.log.run_log import OnReport, RunLog
from sglm.train.progress import Diverged, Progress
from sglm.train.record import keep_training_lines, record_session
from sglm.train.run_folder import RunFolder
from sglm.train.runaway import RunawayWatch
from sglm.train.save_timer import SaveTimer
from sglm.train.starting_point import StartingPoint
from sglm.train.window_decision import DecisionRule


@dataclass(frozen=True, kw_only=True)
class Job:
    """The whole training run, from its first step to its last; see `sglm.train.loop.train`.

    Attributes:
        rule: The rule by which the run decides for each window.
        stop_signal, on_report: The functions of this process, which ranks do not share.
        start: The model whose weights the first step starts from. None: random weights.
    """

    config: Config
    store: TokenStore
    run: RunFolder
    batcher: Batcher
    schedule: Schedule
    rule: DecisionRule
    precision: Precision
    console: TextIO
    ranks: Ranks
    stop_signal: Callable[[], int | None]
    start: StartingPoint | None = None
    on_report: OnReport | None = None

    @property
    def evaluate_every(self) -> int:
        """The number of steps from one validation to the next."""
        return self.config.train.evaluate_every_steps or self.batcher.steps_per_epoch

    def is_asked_to_stop(self) -> bool:
        """Returns whether a signal has come to any of the ranks, all of which must call this."""
        return self.ranks.maximum(self.stop_signal() or 0) > 0


@dataclass(frozen=True, kw_only=True)
class Session:
    """The state of one process while it trains, from a checkpoint or from the start.

    Attributes:
        started: The reading of the monotonic clock at which the session began, minus the seconds of
            previous sessions.
        first_step: Number of steps done before this session.
        taken: For each step since the last `count_skips`, whether it updated anything; on the
            device.
        save_timer: The timer of checkpoints; only that of rank 0 counts.
    """

    job: Job
    learner: Learner
    progress: Progress
    runaway: RunawayWatch
    log: RunLog
    started: float
    first_step: int
    taken: list[Tensor] = field(default_factory=list)
    save_timer: SaveTimer = field(default_factory=SaveTimer)

    def poll_requests(self) -> tuple[int | None, bool]:
        """Returns what all ranks are asked to do before the next step; all of them must call this.

        Returns:
            `(signal number, save)`: The number of the signal that asked one of them to stop, or
            None; and whether a checkpoint is due.
        """
        save = self.job.ranks.writes and self.save_timer.due()
        number, save_everywhere = self.job.ranks.maxima([self.job.stop_signal() or 0, int(save)])
        return number or None, bool(save_everywhere)

    def count_skips(self) -> None:
        """Counts the skipped steps since the last call; waits for the device.

        Raises:
            Diverged: See `Progress.count_skips`.
        """
        if self.taken:
            taken = torch.stack(self.taken).tolist()
            self.taken.clear()
            self.progress.count_skips(taken)

    def save(self) -> None:
        """Saves a checkpoint; everything logged before it reaches the disk first.

        All ranks must call this.

        Raises:
            Diverged: Too many steps were skipped, or a weight is not finite, so that this would be
                no state to go back to.
        """
        with self.save_timer.saving():
            self._save()

    def _save(self) -> None:
        self.count_skips()
        if not all_finite(self.learner.model):
            raise Diverged
        self.log.flush()
        state = {
            "precision": self.learner.precision.name,
            "learner": capture(self.learner),
            "random": random_state(),
            "progress": asdict(self.progress),
            "runaway": asdict(self.runaway),
            "interval": self.log.interval_sums(),
        }
        if self.learner.ranks.writes:
            keep = self.job.config.train.keep_checkpoints
            self.job.run.save_checkpoint(self.progress.step, state, keep)
        self.learner.ranks.wait()


def all_finite(model: torch.nn.Module) -> bool:
    """Returns whether every weight is a finite number; waits for the device."""
    return all(bool(weight.isfinite().all()) for weight in model.parameters())


@contextmanager
def opened(job: Job, resume: bool) -> Iterator[None]:
    """Has rank 0 open the run folder and hold it until the block ends; all fail if it cannot.

    Raises:
        ConfigError, InputError: See `RunFolder.opened`.
    """
    with ExitStack() as kept:
        refusal: SglmError | None = None
        if job.ranks.writes:
            try:
                opening = job.run.opened(job.config, job.store, resume=resume, start=job.start)
                kept.enter_context(opening)
            except SglmError as error:
                refusal = error
        refused = job.ranks.maximum(0 if refusal is None else 1)
        if refusal is not None:
            raise refusal
        if refused:
            raise ConfigError(f"{job.run.path}: cannot be used; the first process says why")
        yield


def newest_checkpoint(job: Job) -> Checkpoint | None:
    """Reads the checkpoint to continue from, the same on all ranks; None if there is none.

    Args:
        job: The job, with its run folder open.

    Raises:
        InputError: The checkpoints are damaged.
        ConfigError: The ranks see different folders.
    """
    checkpoint = job.run.load_checkpoint()
    if not job.ranks.agree(-1 if checkpoint is None else checkpoint.step):
        raise ConfigError(
            f"{job.run.path}: not the same folder for all processes; give one that they share"
        )
    return checkpoint


def progress_of(job: Job, checkpoint: Checkpoint | None) -> Progress:
    """Returns the progress of the run at the checkpoint, or at its start if there is none.

    Raises:
        InputError: The checkpoint is intact, but does not belong to this run.
    """
    with _refusing_foreign_checkpoint(job.run, checkpoint):
        return Progress() if checkpoint is None else Progress(**checkpoint.state["progress"])


def begin(job: Job, learner: Learner, checkpoint: Checkpoint | None) -> Session:
    """Begins a session: restores the learner from the checkpoint, and drops what was logged later.

    Args:
        job: The job, with its run folder open.
        learner: The learner as it is before the first step.
        checkpoint: The checkpoint to continue from; None: from the start.

    Raises:
        InputError: The checkpoint does not belong to this run.
        ConfigError: The run was trained in another precision.
    """
    run, ranks, progress = job.run, job.ranks, progress_of(job, checkpoint)
    runaway, interval = RunawayWatch(), dict[str, float]()
    with _refusing_foreign_checkpoint(run, checkpoint):
        if checkpoint is not None:
            state = checkpoint.state
            _check_precision(run, state["precision"], learner.precision.name)
            restore(learner, state["learner"])
            restore_random_state(state["random"])
            runaway, interval = RunawayWatch(**state["runaway"]), state["interval"]
    if ranks.writes:
        _prepare_folder(job, learner, progress)
    ranks.wait()  # all ranks have read the folder before this session logs or saves anything
    log = RunLog(
        run,
        config=job.config,
        total_steps=job.schedule.total_steps,
        first_step=progress.step,
        interval=interval,
        norms=NormMeter(learner.model, optimizer=learner.optimizer, sums=interval),
        files_before=progress.event_files,
        stream=job.console,
        on_report=job.on_report,
        ranks=ranks,
    )
    progress.event_files = log.event_files
    if checkpoint is not None:
        for line in checkpoint.damaged.values():
            log.line(f"{line}; renamed, and the one before it is used")
        if ranks.writes:
            put_damaged_aside(checkpoint)
    return Session(
        job=job,
        learner=learner,
        progress=progress,
        runaway=runaway,
        log=log,
        started=time.monotonic() - progress.seconds,
        first_step=progress.step,
    )


def _prepare_folder(job: Job, learner: Learner, progress: Progress) -> None:
    """Updates the folder for the session that begins, and announces it."""
    drop_later_lines(job.run.metrics, progress.settled)
    keep_training_lines(job.run, job.store, job.start)
    record_session(
        job.run,
        job.config,
        job.store,
        precision=learner.precision,
        ranks=job.ranks,
        step=progress.step,
    )
    _announce(job)


def _announce(job: Job) -> None:
    """Prints that training begins, once nothing can prevent it any more."""
    device, count = job.precision.device, job.ranks.count
    where = f"{device} × {count}" if count > 1 else str(device)
    print_while_open(f"training on {where} in {job.precision.name} → {job.run.path}\n", job.console)


def _check_precision(run: RunFolder, before: str, now: str) -> None:
    if before != now:
        raise ConfigError(
            f"{run.path}: was trained in {before}, not {now}; continue it with"
            f" --precision {before}, or give another --out"
        )


@contextmanager
def _refusing_foreign_checkpoint(run: RunFolder, checkpoint: Checkpoint | None) -> Iterator[None]:
    """Turns errors caused by an intact checkpoint of another program or run into `InputError`s."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if as_sglm_error(error) is not None:  # out of memory
            raise
        step = "?" if checkpoint is None else f"{checkpoint.step:,}"
        raise InputError(
            f"{run.path}: its checkpoint of step {step} does not belong to this run"
            f" ({type(error).__name__}); give another --out"
        ) from error
