"""Builds the objects of a configuration: only here are concrete classes chosen and seeds set."""

from collections import deque
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sglm.config import Config
from sglm.dni.adjoint import AdjointEstimator, one_reading_serves_stretch
from sglm.dni.adjoint_pass import WayBack, adjoint_gradients
from sglm.dni.critic import Critic, CriticEstimator, discount
from sglm.dni.estimator import PlainTruncation, StateGradientEstimator
from sglm.dni.gauge import FEWEST_LANES, Gauge, gauge_every
from sglm.dni.learned import LearnedEstimator
from sglm.dni.random_feedback import DirectFeedback, FeedbackLayers, draw_direct, draw_feedback
from sglm.dni.synthesizer import build_synthesizer, hidden_units
from sglm.errors import ConfigError
from sglm.model.cutoffs import chosen_cutoffs
from sglm.model.language_model import DropoutRates, LSTMLanguageModel, ModelShape
from sglm.optim.averaging import WeightAverage
from sglm.optim.optimizer import make_optimizer
from sglm.optim.precision import Precision
from sglm.optim.schedule import Schedule, make_schedule
from sglm.runtime.calls import Calls, RecordedCalls
from sglm.runtime.ranks import ALONE, Ranks, averaged_in_backward
from sglm.text.batcher import Batcher
from sglm.text.store import TokenStore
from sglm.train.graph import GraphedPass, uses_cuda_graph
from sglm.train.learner import Learner
from sglm.train.truncation import draw_lengths
from sglm.train.window_decision import DecisionRule
from sglm.train.window_pass import RunsWindow, WindowPass

COUNTED_AT_ONCE = 2**24
# Windows from one reading of an adjoint to the next, if windows are long. Its readings then take
# under a twentieth of the training time: long windows leave no horizon gap to close (docs/log.md).
_LONG_WINDOWS_STRETCH = 32


def model_shape(
    config: Config, vocab_size: int, counts_V: npt.NDArray[np.int64] | None = None
) -> ModelShape:
    """Returns the sizes of the network that a configuration describes.

    Args:
        config: The configuration.
        vocab_size: V, the size of the vocabulary.
        counts_V: How often each token occurs; needed if the cutoffs of an adaptive softmax are to
            be chosen (`chooses_cutoffs`).

    Raises:
        ConfigError: `model.cutoffs` do not fit the vocabulary.
    """
    return ModelShape(
        vocab_size=vocab_size,
        layers=config.model.layers,
        hidden=config.model.hidden,
        embedding=config.model.embedding or config.model.hidden,
        tied=config.model.tied,
        cutoffs=_cutoffs(config, vocab_size, counts_V),
    )


def store_shape(config: Config, store: TokenStore) -> ModelShape:
    """Returns the sizes of the network for the vocabulary of a store."""
    counts_V = token_counts(store) if chooses_cutoffs(config) else None
    return model_shape(config, store.tokenizer().vocab_size, counts_V)


def chooses_cutoffs(config: Config) -> bool:
    """Returns whether the cutoffs, and so the sizes, depend on how often each token occurs."""
    return config.model.softmax == "adaptive" and config.model.cutoffs is None


def _cutoffs(
    config: Config, vocab_size: int, counts_V: npt.NDArray[np.int64] | None
) -> tuple[int, ...]:
    if config.model.softmax == "full":
        return ()
    if chooses_cutoffs(config):
        assert counts_V is not None
        cutoffs = chosen_cutoffs(counts_V)
    else:
        cutoffs = tuple(config.model.cutoffs or ())
    if not cutoffs:
        raise ConfigError(
            f"a vocabulary of {vocab_size} tokens is too small for model.softmax ="
            ' "adaptive"; set it to "full"'
        )
    if cutoffs[-1] >= vocab_size:
        raise ConfigError(
            f"model.cutoffs = {list(cutoffs)} must be below the size of the vocabulary,"
            f" {vocab_size:,}; lower them, or leave them out"
        )
    return cutoffs


def build_learner(
    config: Config,
    token_counts_V: npt.NDArray[np.int64],
    precision: Precision,
    *,
    ranks: Ranks = ALONE,
) -> Learner:
    """Builds model, optimizer and estimator, with fresh weights drawn from `train.seed`.

    Args:
        config: The configuration: sizes, rates, seed.
        token_counts_V: How often each token occurs in the training text.
        precision: The number types, and the device.
        ranks: The processes that share the lanes evenly (`build_batcher` checks that they can).
    """
    train, device = config.train, precision.device
    lanes = train.batch // ranks.count
    torch.manual_seed(config.train.seed)
    model = LSTMLanguageModel(
        model_shape(config, len(token_counts_V), token_counts_V),
        DropoutRates(**config.dropout.model_dump()),
        precision.compute_dtype,
    )
    model.start_from_unigram(torch.from_numpy(token_counts_V))
    model.to(device).train()
    averaging = config.optimizer.averaging
    average = WeightAverage(model, memory=averaging) if averaging else None
    model.ranks = ranks
    estimator = build_estimator(config, model)
    return Learner(
        model=model,
        window_pass=build_window_pass(config, model, estimator.wants_features),
        optimizer=make_optimizer(model, config.optimizer),
        precision=precision,
        estimator=estimator,
        gauge=Gauge(device, ranks=ranks) if is_gauged(config, lanes) else None,
        state=model.start_state(lanes),
        learning_rate=config.optimizer.learning_rate,
        weight_decay=config.optimizer.weight_decay,
        average=average,
        clip_norm=config.optimizer.clip_norm,
        past=deque(maxlen=(train.horizon or train.window) // train.window - 1),
        renews_state=train.past == "state",
        random_window=train.random_window,
        ranks=ranks,
    )


def is_gauged(config: Config, lanes: int) -> bool:
    """Returns whether there is a gauge: if something is injected and a process has enough lanes."""
    return config.schedule.mode != "real" and lanes >= FEWEST_LANES


def _check_reading(config: Config, lane_length: int) -> None:
    settings = config.synthesizer
    if config.schedule.mode == "real" or not settings.reads_text:
        return
    # Stretches of long windows are long only so that they are read seldom.
    every = 1 if injects_once(config) else stretch_windows(config)
    reads = every * config.train.window + settings.reach
    if reads > lane_length:
        raise ConfigError(
            f"the synthesizer would read {reads:,} tokens together (synthesizer.every = {every}"
            f" windows of {config.train.window} and synthesizer.reach = {settings.reach}), but a"
            f" lane of the text has only {lane_length:,}; lower them, or train.batch"
        )


def build_window_pass(
    config: Config, model: LSTMLanguageModel, keeps_features: bool = False
) -> RunsWindow:
    """Builds the model's pass over a window: plain, averaged over ranks, or from a CUDA graph.

    Raises:
        ConfigError: A CUDA graph was asked for with several ranks.
    """
    penalties, random = config.regularizer, config.train.random_window
    window_pass = WindowPass(
        model, regularizer=penalties, random_window=random, keeps_features=keeps_features
    )
    if not uses_cuda_graph(config, model):
        if model.ranks.count == 1:
            return window_pass
        # Its only buffer, the order of the words, is the same on all ranks.
        return averaged_in_backward(window_pass)
    if model.ranks.count > 1:
        raise ConfigError("train.cuda_graph is for one process; leave it out under torchrun")
    return GraphedPass(window_pass)


def token_counts(store: TokenStore) -> npt.NDArray[np.int64]:
    """Counts how often each token occurs in the training split, `(V,)`, in bounded memory."""
    ids, vocab_size = store.ids("train"), store.tokenizer().vocab_size
    counts_V = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, len(ids), COUNTED_AT_ONCE):
        part = ids[start : start + COUNTED_AT_ONCE]
        counts_V += np.bincount(part, minlength=vocab_size)
    return counts_V


def injects_once(config: Config) -> bool:
    """Returns whether only the first boundary of a stretch is injected into: if windows are long
    and a stretch has several."""
    several = stretch_windows(config) > 1
    return several and not one_reading_serves_stretch(config.train.window, config.synthesizer.reach)


def stretch_windows(config: Config) -> int:
    """Returns the number of windows in a stretch: 1 if nothing reads ahead."""
    settings = config.synthesizer
    if not settings.reads_text:
        return 1
    if settings.every is not None:
        return settings.every
    if one_reading_serves_stretch(config.train.window, settings.reach):
        return 1
    return _LONG_WINDOWS_STRETCH


def lookahead_steps(config: Config) -> int | None:
    """Returns how many steps past a stretch the text is shown at its beginning; None if nothing
    reads ahead."""
    settings = config.synthesizer
    reads = config.schedule.mode != "real" and settings.reads_text
    return settings.reach if reads else None


def build_estimator(config: Config, model: LSTMLanguageModel) -> StateGradientEstimator:
    """Builds the configured estimator; plain truncation if the mode is real throughout."""
    if config.schedule.mode == "real":
        return PlainTruncation()
    settings, device = config.synthesizer, model.embedding.device
    noise = None
    if settings.inject == "noise":
        # A seed other than that of the weights.
        noise = torch.Generator(device).manual_seed(config.train.seed + 1)
    common: dict[str, Any] = {
        "learning_rate": settings.learning_rate,
        "factor": None if settings.factor == "calibrated" else settings.factor,
        "trust_bound": settings.trust_bound,
        "noise": noise,
        "ranks": model.ranks,
    }
    if settings.reads_text:
        return AdjointEstimator(
            model,
            stretch=stretch_windows(config),
            reach=settings.reach,
            activation=config.regularizer.activation,
            hidden=hidden_units(settings),
            other_lane=settings.inject == "other-lane",
            way_back=_way_back(config, model),
            calls=RecordedCalls() if uses_cuda_graph(config, model) else Calls(),
            **common,
        )
    # Forked, so that the model's dropout draws the same masks with and without a synthesizer.
    with torch.random.fork_rng(devices=[]):
        if settings.kind == "critic":
            gamma = discount(config.train.window)
            critic = Critic(model.shape.state_size, hidden_units(settings), discount=gamma)
            return CriticEstimator(model, critic=critic, **common)
        synthesizer = build_synthesizer(settings, model.shape)
    return LearnedEstimator(synthesizer.to(device), **common)


def _way_back(config: Config, model: LSTMLanguageModel) -> WayBack:
    """Builds the way back from the text that was read to the state gradients."""
    # The weights use the seed `train.seed`, noise the one after it.
    kind, seed = config.synthesizer.kind, config.train.seed + 2
    if kind == "feedback":
        layers = FeedbackLayers(
            model,
            matrices=draw_feedback(model.shape, seed, weight_drop_rate=model.dropout.weight),
        )
        return partial(adjoint_gradients, layers=layers)
    if kind == "direct":
        reach = config.synthesizer.reach
        matrix_SR = draw_direct(model.shape, seed, reach=reach).to(model.embedding)
        return DirectFeedback(matrix_SR, reach=reach)
    return adjoint_gradients


def build_decision_rule(config: Config) -> DecisionRule:
    """Builds the rule by which the run decides for each window."""
    settings, once = config.synthesizer, injects_once(config)
    return DecisionRule(
        probe_every=None if config.schedule.mode == "real" else settings.probe_every,
        stretch=stretch_windows(config),
        gauge_every=gauge_every(config.train.window, injects_once=once),
        injects_once=once,
    )


def build_batcher(config: Config, store: TokenStore, *, ranks: Ranks = ALONE) -> Batcher:
    """Builds the batcher of the training split, for the lanes of this process.

    Raises:
        InputError: The split is shorter than one window of every lane.
        ConfigError: The lanes cannot be divided evenly among the processes, or are shorter than
            what the synthesizer reads together.
    """
    ids_N, train = store.ids("train"), config.train
    if train.batch % ranks.count:
        raise ConfigError(
            f"train.batch = {train.batch} lanes cannot be shared out among {ranks.count} processes;"
            f" make it a multiple of {ranks.count}"
        )
    lengths = None
    if train.random_window is not None:
        lengths = draw_lengths(len(ids_N) // train.batch, train.random_window, train.seed)
    batcher = Batcher(
        ids_N,
        batch=train.batch,
        window=train.window,
        bos_id=store.tokenizer().eos_id,
        lengths=lengths,
        stretch=stretch_windows(config),
        lookahead=lookahead_steps(config),
        ranks=ranks,
    )
    _check_reading(config, batcher.lane_length)
    return batcher


def build_schedule(config: Config, steps_per_epoch: int) -> Schedule:
    """Builds the schedule, with the lengths of its cycles in steps."""
    schedule = config.schedule
    return make_schedule(
        schedule.cycle_lengths(),
        unit_steps=steps_per_epoch if schedule.unit == "epochs" else 1,
        mode=schedule.mode,
        start=schedule.start,
        warmup_steps=schedule.warmup_steps,
        final_factor=schedule.final_rate,
        decay_until=config.optimizer.weight_decay_until,
    )
