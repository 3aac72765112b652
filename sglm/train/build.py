"""From a configuration to objects: the only place that names concrete classes and sets the seed."""

import numpy as np
import numpy.typing as npt
import torch

from sglm.config import Config
from sglm.dni.boundary import Boundary
from sglm.dni.synthesizer import make_synthesizer
from sglm.model.language_model import DropoutRates, LSTMLanguageModel, ModelShape
from sglm.optim.optimizer import make_optimizer
from sglm.optim.precision import Precision
from sglm.optim.schedule import Schedule, make_schedule
from sglm.text.batcher import Batcher
from sglm.text.store import TokenStore
from sglm.train.step import Learner

_COUNTED_AT_ONCE = 2**24
_HIDDEN_OF_KIND = {"mlp": 128, "recurrent": 50, "linear": 0}


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
) -> Learner:
    """Model, optimizer and boundary with fresh weights drawn from `train.seed`.

    Args:
        config: sizes, rates, seed.
        token_counts_V: how often each token occurs in the training text.
        precision, device: in what types, and where.
    """
    torch.manual_seed(config.train.seed)
    model = LSTMLanguageModel(
        model_shape(config, len(token_counts_V)),
        DropoutRates(**config.dropout.model_dump()),
        precision.compute_dtype,
    )
    model.start_from_unigram(torch.from_numpy(token_counts_V))
    model.to(device).train()
    return Learner(
        model=model,
        optimizer=make_optimizer(model, config.optimizer),
        precision=precision,
        boundary=build_boundary(config, model),
        state=model.start_state(config.train.batch),
        learning_rate=config.optimizer.learning_rate,
        clip_norm=config.optimizer.clip_norm,
    )


def token_counts(store: TokenStore) -> npt.NDArray[np.int64]:
    """How often each token occurs in the training split, `(V,)`, in bounded memory."""
    ids, vocab_size = store.ids("train"), store.tokenizer().vocab_size
    counts_V = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, len(ids), _COUNTED_AT_ONCE):
        part = ids[start : start + _COUNTED_AT_ONCE]
        counts_V += np.bincount(part, minlength=vocab_size)
    return counts_V


def build_boundary(config: Config, model: LSTMLanguageModel) -> Boundary | None:
    """The synthesizer at the model's boundaries; None where no cycle is synthetic."""
    if config.schedule.mode == "real":
        return None
    settings = config.synthesizer
    # Forked, so that the model's dropout draws the same masks with and without a synthesizer.
    with torch.random.fork_rng(devices=[]):
        synthesizer = make_synthesizer(
            settings.kind,
            2 * sum(model.shape.widths),
            settings.hidden or _HIDDEN_OF_KIND[settings.kind],
            settings.auxiliary,
        )
    return Boundary(
        synthesizer.to(model.embedding.device),
        settings.learning_rate,
        settings.factor,
        settings.trust_bound,
        settings.probe_every,
    )


def build_batcher(config: Config, store: TokenStore) -> Batcher:
    """Windows over the training split.

    Raises:
        InputError: the split is shorter than one window.
    """
    return Batcher(
        store.ids("train"), config.train.batch, config.train.window, store.tokenizer().eos_id
    )


def build_schedule(config: Config, steps_per_epoch: int) -> Schedule:
    """Cycles in steps."""
    schedule = config.schedule
    return make_schedule(
        schedule.cycle_lengths(),
        steps_per_epoch if schedule.unit == "epochs" else 1,
        schedule.mode,
        schedule.start,
        schedule.warmup_steps,
        schedule.final_rate,
    )
