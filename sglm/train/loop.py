"""The training loop: steps, with logging, validation and saving in between."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from sglm.config import Config
from sglm.dni.gauge import REFERENCE_STEPS
from sglm.errors import SglmError, Stopped
from sglm.optim.optimizer import set_weight_decay
from sglm.optim.precision import Precision
from sglm.runtime.process import denormals_as_zero
from sglm.runtime.ranks import ALONE, Ranks
from sglm.scoring.metrics import perplexity
from sglm.scoring.results import Evaluation
from sglm.scoring.stream import StoppedReading
from sglm.text.store import TokenStore
from sglm.train.build import (
    build_batcher,
    build_decision_rule,
    build_learner,
    build_schedule,
    token_counts,
)
from sglm.train.closing_sentence import closing_sentence, diverged_sentence
from sglm.train.learner import Learner
from sglm.train.log.run_log import OnReport
from sglm.train.progress import SKIPS_BEFORE_GOING_BACK, Diverged, Progress
from sglm.train.run_folder import RunFolder
from sglm.train.runaway import RAN_AWAY
from sglm.train.sample import sample
from sglm.train.session import (
    Job,
    Session,
    all_finite,
    begin,
    newest_checkpoint,
    opened,
    progress_of,
)
from sglm.train.starting_point import StartingPoint
from sglm.train.step import train_step
from sglm.train.validate import validate
from sglm.train.window_decision import followed_mode

_DIVERGED = (
    f"loss or gradient was not finite in {SKIPS_BEFORE_GOING_BACK} steps in a row, or a weight is"
    " not finite"
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a run.

    Attributes:
        skipped_steps: Steps that changed nothing: their loss or gradient was not finite.
        already_finished: Whether nothing was left to do.
        diagnosis: A sentence on the model's divergence or else on the synthesizer; otherwise None.
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
    *,
    precision: Precision,
    console: TextIO,
    resume: bool = True,
    start: StartingPoint | None = None,
    stop_signal: Callable[[], int | None] = lambda: None,
    on_report: OnReport | None = None,
    ranks: Ranks = ALONE,
) -> Outcome:
    """Starts a training run, or continues one, and trains to the end of its schedule.

    Args:
        config: The configuration.
        store: The corpus. Its validation split is used if there is one.
        out: The run folder.
        precision: The number types, and the device.
        console: The stream for progress.
        resume: Whether to continue a run that is in `out`; if not, finding one is an error.
        start: The model whose weights the training starts from. None: random weights.
        stop_signal: Returns the number of the signal that asked to stop, or None. Every rank polls
            it at every step; if one of them is asked, all stop.
        on_report: Called with every line of `metrics.jsonl`, and with the means of the training
            steps in between (with `split` `"train"`). An exception from it ends the training.
        ranks: The processes that train together. Each makes this call; only rank 0 writes.

    Raises:
        Stopped: A signal asked to stop; a checkpoint has been saved.
        InputError, ConfigError: `out` holds something else or is in use, or the text is too short.
        SglmError: Losses or gradients are not finite, even after going back to a checkpoint.
    """
    if start is not None:
        config = start.matching_config(config, store)
    batcher = build_batcher(config, store, ranks=ranks)
    job = Job(
        config=config,
        store=store,
        start=start,
        run=RunFolder(out),
        batcher=batcher,
        schedule=build_schedule(config, batcher.steps_per_epoch),
        rule=build_decision_rule(config),
        precision=precision,
        console=console,
        ranks=ranks,
        stop_signal=stop_signal,
        on_report=on_report,
    )
    return _run(job, resume)


def _run(job: Job, resume: bool) -> Outcome:
    """Runs the job: see `train`."""
    # Built before the folder, so that a model too large for the memory leaves nothing behind.
    learner = _learner(job)
    with denormals_as_zero(), opened(job, resume):
        checkpoint = newest_checkpoint(job)
        progress = progress_of(job, checkpoint)
        if progress.settled == job.schedule.total_steps:
            job.run.check_has_model()
            return _outcome(progress, None, already_finished=True)
        session = begin(job, learner, checkpoint)
        del checkpoint  # frees its copy of the state
        while not _trains_to_end(session):
            if session.progress.went_back_to is not None:
                raise SglmError(_gave_up(session.progress))
            session.log.line(_going_back(session.progress))
            del session, learner  # memory may not hold two learners
            learner = _learner(job)
            session = begin(job, learner, newest_checkpoint(job))
            session.progress.went_back_to = session.progress.step
    return _outcome(session.progress, _diagnosis(session), already_finished=False)


def _learner(job: Job) -> Learner:
    """Returns the learner as it is before the first step."""
    learner = build_learner(job.config, token_counts(job.store), job.precision, ranks=job.ranks)
    if job.start is not None:
        job.start.copy_into(learner.model)
    return learner


def _trains_to_end(session: Session) -> bool:
    """Trains to the end of the schedule and saves the models; returns false if training diverges.

    Raises:
        Stopped: A signal asked to stop before the end.
    """
    run, learner = session.job.run, session.learner
    try:
        _take_remaining_steps(session)
        if not all_finite(learner.model):
            return False
        if session.job.ranks.writes:
            store = session.job.store
            run.save_model(run.last_model, learner.evaluated_model, store)
            if session.progress.best_nll is None:
                run.save_model(run.best_model, learner.evaluated_model, store)
        session.save()
    except Diverged:
        return False
    finally:
        session.log.close()
    return True


def _take_remaining_steps(session: Session) -> None:
    """Takes the remaining steps of the schedule; logs, validates and saves in between."""
    job, config = session.job, session.job.config.train
    progress, learner, log = session.progress, session.learner, session.log
    while True:
        _finish_step(session)
        step = progress.step
        if step == job.schedule.total_steps:
            return
        signal_number, save = session.poll_requests()
        _stop_if_asked(session, signal_number)
        every = config.checkpoint_every_steps
        save = save or (every is not None and step % every == 0)
        if save and step > session.first_step:
            session.count_skips()
            if progress.skipped_in_row == 0:  # else it would be no good to go back to
                session.save()
        plan, window = job.schedule.at(step), job.batcher.at(step)
        decision = job.rule.decide(step, plan, window, runaway=session.runaway)
        if decision.gauge:
            window = window._replace(ahead=job.batcher.ahead(step, REFERENCE_STEPS))
        rate = learner.rate(plan)
        set_weight_decay(learner.optimizer, learner.decay(plan))
        if (step + 1) % config.log_every_steps == 0:
            log.norms.measure_next()
        result = train_step(learner, window.to(job.precision.device), decision, learning_rate=rate)
        progress.advance(result.tokens * learner.ranks.count)
        if learner.average is not None:
            learner.average.update(learner.model, progress.step)
        session.taken.append(result.taken)
        progress.seconds = time.monotonic() - session.started
        log.step(result)
        if progress.step % config.log_every_steps == 0:
            session.count_skips()
            loss = log.interval(progress, learner, mode=decision.mode, cycle=plan.cycle, rate=rate)
            if session.runaway.update(
                progress.step,
                loss,
                cycle=plan.cycle,
                mode=decision.mode,
                status=learner.estimator.status(),
            ):
                log.line(RAN_AWAY.format(step=progress.step))


def _finish_step(session: Session) -> None:
    """Makes the validation and the snapshot that are due after the latest step, if any.

    Raises:
        Stopped: A signal came during the validation, which the next session will repeat.
    """
    job, progress, learner = session.job, session.progress, session.learner
    step = progress.step
    if progress.settled == step:
        return
    plan = job.schedule.at(step - 1)
    cycle_ended = step in job.schedule.cycle_ends
    if "valid" in job.store.splits and (step % job.evaluate_every == 0 or cycle_ended):
        evaluation = _validated(session)
        progress.seconds = time.monotonic() - session.started
        best_nll = _best_nll(progress, evaluation)
        # Saved before it is reported: an exception from `on_report` ends the training.
        _keep_best(session, best_nll)
        session.log.evaluation(
            progress,
            evaluation,
            sample=sample(learner.evaluated_model, job.store) if learner.ranks.writes else None,
            mode=followed_mode(plan, session.runaway),
            cycle=plan.cycle,
            rate=learner.rate(plan),
        )
    if cycle_ended and learner.ranks.writes and all_finite(learner.model):
        job.run.save_snapshot(plan.cycle, learner.evaluated_model, job.store)
    progress.settled = step
    if step == session.first_step and progress.skipped_in_row == 0:
        session.save()  # a stop had cut this validation short; now it need not be repeated again


def _validated(session: Session) -> Evaluation:
    """Validates the model. A signal to stop that comes meanwhile ends the training, but after a
    skipped step (see `_stop_if_asked`) the whole validation is repeated first.

    Raises:
        Stopped: See `_finish_step`.
    """
    job, learner = session.job, session.learner
    try:
        return validate(learner, job.store, should_stop=job.is_asked_to_stop)
    except StoppedReading:
        _stop_if_asked(session, session.poll_requests()[0])  # returns after a skipped step
        return validate(learner, job.store, should_stop=lambda: False)


def _stop_if_asked(session: Session, signal_number: int | None) -> None:
    """Saves and stops if a signal has come, unless a checkpoint would be no good to go back to.

    Raises:
        Stopped: A signal has come, and everything is saved.
    """
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


def _best_nll(progress: Progress, evaluation: Evaluation) -> float | None:
    """Returns the lowest validation loss so far, this one included, in nats per token."""
    nlls = [progress.best_nll, evaluation.nll_nats / evaluation.tokens]
    return min((nll for nll in nlls if nll is not None and math.isfinite(nll)), default=None)


def _keep_best(session: Session, best_nll: float | None) -> None:
    """Saves the model if no earlier one was as good."""
    if best_nll != session.progress.best_nll:
        session.progress.best_nll = best_nll
        if session.learner.ranks.writes:
            session.job.run.save_model(
                session.job.run.best_model, session.learner.evaluated_model, session.job.store
            )


def _outcome(progress: Progress, diagnosis: str | None, *, already_finished: bool) -> Outcome:
    return Outcome(
        steps=progress.step,
        tokens_seen=progress.tokens_seen,
        seconds=progress.seconds,
        best_token_ppl=None if progress.best_nll is None else perplexity(progress.best_nll, 1),
        skipped_steps=progress.skipped,
        already_finished=already_finished,
        diagnosis=diagnosis,
    )


def _diagnosis(session: Session) -> str | None:
    vocab_size, best_nll = session.learner.model.shape.vocab_size, session.progress.best_nll
    if best_nll is not None and best_nll > math.log(vocab_size):
        return diverged_sentence(vocab_size)
    status = session.learner.estimator.status()
    if status is None:
        return None
    gauge = session.learner.gauge
    return closing_sentence(
        session.job.config,
        status,
        session.runaway,
        windows_per_epoch=session.job.batcher.steps_per_epoch,
        reading=None if gauge is None else gauge.reading(),
    )


def _going_back(progress: Progress) -> str:
    return (
        f"step {progress.step:,}: {_DIVERGED}; going back to the last checkpoint, or to the start"
    )


def _gave_up(progress: Progress) -> str:
    return (
        f"step {progress.step:,}: {_DIVERGED}, again after going back to step"
        f" {progress.went_back_to:,}; lower optimizer.learning_rate, and give another --out"
    )
