"""Small exact cases for analyses of gradients: a network in float64 and a text."""

import torch
from torch import Tensor

from sglm.dni.estimator import PlainTruncation, StretchBeginning
from sglm.model.language_model import LSTMLanguageModel
from sglm.model.state import LSTMState
from sglm.text.batcher import ComingText
from tests.dni.exact import future_gradients
from tests.tiny_models import make_network

V, T, N, AHEAD = 7, 3, 4, 6


def network(cutoffs: tuple[int, ...] = ()) -> LSTMLanguageModel:
    return make_network(V, cutoffs=cutoffs).double()


def some_text(steps: int, lanes: int, seed: int = 0) -> ComingText:
    ids = torch.randint(V, (steps + 1, lanes), generator=torch.Generator().manual_seed(seed))
    return ComingText(ids[:-1], ids[1:])


class Future(PlainTruncation):
    """The exact gradient of the next so many tokens, times a factor."""

    def __init__(self, reach: int, factor: float = 1.0) -> None:
        self.reach = reach
        self.factor = factor

    def begin_stretch(self, beginning: StretchBeginning) -> None:
        self.beginning = beginning

    def estimate(self, outgoing: LSTMState) -> Tensor:
        model, _, text, window = self.beginning
        coming = ComingText(*(ids[window : window + self.reach] for ids in text))
        beginning = StretchBeginning(model, outgoing, coming, window)
        return self.factor * future_gradients(beginning, 1)[1][0]
