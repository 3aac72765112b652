"""Engines, which do jobs in this process, in several processes, or as tasks of a Ray cluster.

Each engine yields the outcomes as they come. If it is closed early, unfinished jobs are dropped.
"""

import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import replace
from functools import partial
from multiprocessing.connection import wait as wait_for_any
from typing import Any

from sglm.corpus_filter.job import Job, Outcome, perform
from sglm.corpus_filter.progress import CorpusProgress
from sglm.errors import InputError, SglmError
from sglm.runtime.process import prepare_process

_POLL_SECONDS = 0.5
PROCESS_ENDED_MESSAGE = "the process that scored it was ended (out of memory?)"


def usable_cpus() -> int:
    """Returns the number of CPUs that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_serially(jobs: Sequence[Job], progress: CorpusProgress) -> Iterator[Outcome]:
    """Does the jobs one after the other, in this process."""
    for number, job in enumerate(jobs):
        outcome = perform(job, partial(progress.at, number))
        progress.at(number, 1.0)
        yield outcome


def run_in_processes(
    jobs: Sequence[Job], progress: CorpusProgress, *, processes: int
) -> Iterator[Outcome]:
    """Does the jobs in several processes on this machine, which share its CPUs.

    The processes end with this one, however it ends.

    Raises:
        SglmError: One of the processes was killed.
    """
    # Not a fork, which torch's threads would not survive.
    context = multiprocessing.get_context("spawn")
    shares = context.RawArray(ctypes.c_double, len(jobs))
    earlier_children = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        processes,
        mp_context=context,
        initializer=_prepare_worker,
        initargs=(shares, max(1, usable_cpus() // processes)),
    )
    waiting = {pool.submit(_perform_numbered, number, job) for number, job in enumerate(jobs)}
    try:
        while waiting:
            finished, waiting = wait(waiting, _POLL_SECONDS, FIRST_COMPLETED)
            progress.at_all(list(shares))
            for future in finished:
                yield future.result()
    except BrokenProcessPool:
        raise SglmError(
            f"one of the {processes} processes was ended (out of memory? then give fewer"
            " --processes); the same command goes on with what is missing"
        ) from None
    finally:
        if waiting:
            for process in set(multiprocessing.active_children()) - earlier_children:
                process.terminate()
        pool.shutdown(cancel_futures=True)


# The state of a worker: the shared array of each job's progress, and whether it is doing a job.
_shares: Any = None
_busy = False


class _Ended(BaseException):
    """SIGTERM in a worker that is doing a job."""


def _prepare_worker(shares: Any, threads: int) -> None:
    import torch

    global _shares
    _shares = shares
    prepare_process()
    torch.set_num_threads(threads)
    # Ctrl-C at a terminal reaches this process too; the parent ends it, so that it cleans up first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end(number: int, frame: object) -> None:
    if _busy:
        raise _Ended
    os._exit(128 + number)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for_any([parent.sentinel])
    os._exit(1)


def _perform_numbered(number: int, job: Job) -> Outcome:
    global _busy

    def progress(share: float) -> None:
        _shares[number] = share

    _busy = True
    try:
        outcome = perform(job, progress)
        progress(1.0)
        return outcome
    except _Ended:  # the unfinished file has been removed
        os._exit(128 + signal.SIGTERM)
    finally:
        _busy = False


def run_on_ray(jobs: Sequence[Job], progress: CorpusProgress) -> Iterator[Outcome]:
    """Does the jobs as tasks of a Ray cluster.

    The cluster is the one that the environment names or the program has connected to, otherwise a
    new one on this machine. All its machines must see the files under the same names, and have sglm
    installed.

    Raises:
        InputError: Ray is not installed, or there is no cluster.
    """
    try:
        import ray
    except ImportError:
        raise InputError("--engine ray needs the package ray: pip install 'sglm[ray]'") from None
    if not ray.is_initialized():
        try:
            ray.init(log_to_driver=False, logging_level="error")
        except (ConnectionError, ValueError) as error:
            raise InputError(f"Ray cannot be reached ({str(error).splitlines()[0]})") from None
    needs_gpu = {"num_gpus": 1} if jobs and jobs[0].device == "cuda" else {}
    task = ray.remote(num_cpus=1, **needs_gpu)(perform)
    numbers = {task.remote(_absolute(job)): number for number, job in enumerate(jobs)}
    waiting = list(numbers)
    try:
        while waiting:
            finished, waiting = ray.wait(waiting, timeout=_POLL_SECONDS)
            progress.tick()
            for each in finished:
                progress.at(numbers[each], 1.0)
                yield _ray_outcome(each, jobs[numbers[each]])
    finally:
        for each in waiting:
            with suppress(Exception):  # the cluster is gone
                ray.cancel(each, force=True)


def _ray_outcome(reference: Any, job: Job) -> Outcome:
    import ray

    try:
        outcome: Outcome = ray.get(reference)
    except ray.exceptions.RayError as error:
        reason = (
            PROCESS_ENDED_MESSAGE
            if isinstance(error, ray.exceptions.WorkerCrashedError)
            else str(error)
        )
        lines = reason.strip().splitlines()
        message = f"{job.shard.source}: {lines[-1] if lines else type(error).__name__}"
        return Outcome(source=job.shard.source, error=message, tokens=0, seconds=0.0)
    return replace(outcome, source=job.shard.source)


def _absolute(job: Job) -> Job:
    """Returns the job with absolute paths, for a process that runs in another folder."""
    shard = job.shard
    shard = replace(shard, source=os.path.abspath(shard.source), out=os.path.abspath(shard.out))
    return replace(job, shard=shard, run=os.path.abspath(job.run))
