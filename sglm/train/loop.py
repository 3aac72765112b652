"""The training loop: step; every so often report, evaluate, save."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor

from sglm.config import Config
from sglm.errors import SglmError, Stopped
from sglm.optim.precision import Precision
from sglm.runtime.process import denormals_as_zero
from sglm.runtime.ranks import ALONE, Ranks
from sglm.scoring.evaluate import Evaluation, perplexity
from sglm.scoring.stream import evaluate_stream
from sglm.text.batcher import Upcoming, Window
from sglm.text.store import TokenStore
from sglm.train.build import build_batcher, build_learner, build_schedule, token_counts
from sglm.train.diagnosis import RAN_AWAY, diagnosis
from sglm.train.run_folder import RunFolder
from sglm.train.session import (
    SKIPS_BEFORE_GOING_BACK,
    Diverged,
    Job,
    Progress,
    Session,
    all_finite,
    begin,
    newest_checkpoint,
    opened,
    progress_of,
)
from sglm.train.step import train_step


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        skipped_steps: that changed nothing, because their loss or gradient was not finite.
        already_finished: there was nothing left to do.
        diagnosis: a sentence on the synthesizer; None without one, or when nothing was done.
    """

    steps: int
    tokens_seen: int
    seconds: float
    best_token_ppl: float | None
    skipped_steps: int
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
        InputError, ConfigError: what is in `out` is not this run, or another process trains
            there; the text is too short.
        SglmError: losses or gradients are not finite, again after going back to a checkpoint.
    """
    batcher = build_batcher(config, store, ranks)
    schedule = build_schedule(config, batcher.steps_per_epoch)
    # Before the folder is made: a model too large for the memory should leave nothing behind.
    learner = build_learner(config, token_counts(store), precision, device, ranks)

    def asked_to_stop() -> int | None:
        # If one of the ranks is, all of them are.
        return ranks.most(stop_signal() or 0) or None

    job = Job(
        config, store, RunFolder(out), batcher, schedule, device, console, ranks, asked_to_stop
    )
    with denormals_as_zero(), opened(job, resume):
        checkpoint = newest_checkpoint(job)
        progress = progress_of(job, checkpoint)
        if progress.settled == schedule.total_steps:
            return _outcome(progress, None, already_finished=True)
        session = begin(job, learner, checkpoint)
        del checkpoint  # a copy of the state
        while not _reaches_end(session):
            if session.progress.went_back_to is not None:
                raise SglmError(_gave_up(session.progress))
            session.report.say(_going_back(session.progress))
            del session, learner  # there may be no room for two
            learner = build_learner(config, token_counts(store), precision, device, ranks)
            session = begin(job, learner, newest_checkpoint(job))
            session.progress.went_back_to = session.progress.step
    boundary = learner.boundary
    verdict = None if boundary is None else diagnosis(config, boundary, session.watch)
    return _outcome(session.progress, verdict, already_finished=False)


def _reaches_end(session: Session) -> bool:
    """Does what is left of the run; false when it diverges.

    Raises:
        Stopped: before the end.
    """
    run, model = session.job.run, session.learner.model
    try:
        _train_on(session)
        if not all_finite(model):
            return False
        if session.job.ranks.writes:
            tokenizer = session.job.store.tokenizer()
            run.save_model(run.last_model, model, tokenizer)
            if session.progress.best_nll is None:
                run.save_model(run.best_model, model, tokenizer)
        session.save()
    except Diverged:
        return False
    finally:
        session.report.close()
    return True


def _train_on(session: Session) -> None:
    """Step; every so often report, evaluate, save; to the end of the schedule."""
    job, config = session.job, session.job.config.train
    progress, learner, report = session.progress, session.learner, session.report
    while True:
        _settle(session)
        step = progress.step
        if step == job.schedule.total_steps:
            return
        _stop_if_asked(session)
        if step > session.first_step and step % config.checkpoint_every_steps == 0:
            session.count_skips()
            if progress.skipped_in_row == 0:  # a checkpoint is one to go back to
                session.save()
        plan = session.watch.plan(job.schedule.at(step))
        result = train_step(learner, _to(job.device, job.batcher.at(step)), plan, step)
        progress.advance(result.tokens * learner.ranks.count)
        session.taken.append(result.taken)
        progress.seconds = time.monotonic() - session.started
        report.step(result)
        if progress.step % config.log_every_steps == 0:
            session.count_skips()
            loss = report.interval(progress.step, plan, learner, progress.skipped)
            if session.watch.interval(progress.step, loss, plan, learner.boundary):
                report.say(RAN_AWAY.format(step=progress.step))


def _settle(session: Session) -> None:
    """Evaluations and snapshots that are due after the step that was done last.

    Raises:
        Stopped: asked to in the midst of an evaluation, which the next session makes up for.
    """
    job, progress, learner = session.job, session.progress, session.learner
    step = progress.step
    if progress.settled == step:
        return
    plan = session.watch.plan(job.schedule.at(step - 1))
    cycle_ended = step in job.schedule.cycle_ends
    if "valid" in job.store.splits and (step % job.evaluate_every == 0 or cycle_ended):
        found = _evaluate(session)
        if found is None:
            _stop_if_asked(session)
            return  # not yet: see there
        progress.seconds = time.monotonic() - session.started
        session.report.evaluation(
            step, progress.tokens_seen, plan, learner.rate(plan), found, progress.seconds
        )
        _keep_best(session, found)
    if cycle_ended and learner.ranks.writes and all_finite(learner.model):
        session.job.run.save_snapshot(plan.cycle, learner.model, session.job.store.tokenizer())
    progress.settled = step
    if step == session.first_step and progress.skipped_in_row == 0:
        session.save()  # made up for what a stop had cut short: not to be done again


def _stop_if_asked(session: Session) -> None:
    """Waits for a step that was not skipped: a checkpoint is one to go back to.

    Raises:
        Stopped: a signal has come; everything is saved.
    """
    signal_number = session.job.stop_signal()
    if signal_number is not None:
        session.count_skips()
        if session.progress.skipped_in_row:
            return
        session.save()
        raise Stopped(
            f"stopped at step {session.progress.step:,} of {session.job.schedule.total_steps:,}"
            " with everything saved; the same command continues from there",
            signal_number=signal_number,
        )


def _evaluate(session: Session) -> Evaluation | None:
    """The validation split, exactly as `sglm eval` does it; None when asked to stop meanwhile.

    Every rank reads all of it, and scores its share of the tokens: the softmax is the larger part.
    """
    started = time.monotonic()
    store, model, ranks = session.job.store, session.learner.model, session.learner.ranks
    # In float32, whatever the training runs in: a loaded model does so too.
    compute_dtype, model.compute_dtype = model.compute_dtype, None
    try:
        nll_nats = evaluate_stream(
            model,
            store.ids("valid"),
            store.tokenizer().eos_id,
            should_stop=lambda: session.job.stop_signal() is not None,
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


def _keep_best(session: Session, found: Evaluation) -> None:
    progress, nll = session.progress, found.nll_nats / found.tokens
    if math.isfinite(nll) and (progress.best_nll is None or nll < progress.best_nll):
        progress.best_nll = nll
        if session.learner.ranks.writes:
            session.job.run.save_model(
                session.job.run.best_model, session.learner.model, session.job.store.tokenizer()
            )


def _outcome(progress: Progress, verdict: str | None, already_finished: bool) -> Outcome:
    return Outcome(
        steps=progress.step,
        tokens_seen=progress.tokens_seen,
        seconds=progress.seconds,
        best_token_ppl=None if progress.best_nll is None else perplexity(progress.best_nll, 1),
        skipped_steps=progress.skipped,
        already_finished=already_finished,
        diagnosis=verdict,
    )


def _going_back(progress: Progress) -> str:
    return (
        f"step {progress.step:,}: loss or gradient not finite {SKIPS_BEFORE_GOING_BACK} times in a"
        " row, or a weight; going back to the last checkpoint, or to the start"
    )


def _gave_up(progress: Progress) -> str:
    return (
        f"loss or gradient not finite {SKIPS_BEFORE_GOING_BACK} times in a row, or a weight, at"
        f" step {progress.step:,}, again after going back to step {progress.went_back_to:,};"
        " lower optimizer.learning_rate or set optimizer.clip_norm, and give another --out"
    )


def _to(device: torch.device, window: Window) -> Window:
    def there(ids: Tensor) -> Tensor:
        return ids.to(device, non_blocking=True)

    upcoming = window.upcoming and Upcoming(*map(there, window.upcoming))
    return window._replace(
        inputs_TB=there(window.inputs_TB), targets_TB=there(window.targets_TB), upcoming=upcoming
    )
