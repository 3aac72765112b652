"""From a configuration to objects: the only place that names concrete classes and sets the seed."""

from collections import deque

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.parallel import DistributedDataParallel

from sglm.config import Config
from sglm.dni.boundary import Boundary
from sglm.dni.synthesizer import make_synthesizer
from sglm.errors import ConfigError
from sglm.model.language_model import DropoutRates, LSTMLanguageModel, ModelShape
from sglm.optim.optimizer import make_optimizer
from sglm.optim.precision import Precision
from sglm.optim.schedule import Schedule, make_schedule
from sglm.runtime.ranks import ALONE, Ranks
from sglm.text.batcher import Batcher
from sglm.text.store import TokenStore
from sglm.train.graph import GraphedPass
from sglm.train.step import Learner, RunsWindow, WindowPass
from sglm.train.truncation import draw_lengths

COUNTED_AT_ONCE = 2**24
_HIDDEN_OF_KIND = {"lookahead": 64, "mlp": 128, "recurrent": 50, "linear": 0}
# Windows whose lessons are learned together. Where windows are short, looking ahead reads some way
# beyond a stretch, so that a short one would read most of the text twice.
STRETCH = 8


def model_shape(config: Config, vocab_size: int) -> ModelShape:
    """The network's sizes."""
    return ModelShape(
        vocab_size=vocab_size,
        layers=config.model.layers,
        hidden=config.model.hidden,
        embedding=config.model.embedding or config.model.hidden,
        tied=config.model.tied,
    )


def build_learner(
    config: Config,
    token_counts_V: npt.NDArray[np.int64],
    precision: Precision,
    device: torch.device,
    ranks: Ranks = ALONE,
) -> Learner:
    """Model, optimizer and boundary with fresh weights drawn from `train.seed`.

    Args:
        config: sizes, rates, seed.
        token_counts_V: how often each token occurs in the training text.
        precision, device: in what types, and where.
        ranks: the processes that share the lanes.

    Raises:
        ConfigError: the lanes cannot be shared out evenly.
    """
    train = config.train
    _check_lanes(train.batch, ranks)
    torch.manual_seed(config.train.seed)
    model = LSTMLanguageModel(
        model_shape(config, len(token_counts_V)),
        DropoutRates(**config.dropout.model_dump()),
        precision.compute_dtype,
    )
    model.start_from_unigram(torch.from_numpy(token_counts_V))
    model.to(device).train()
    model.ranks = ranks
    return Learner(
        model=model,
        window_pass=build_window_pass(config, model),
        optimizer=make_optimizer(model, config.optimizer),
        precision=precision,
        boundary=build_boundary(config, model),
        state=model.start_state(train.batch // ranks.count),
        learning_rate=config.optimizer.learning_rate,
        clip_norm=config.optimizer.clip_norm,
        past=deque(maxlen=(train.horizon or train.window) // train.window - 1),
        random_window=train.window if train.truncation == "random" else None,
        taught_every=config.synthesizer.teach_every,
        ranks=ranks,
    )


def _check_lanes(batch: int, ranks: Ranks) -> None:
    if batch % ranks.count:
        raise ConfigError(
            f"train.batch = {batch} lanes cannot be shared out among {ranks.count} processes;"
            f" make it a multiple of {ranks.count}"
        )


def build_window_pass(config: Config, model: LSTMLanguageModel) -> RunsWindow:
    """The model's pass over a window: as it is, averaged over ranks, or from a CUDA graph.

    Raises:
        ConfigError: a graph for several ranks.
    """
    train = config.train
    random_window = train.window if train.truncation == "random" else None
    window_pass = WindowPass(model, config.regularizer, random_window)
    if not train.cuda_graph or not model.embedding.is_cuda:
        return window_pass if model.ranks.count == 1 else DistributedDataParallel(window_pass)
    if model.ranks.count > 1:
        raise ConfigError("train.cuda_graph is for one process; leave it out under torchrun")
    return GraphedPass(window_pass)


def token_counts(store: TokenStore) -> npt.NDArray[np.int64]:
    """How often each token occurs in the training split, `(V,)`, in bounded memory."""
    ids, vocab_size = store.ids("train"), store.tokenizer().vocab_size
    counts_V = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, len(ids), COUNTED_AT_ONCE):
        part = ids[start : start + COUNTED_AT_ONCE]
        counts_V += np.bincount(part, minlength=vocab_size)
    return counts_V


def stretch_windows(config: Config) -> int:
    """Windows of a stretch: 1 where nothing is read ahead."""
    settings = config.synthesizer
    return STRETCH if settings.kind == "lookahead" or settings.teach_every else 1


def lookahead_steps(config: Config) -> int | None:
    """How far past a stretch the text is shown at its start; None where nothing reads ahead."""
    settings = config.synthesizer
    if config.schedule.mode == "real":
        return None
    reads = [settings.lookahead] if settings.kind == "lookahead" else []
    reads += [settings.teach_horizon] if settings.teach_every else []
    return max(reads, default=None)


def synthesizer_hidden(config: Config) -> int:
    """Units of the synthesizer's hidden layer."""
    return config.synthesizer.hidden or _HIDDEN_OF_KIND[config.synthesizer.kind]


def build_boundary(config: Config, model: LSTMLanguageModel) -> Boundary | None:
    """The synthesizer at the model's boundaries; None where no cycle is synthetic."""
    if config.schedule.mode == "real":
        return None
    settings, device = config.synthesizer, model.embedding.device
    looks_ahead = settings.kind == "lookahead"
    # Forked, so that the model's dropout draws the same masks with and without a synthesizer.
    with torch.random.fork_rng(devices=[]):
        synthesizer = make_synthesizer(
            settings.kind,
            2 * sum(model.shape.widths),
            synthesizer_hidden(config),
            settings.auxiliary,
            model.shape.embedding + model.shape.widths[-1],
        )
    noise = None
    if settings.inject == "noise":
        # Other numbers than the weights were drawn from.
        noise = torch.Generator(device).manual_seed(config.train.seed + 1)
    return Boundary(
        synthesizer.to(device),
        settings.learning_rate,
        None if settings.factor == "calibrated" else settings.factor,
        settings.trust_bound,
        settings.probe_every,
        stretch_windows(config),
        model.token_features if looks_ahead else None,
        settings.lookahead,
        noise,
        bootstrapped=settings.teach_every is None,
        ranks=model.ranks,
    )


def build_batcher(config: Config, store: TokenStore, ranks: Ranks = ALONE) -> Batcher:
    """Windows over the training split, of the lanes of this process.

    Raises:
        InputError: the split is shorter than one window.
        ConfigError: the lanes cannot be shared out evenly.
    """
    ids_N, train = store.ids("train"), config.train
    _check_lanes(train.batch, ranks)
    lengths = None
    if train.truncation == "random":
        lengths = draw_lengths(len(ids_N) // train.batch, train.window, train.seed)
    return Batcher(
        ids_N,
        batch=train.batch,
        window=train.window,
        eos_id=store.tokenizer().eos_id,
        lengths=lengths,
        stretch=stretch_windows(config),
        lookahead=lookahead_steps(config),
        ranks=ranks,
    )


def build_schedule(config: Config, steps_per_epoch: int) -> Schedule:
    """Cycles in steps."""
    schedule = config.schedule
    return make_schedule(
        schedule.cycle_lengths(),
        unit_steps=steps_per_epoch if schedule.unit == "epochs" else 1,
        mode=schedule.mode,
        start=schedule.start,
        warmup_steps=schedule.warmup_steps,
        final_factor=schedule.final_rate,
    )
