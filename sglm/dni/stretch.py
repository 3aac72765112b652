"""A stretch: the windows whose boundaries are read ahead for, and learned from, together.

Reading ahead pays for several boundaries at once, and so does one regression. Shapes: B lanes, S
coordinates of a lane's state, C steps of coming text, K sequences that are read, F features of a
step, N numbers of a summary, T steps of a window.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from sglm.config import SynthesizerConfig
from sglm.dni.synthesizer import LookaheadSynthesizer, hidden_units
from sglm.model.language_model import LSTMLanguageModel, ModelShape
from sglm.model.lstm_layer import layer_floats
from sglm.runtime.memory_basis import MemoryBasis
from sglm.runtime.ranks import Ranks
from sglm.text.batcher import ComingText

# Windows of a stretch for what reads ahead. Where windows are short, it reads some way beyond a
# stretch, so that a short one would read most of the text twice.
READ_AHEAD_STRETCH = 8


class Lesson(NamedTuple):
    """One boundary and what should have been predicted there.

    Attributes:
        state_BS: the packed state.
        recurrent_state: what a recurrent synthesizer was given with it, or None.
        boundary: its number in the stretch, from 0.
        observed_BS: the target; a lane with a number that is not finite teaches nothing.
        next_BS: the auxiliary target, in the synthesizer's own unit, or None.
        pure: nothing synthetic went into the target.
        probe: the synthesizer is measured on it.
    """

    state_BS: Tensor
    recurrent_state: Tensor | None
    boundary: int
    observed_BS: Tensor
    next_BS: Tensor | None
    pure: bool
    probe: bool


def reads_side_by_side(window: int, lookahead: int) -> bool:
    """Whether each boundary's coming text is read by itself, or that of a stretch in one go.

    Windows shorter than the lookahead are read along, so that no token is read twice. Longer ones
    are read from each boundary only as far as the lookahead, side by side as if they were lanes of
    their own: what lies further on tells little.
    """
    return window >= lookahead


class Stretch:
    """Where a stretch has got to, what lies ahead of its boundaries, and its lessons so far.

    Args:
        windows: how many there are; the text may end before.
        lookahead: steps past a boundary that a lookahead synthesizer surely reads.

    Attributes:
        index: windows that were entered, and so the boundary after the current one.
        lessons: of the windows that have ended.
        features_CKF: what the tokens of the coming text look like; None where nothing is read.
        starts: at which of those steps the text ahead of a boundary begins.
        summaries: of what lies ahead of each boundary, `(B, N)` each, with the graph that made
            them, for lessons are learned through it.
    """

    def __init__(self, windows: int = 1, *, lookahead: int = 10) -> None:
        self.windows = windows
        self.lookahead = lookahead
        self.index = 0
        self.lessons: list[Lesson] = []
        self.features_CKF: Tensor | None = None
        self.starts: Tensor | None = None
        self.summaries: tuple[Tensor, ...] | None = None

    def read_ahead(self, model: LSTMLanguageModel, coming: ComingText, window: int) -> None:
        """Takes in the text of the stretch that begins and what follows it.

        Args:
            model: whose embeddings the tokens are read as, as they are now.
            coming: the text; where it ends earlier, its last token is read instead.
            window: T, the distance of the boundaries.
        """
        inputs_CB, targets_CB = coming
        last, device = inputs_CB.shape[0] - 1, inputs_CB.device
        boundaries_P = torch.arange(self.windows + 1, device=device) * window
        self.starts = boundaries_P.clamp_max(last)
        if reads_side_by_side(window, self.lookahead):
            steps_RP = torch.arange(self.lookahead, device=device)[:, None] + boundaries_P
            inputs_CB, targets_CB = (
                ids_CB[steps_RP.clamp_max(last)].transpose(1, 2).flatten(1)
                for ids_CB in (inputs_CB, targets_CB)
            )
            self.starts = boundaries_P[:1]
        self.features_CKF = model.token_features(inputs_CB, targets_CB).detach()

    def summarise(self, synthesizer: LookaheadSynthesizer) -> None:
        """Sums up what lies ahead of every boundary, with the synthesizer as it is now."""
        assert self.features_CKF is not None
        assert self.starts is not None
        summaries = synthesizer.summarise(self.features_CKF, self.starts)
        # Each lane was read once for all boundaries, or once for each of them.
        each = (self.windows + 1) // len(self.starts)
        by_boundary = torch.unflatten(summaries, 1, (-1, each)).transpose(1, 2).flatten(0, 1)
        self.summaries = by_boundary.unbind()

    def is_over(self, is_last: bool) -> bool:
        """Whether it ends with the current window, as it does where the text ends."""
        return self.index == self.windows or is_last

    def take_lessons(self) -> list[Lesson]:
        """Its lessons, as it ends; the next window begins another stretch."""
        lessons, self.lessons, self.index = self.lessons, [], 0
        return lessons

    def contexts(self, lessons: list[Lesson]) -> Tensor | None:
        """What the synthesizer is given beside the states of these lessons, end to end."""
        if self.summaries is not None:
            return torch.cat([self.summaries[lesson.boundary] for lesson in lessons])
        states = [each.recurrent_state for each in lessons if each.recurrent_state is not None]
        return torch.cat(states) if states else None  # a recurrent net has one lesson

    def state_dict(self, ranks: Ranks) -> dict[str, Any]:
        """Where it is, of all ranks' lanes; to be called by all of them."""
        return {
            "features": every_lane(ranks, self.features_CKF, dim=1),
            "starts": self.starts,
            "index": self.index,
            "lessons": [[every_lane(ranks, each) for each in lesson] for lesson in self.lessons],
        }

    def load_state_dict(self, tree: dict[str, Any], ranks: Ranks, device: torch.device) -> None:
        """Puts back what `state_dict` gave, as far as it is this rank's; `summarise` comes next."""
        self.features_CKF = own_lanes(ranks, tree["features"], device, dim=1)
        self.starts = None if tree["starts"] is None else tree["starts"].to(device)
        self.index = tree["index"]
        self.lessons = [
            Lesson(*(own_lanes(ranks, value, device) for value in values))
            for values in tree["lessons"]
        ]


def every_lane(ranks: Ranks, own: Any, dim: int = 0) -> Any:
    """The lanes of all ranks, where it has lanes."""
    return ranks.gather(own, dim) if isinstance(own, Tensor) and own.dim() else own


def own_lanes(ranks: Ranks, every: Any, device: torch.device, *, dim: int = 0) -> Any:
    """This rank's lanes of a saved value, where it has lanes; on the device, if it is a tensor."""
    if not isinstance(every, Tensor):
        return every
    return (ranks.own(every, dim) if every.dim() else every).to(device)


def stretch_floats(
    settings: SynthesizerConfig,
    shape: ModelShape,
    basis: MemoryBasis,
    *,
    window: int,
    lookahead: int,
) -> tuple[float, float]:
    """What a lookahead synthesizer holds from a stretch's start to its end.

    Args:
        settings, shape: of the synthesizer and the model.
        basis: for which lanes, where.
        window: T.
        lookahead: steps past the stretch that are shown.

    Returns:
        `(features of its tokens, which are saved too; all of it)`.
    """
    if settings.kind != "lookahead":
        return 0, 0
    lanes, steps = basis.lanes, settings.lookahead
    if reads_side_by_side(window, steps):
        lanes *= READ_AHEAD_STRETCH + 1
    else:
        steps = READ_AHEAD_STRETCH * window + lookahead
    read, units = lanes * steps, hidden_units(settings)
    features = read * (shape.embedding + shape.widths[-1])
    reader = layer_floats(units, units, basis._replace(lanes=lanes, product_size=1.0), steps=steps)
    # The features, the same normalised; their projection; the reader's own.
    return features, 2 * features + 2 * read * units + reader
