"""The training loop: step; every so often report, evaluate, save."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor

from sglm.checkpoint import random_state, restore_random_state
from sglm.config import Config
from sglm.errors import ConfigError, SglmError, Stopped
from sglm.evaluate import Evaluation, perplexity
from sglm.likelihood import evaluate_stream
from sglm.optim.precision import Precision
from sglm.optim.schedule import Schedule
from sglm.ranks import ALONE, Ranks
from sglm.text.batcher import Batcher, Upcoming, Window
from sglm.text.store import TokenStore
from sglm.train.build import build_batcher, build_learner, build_schedule, token_counts
from sglm.train.diagnosis import RAN_AWAY, Watch, diagnosis
from sglm.train.record import keep_training_lines, record_session
from sglm.train.report import Report, drop_later_lines
from sglm.train.run_folder import RunFolder
from sglm.train.step import Learner, capture, restore, train_step

_SKIPS_BEFORE_GIVING_UP = 100


@dataclass
class Progress:
    """Where a run is, beside what the learner holds; saved with every checkpoint.

    Attributes:
        step: steps done.
        settled: the step up to which evaluations and snapshots are done as well.
        tokens_seen: predictions trained on.
        seconds: wall-clock time over all sessions.
        best_nll: lowest validation loss so far in nats per token, or None.
        skipped_in_row: steps skipped in a row because their gradient was not finite.
    """

    step: int = 0
    settled: int = 0
    tokens_seen: int = 0
    seconds: float = 0.0
    best_nll: float | None = None
    skipped_in_row: int = 0

    def advance(self, tokens: int) -> None:
        """Counts one step."""
        self.step += 1
        self.tokens_seen += tokens

    def count_skips(self, taken: list[bool]) -> None:
        """Takes in whether each of the last steps updated anything.

        Raises:
            SglmError: too many steps in a row had to be skipped.
        """
        for each in taken:
            self.skipped_in_row = 0 if each else self.skipped_in_row + 1
            if self.skipped_in_row == _SKIPS_BEFORE_GIVING_UP:
                raise SglmError(
                    f"the gradient was not finite for {_SKIPS_BEFORE_GIVING_UP} steps in a row (now"
                    f" at step {self.step:,}); lower optimizer.learning_rate or set"
                    " optimizer.clip_norm"
                )


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        already_finished: there was nothing left to do.
        diagnosis: a sentence on the synthesizer; None without one, or when nothing was done.
    """

    steps: int
    tokens_seen: int
    seconds: float
    best_token_ppl: float | None
    already_finished: bool
    diagnosis: str | None


def train(
    config: Config,
    store: TokenStore,
    out: Path,
    device: torch.device,
    precision: Precision,
    console: TextIO,
    resume: bool = True,
    stop_signal: Callable[[], int | None] = lambda: None,
    ranks: Ranks = ALONE,
) -> Outcome:
    """Trains, or continues a training, to the end of its schedule.

    Args:
        config: decides everything but speed.
        store: the corpus; its validation split is used where there is one.
        out: the run folder.
        device, precision: where, and in what types.
        console: for progress.
        resume: continue what is in `out`; otherwise a run there is an error.
        stop_signal: the number of the signal that asked to stop, or None; polled at every step.
        ranks: the processes that train together; each calls this with its own, rank 0 writes.

    Raises:
        Stopped: asked to; a checkpoint has been saved.
        InputError, ConfigError: what is in `out` is not this run; the text is too short.
        SglmError: the gradient is not finite and does not recover.
    """
    batcher = build_batcher(config, store, ranks)
    schedule = build_schedule(config, batcher.steps_per_epoch)
    # Before the folder is made: a model too large for the memory should leave nothing behind.
    learner = build_learner(config, token_counts(store), precision, device, ranks)
    run = RunFolder(out)
    _open(run, config, store, resume, ranks)
    progress, watch, interval = Progress(), Watch(), dict[str, float]()
    checkpoint = run.load_checkpoint()
    if not ranks.agree(-1 if checkpoint is None else checkpoint[0]):
        raise ConfigError(f"{out}: not the same folder for all processes; give one that they share")
    if checkpoint is not None:
        _, state = checkpoint
        progress, interval = Progress(**state["progress"]), state["interval"]
        watch = Watch(**state["watch"])
        if progress.settled == schedule.total_steps:
            return _outcome(progress, None, already_finished=True)
        _restore(run, learner, state)
    if ranks.writes:
        drop_later_lines(run.metrics, progress.settled)
        keep_training_lines(run, store)
        record_session(run, config, store, device, precision, ranks, progress.step)
    ranks.wait()  # for what is in the folder now has been read by all
    report = Report(run, config, schedule.total_steps, progress.step, interval, console, ranks)
    session = _Session(
        run=run,
        store=store,
        schedule=schedule,
        learner=learner,
        progress=progress,
        watch=watch,
        report=report,
        started=time.monotonic() - progress.seconds,
        first_step=progress.step,
        evaluate_every=config.train.evaluate_every_steps or batcher.steps_per_epoch,
        # If one of them is asked to stop, all of them are.
        stop_signal=lambda: ranks.most(stop_signal() or 0) or None,
    )
    try:
        _train_on(session, config, batcher, device)
        if ranks.writes:
            run.save_model(run.last_model, learner.model, store.tokenizer())
            if progress.best_nll is None:
                run.save_model(run.best_model, learner.model, store.tokenizer())
        _save(session)
    finally:
        report.close()
    boundary = learner.boundary
    verdict = None if boundary is None else diagnosis(config, boundary, watch)
    return _outcome(progress, verdict, already_finished=False)


def _open(run: RunFolder, config: Config, store: TokenStore, resume: bool, ranks: Ranks) -> None:
    """Rank 0 opens the folder; if it must not, all ranks end.

    Raises:
        ConfigError, InputError: as `RunFolder.open`.
    """
    refusal: SglmError | None = None
    if ranks.writes:
        try:
            run.open(config, store, resume)
        except SglmError as error:
            refusal = error
    refused = ranks.most(0 if refusal is None else 1)
    if refusal is not None:
        raise refusal
    if refused:
        raise ConfigError(f"{run.path}: cannot be used; the first process says why")


@dataclass(frozen=True)
class _Session:
    """What the functions below share while one process trains."""

    run: RunFolder
    store: TokenStore
    schedule: Schedule
    learner: Learner
    progress: Progress
    watch: Watch
    report: Report
    started: float
    first_step: int
    evaluate_every: int
    stop_signal: Callable[[], int | None]
    taken: list[Tensor] = field(default_factory=list)  # of steps that nobody has asked about yet


def _train_on(session: _Session, config: Config, batcher: Batcher, device: torch.device) -> None:
    """Step; every so often report, evaluate, save; to the end of the schedule."""
    progress, learner, report = session.progress, session.learner, session.report
    while True:
        _settle(session)
        step = progress.step
        if step == session.schedule.total_steps:
            return
        _stop_if_asked(session)
        if step > 0 and step % config.train.checkpoint_every_steps == 0:
            _save(session)
        plan = session.watch.plan(session.schedule.at(step))
        result = train_step(learner, _to(device, batcher.at(step)), plan, step)
        progress.advance(result.tokens * learner.ranks.count)
        session.taken.append(result.taken)
        progress.seconds = time.monotonic() - session.started
        report.step(result)
        if progress.step % config.train.log_every_steps == 0:
            _count_skips(session)
            loss = report.interval(progress.step, plan, learner)
            if session.watch.interval(progress.step, loss, plan, learner.boundary):
                report.say(RAN_AWAY.format(step=progress.step))


def _count_skips(session: _Session) -> None:
    """Asks, for all steps since it was asked last: here the loop waits for the device."""
    if session.taken:
        session.progress.count_skips(torch.stack(session.taken).tolist())
        session.taken.clear()


def _settle(session: _Session) -> None:
    """Evaluations and snapshots that are due after the step that was done last.

    Raises:
        Stopped: asked to in the midst of an evaluation, which the next session makes up for.
    """
    progress, schedule, learner = session.progress, session.schedule, session.learner
    step = progress.step
    if progress.settled == step:
        return
    plan = session.watch.plan(schedule.at(step - 1))
    cycle_ended = step in schedule.cycle_ends
    if "valid" in session.store.splits and (step % session.evaluate_every == 0 or cycle_ended):
        found = _evaluate(session)
        if found is None:
            _stop_if_asked(session)
            raise AssertionError("an evaluation ends early only when asked to")
        progress.seconds = time.monotonic() - session.started
        session.report.evaluation(
            step, progress.tokens_seen, plan, learner.rate(plan), found, progress.seconds
        )
        _keep_best(session, found)
    if cycle_ended and learner.ranks.writes:
        session.run.save_snapshot(plan.cycle, learner.model, session.store.tokenizer())
    progress.settled = step
    if step == session.first_step:
        _save(session)  # made up for what a stop had cut short: not to be done again


def _stop_if_asked(session: _Session) -> None:
    """
    Raises:
        Stopped: a signal has come; everything is saved.
    """
    signal_number = session.stop_signal()
    if signal_number is not None:
        _save(session)
        raise Stopped(
            f"stopped at step {session.progress.step:,} of {session.schedule.total_steps:,} with"
            " everything saved; the same command continues from there",
            signal_number,
        )


def _restore(run: RunFolder, learner: Learner, state: dict[str, Any]) -> None:
    """Puts the learner where the checkpoint was.

    Raises:
        ConfigError: the run was in another precision.
    """
    if state["precision"] != learner.precision.name:
        raise ConfigError(
            f"{run.path}: was trained in {state['precision']}, not {learner.precision.name};"
            f" continue it with --precision {state['precision']}, or give another --out"
        )
    restore(learner, state["learner"])
    restore_random_state(state["random"])


def _save(session: _Session) -> None:
    """A checkpoint; what was reported before it is on disk before it."""
    _count_skips(session)
    session.report.flush()
    state = {
        "precision": session.learner.precision.name,
        "learner": capture(session.learner),
        "random": random_state(),
        "progress": asdict(session.progress),
        "watch": asdict(session.watch),
        "interval": session.report.interval_sums(),
    }
    if session.learner.ranks.writes:
        session.run.save_checkpoint(session.progress.step, state)
    session.learner.ranks.wait()


def _evaluate(session: _Session) -> Evaluation | None:
    """The validation split, exactly as `sglm eval` does it; None when asked to stop meanwhile.

    Every rank reads all of it, and scores its share of the tokens: the softmax is the larger part.
    """
    started = time.monotonic()
    store, model, ranks = session.store, session.learner.model, session.learner.ranks
    # In float32, whatever the training runs in: a loaded model does so too.
    compute_dtype, model.compute_dtype = model.compute_dtype, None
    try:
        nll_nats = evaluate_stream(
            model,
            store.ids("valid"),
            store.tokenizer().eos_id,
            should_stop=lambda: session.stop_signal() is not None,
            share=(ranks.rank, ranks.count),
        )
    finally:
        model.compute_dtype = compute_dtype
    if nll_nats is None:
        return None
    return Evaluation(
        ranks.totals([nll_nats])[0],
        **store.counts("valid")._asdict(),
        context="carried",
        model="",
        split="valid",
        seconds=time.monotonic() - started,
    )


def _keep_best(session: _Session, found: Evaluation) -> None:
    progress, nll = session.progress, found.nll_nats / found.tokens
    if math.isfinite(nll) and (progress.best_nll is None or nll < progress.best_nll):
        progress.best_nll = nll
        if session.learner.ranks.writes:
            session.run.save_model(
                session.run.best_model, session.learner.model, session.store.tokenizer()
            )


def _outcome(progress: Progress, verdict: str | None, already_finished: bool) -> Outcome:
    best = None if progress.best_nll is None else perplexity(progress.best_nll, 1)
    return Outcome(
        progress.step, progress.tokens_seen, progress.seconds, best, already_finished, verdict
    )


def _to(device: torch.device, window: Window) -> Window:
    def there(ids: Tensor) -> Tensor:
        return ids.to(device, non_blocking=True)

    upcoming = window.upcoming and Upcoming(*map(there, window.upcoming))
    return window._replace(
        inputs_TB=there(window.inputs_TB), targets_TB=there(window.targets_TB), upcoming=upcoming
    )
