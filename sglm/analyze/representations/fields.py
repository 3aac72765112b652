"""A run's synthesizer of any kind, and the true gradient, as functions of states.

Any `StateGradientEstimator` will do: it is built as for training but with factor 1 and without the
trust bound, restored from the run's checkpoint, and shown what training would show it. Shapes: M
places in a text, P points at each, S coordinates of a state, T steps of a window, C steps of text.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sglm.analyze.reading import unpacked
from sglm.analyze.representations.implied_loss import Field, Loss
from sglm.analyze.representations.sample import SPLIT, WARM_STEPS
from sglm.analyze.subjects import Subject, check_length
from sglm.config import Config, parse_config, plain_values
from sglm.dni.adjoint_pass import adjoint_gradients
from sglm.dni.estimator import StateGradientEstimator, StretchBeginning
from sglm.dni.expected_row import softmax_residual
from sglm.errors import InputError
from sglm.model.folder import read_card
from sglm.model.language_model import LSTMLanguageModel
from sglm.model.state import LSTMState
from sglm.storage.checkpoint import Checkpoint
from sglm.text.batcher import ComingText
from sglm.text.store import TokenStore
from sglm.train.build import build_estimator, lookahead_steps
from sglm.train.run_folder import RunFolder

PLACES = 32
COMING_STEPS = 20  # the true loss is summed over these tokens after a place
_WINDOWS_BEFORE = 4  # read before a place, for synthesizers with a memory of their own


def checkpoint_of(subject: Subject) -> Checkpoint | None:
    """Loads the newest checkpoint of a run, which holds its synthesizer; None if none is left.

    Raises:
        InputError: The checkpoint is damaged.
    """
    return RunFolder(subject.run).load_checkpoint()


@dataclass(frozen=True, kw_only=True)
class Synthesis:
    """The model of a run's newest checkpoint and the estimator beside it, both in float64.

    Attributes:
        model: The model, in evaluation mode.
        estimator: Its estimator, with factor 1 and without a trust bound.
        config: The run's configuration with these changes, `inject = "prediction"` and, if the
            synthesizer reads text, `every = 1`.
    """

    model: LSTMLanguageModel
    estimator: StateGradientEstimator
    config: Config


def load_synthesis(subject: Subject, checkpoint: Checkpoint) -> Synthesis:
    """Builds the model and the estimator of a run and restores them from a checkpoint.

    Raises:
        InputError: The checkpoint does not fit the run's configuration.
    """
    own = subject.config()
    values = plain_values(own)
    values["synthesizer"] |= {"factor": 1.0, "trust_bound": False, "inject": "prediction"}
    if own.synthesizer.reads_text:
        values["synthesizer"]["every"] = 1
    config = parse_config(values, str(subject.run))
    # So the estimator's own tensors are float64 too, and its finite differences exact enough.
    with _default_dtype(torch.float64):
        model = LSTMLanguageModel(read_card(subject.folder).model_shape())
        try:
            tree = checkpoint.state["learner"]
            model.load_state_dict(tree["model"])
            estimator = build_estimator(config, model.eval())
            estimator.load_state_dict(tree["estimator"])
        except (LookupError, TypeError, RuntimeError, ValueError) as error:
            raise InputError(
                f"{checkpoint.path}: is not a checkpoint of {subject.run} ({error}); train again"
                " with this version"
            ) from None
    return Synthesis(model=model, estimator=estimator, config=config)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@dataclass(frozen=True, kw_only=True)
class Places:
    """Places in a text at which windows end.

    Attributes:
        text: Token ids from the start of the first window before each place on, `(C, M)`.
        states: States before each of the windows before the places, and at the places.
        window: T.
    """

    text: ComingText
    states: list[LSTMState]
    window: int

    def packed(self) -> Tensor:
        """Returns the packed states at the places, `(M, S)`."""
        return self.states[-1].packed()

    def text_from(self, window: int, steps: int) -> ComingText:
        """Returns `steps` steps of text from the start of a window (by its number) on."""
        first = window * self.window
        return ComingText(*(ids_CM[first : first + steps] for ids_CM in self.text))

    def at(self, place: int, points: int) -> "Places":
        """Returns one of the places, repeated `points` times."""
        index = torch.full((points,), place)
        return Places(
            text=ComingText(*(ids_CM[:, index] for ids_CM in self.text)),
            states=[state.lanes(index) for state in self.states],
            window=self.window,
        )


def steps_at_a_place(config: Config) -> int:
    """Returns the number of tokens that are read at a place, before and after it."""
    after = max(COMING_STEPS, lookahead_steps(config) or 0)
    return WARM_STEPS + _WINDOWS_BEFORE * config.train.window + after


def check_text_for_places(store: TokenStore, config: Config) -> None:
    """Checks that the validation text is long enough for `find_places`.

    Raises:
        InputError: The text is too short.
    """
    tokens = PLACES + steps_at_a_place(config)
    check_length(store, SPLIT, tokens=tokens, purpose=f"measurements at {PLACES} places")


def find_places(model: LSTMLanguageModel, store: TokenStore, config: Config) -> Places:
    """Chooses `PLACES` places that are spread evenly over the validation text, and reads to them.

    Args:
        model: A model in evaluation mode.
        store: A store with enough text (`check_text_for_places`).
        config: The run's configuration.
    """
    steps, ids = steps_at_a_place(config), store.ids(SPLIT)
    starts_M = np.linspace(0, len(ids) - 1 - steps, PLACES).astype(np.int64)
    ids_CM = torch.from_numpy(ids[starts_M + np.arange(steps + 1)[:, None]].astype(np.int64))
    with torch.no_grad():
        _, state = model.features(ids_CM[:WARM_STEPS], model.start_state(PLACES))
        text = ComingText(ids_CM[WARM_STEPS:-1], ids_CM[WARM_STEPS + 1 :])
        states, window = [state], config.train.window
        for index in range(_WINDOWS_BEFORE):
            inputs_TM = text.inputs_CB[index * window : (index + 1) * window]
            states.append(model.features(inputs_TM, states[-1])[1])
    return Places(text=text, states=states, window=window)


# `(P lanes of one place, points_PS) → (P, …)`
_AtOnePlace = Callable[[Places, Tensor], Tensor]


def _place_by_place(at_one: _AtOnePlace, places: Places) -> Callable[[Tensor], Tensor]:
    """Makes a function of the points at all places from one for a single place.

    Places are computed one at a time, because a recurrent synthesizer's memory is many times as
    large as the states.
    """

    def every(points_MPS: Tensor) -> Tensor:
        parts = [
            at_one(places.at(place, points_MPS.shape[1]), points_PS)
            for place, points_PS in enumerate(points_MPS)
        ]
        return torch.stack(parts)

    return every


def estimated_field(synthesis: Synthesis, places: Places) -> Field:
    """Returns the estimator's predictions as a function of the states at the places."""
    return _place_by_place(partial(_estimate, synthesis), places)


def _estimate(synthesis: Synthesis, place: Places, points_PS: Tensor) -> Tensor:
    """Shows the estimator the windows before the place, as in training, and asks for estimates."""
    estimator, shown = synthesis.estimator, lookahead_steps(synthesis.config) or 0
    estimator.begin_text()
    for index, incoming in enumerate(place.states[:-1]):
        coming = place.text_from(index, place.window + shown)
        estimator.begin_stretch(StretchBeginning(synthesis.model, incoming, coming, place.window))
        estimator.enter_window(incoming)
    return estimator.estimate(unpacked(synthesis.model, points_PS))


def exact_field(model: LSTMLanguageModel, places: Places) -> Field:
    """Returns the true gradient of the next `COMING_STEPS` tokens' nats: the measures' control."""
    return _place_by_place(partial(_exact, model), places)


def _exact(model: LSTMLanguageModel, place: Places, points_PS: Tensor) -> Tensor:
    gradients_1PS: Tensor = adjoint_gradients(
        model,
        unpacked(model, points_PS),
        place.text_from(_WINDOWS_BEFORE, COMING_STEPS),
        window=place.window,
        boundaries=1,
        residual=partial(softmax_residual, model),
    )
    return gradients_1PS[0]


def true_loss(model: LSTMLanguageModel, places: Places) -> Loss:
    """Returns the summed nats of the `COMING_STEPS` tokens after each place, as a function."""
    return _place_by_place(partial(_nats, model), places)


@torch.no_grad()
def _nats(model: LSTMLanguageModel, place: Places, points_PS: Tensor) -> Tensor:
    text = place.text_from(_WINDOWS_BEFORE, COMING_STEPS)
    features_CPH, _ = model.features(text.inputs_CB, unpacked(model, points_PS))
    nats_CP: Tensor = model.nll(features_CPH, text.targets_CB, reduction="none")
    return nats_CP.sum(dim=0)
