"""A pass of a model with fixed weights over a text, and state and weight gradients along it.

Everything here is exact and without dropout. The softmax, which costs the most, is computed once
for each token: its gradient in the features is kept, and other gradients are propagated from it.

Shapes: L lanes, T steps of a window, N windows of a lane, C steps of text, E units of the
embedding, H features, S coordinates of a lane's state, P weights of the LSTM layers, R reaches, K
state gradients.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sglm.dni.estimator import StateGradientEstimator, StretchBeginning
from sglm.dni.expected_row import softmax_residual
from sglm.model.language_model import LSTMLanguageModel
from sglm.model.state import LSTMState
from sglm.text.batcher import ComingText

WARM_UP = 50  # steps at the start of a lane that are read only for the state
LONG_REACH = 40  # steps past a window's end that the long horizon covers


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The states and softmax residuals of a model that read a text.

    Attributes:
        window: T.
        inputs_CL, targets_CL: Token ids of the N·T steps of the windows, followed by the steps
            that are only looked ahead at.
        states_NLS: Packed states before each window and after the last one: N + 1 of them.
        residual_CLH: The softmax's residual, ∂(nats of the step)/∂(features).
    """

    window: int
    inputs_CL: Tensor
    targets_CL: Tensor
    states_NLS: Tensor
    residual_CLH: Tensor

    @property
    def windows(self) -> int:
        """N, the number of windows of a lane."""
        return len(self.states_NLS) - 1

    def steps(
        self, of_CL: Tensor, windows: range, lanes: slice, *, first: int, count: int
    ) -> Tensor:
        """Returns `count` steps of each window, from its `first` step on and possibly beyond it.

        Windows and lanes are side by side: `(count, windows · lanes, …)`.
        """
        starts = [window * self.window + first for window in windows]
        return torch.cat([of_CL[start : start + count, lanes] for start in starts], dim=1)

    def states(self, windows: range, lanes: slice) -> Tensor:
        """Returns the packed states before each of the given windows, `(windows · lanes, S)`."""
        return self.states_NLS[windows.start : windows.stop, lanes].flatten(0, 1)


def read(
    model: LSTMLanguageModel, text: ComingText, *, skipped: int, window: int, windows: int
) -> Reading:
    """Reads a text from the start state.

    Args:
        model: A model in evaluation mode.
        text: Ids `(…, L)`.
        skipped: Number of steps that are read first, only for the state.
        window, windows: T and N; the text may be longer than its skipped steps and windows.
    """
    lanes = text.inputs_CB.shape[1]
    state = model.start_state(lanes)
    states: list[Tensor] = []
    residuals = []
    inputs_CL, targets_CL = (ids[skipped:] for ids in text)
    with torch.no_grad():
        if skipped:
            _, state = model.features(text.inputs_CB[:skipped], state)
        for start in range(0, len(inputs_CL), window):
            if len(states) <= windows:
                states.append(state.packed())
            piece = slice(start, start + window)
            features_TLH, state = model.features(inputs_CL[piece], state)
            residuals.append(softmax_residual(model, features_TLH, targets_CL[piece]))
        if len(states) <= windows:  # nothing follows the last window
            states.append(state.packed())
    return Reading(
        window=window,
        inputs_CL=inputs_CL,
        targets_CL=targets_CL,
        states_NLS=torch.stack(states),
        residual_CLH=torch.cat(residuals),
    )


def unpacked(model: LSTMLanguageModel, packed_LS: Tensor) -> LSTMState:
    """Returns the LSTM state that was packed into a tensor, detached."""
    start = model.start_state(len(packed_LS))
    return LSTMState.from_parts(start.parts_of(packed_LS.detach()))


def future_state_gradients(
    model: LSTMLanguageModel,
    reading: Reading,
    reaches: Sequence[int],
    *,
    windows: range,
    lanes: slice,
) -> Tensor:
    """Computes the exact state gradients after windows: those of the nats of the next r steps.

    Args:
        model, reading: The model and its reading of the text.
        reaches: The values of r, ascending, at least 1.
        windows, lanes: Windows after which, and lanes in which, the states lie.

    Returns:
        `(R, windows · lanes, S)`, in nats.
    """
    after = range(windows.start + 1, windows.stop + 1)
    steps = reaches[-1]
    inputs_RL = reading.steps(reading.inputs_CL, after, lanes, first=0, count=steps)
    residual_RLH = reading.steps(reading.residual_CLH, after, lanes, first=0, count=steps)
    leaf = unpacked(model, reading.states(after, lanes)).as_leaf()
    cuts = [end - start for start, end in zip((0, *reaches), reaches, strict=False)]
    state, outputs = leaf, []
    with torch.enable_grad():
        embedded_RLE = model.word_vectors(inputs_RL)
        for piece_TLE in torch.split(embedded_RLE, cuts):
            piece_TLH, state = model.outputs(piece_TLE, state)
            outputs.append(piece_TLH)
    sent_back, parts = torch.split(residual_RLH, cuts), (*leaf.hidden, *leaf.cell)
    gradients = []
    for pieces in range(1, len(cuts) + 1):
        of_parts = torch.autograd.grad(
            outputs[:pieces], parts, sent_back[:pieces], retain_graph=pieces < len(cuts)
        )
        gradients.append(torch.cat(of_parts, dim=1))
    return torch.stack(gradients)


def weight_gradients(
    model: LSTMLanguageModel,
    reading: Reading,
    after_KLS: Tensor,
    *,
    windows: range,
    lanes: slice,
) -> Tensor:
    """Computes gradients in the weights of the LSTM layers, summed over windows and lanes.

    Args:
        model, reading: The model and its reading of the text.
        after_KLS: K kinds of state gradients after the windows, `(K, windows · lanes, S)`.
        windows, lanes: Windows and lanes to sum over.

    Returns:
        `(1 + K, P)`: The gradient of the windows' own nats, then what each kind of state gradient
        adds to it.
    """
    weights = list(model.layers.parameters())
    residual_TLH = reading.steps(
        reading.residual_CLH, windows, lanes, first=0, count=reading.window
    )
    inputs_TL = reading.steps(reading.inputs_CL, windows, lanes, first=0, count=reading.window)
    with torch.enable_grad():
        embedded_TLE = model.word_vectors(inputs_TL)
        outputs_TLH, outgoing = model.outputs(
            embedded_TLE, unpacked(model, reading.states(windows, lanes))
        )
    parts = (*outgoing.hidden, *outgoing.cell)
    found = [torch.autograd.grad(outputs_TLH, weights, residual_TLH, retain_graph=True)]
    found += [
        torch.autograd.grad(parts, weights, outgoing.parts_of(each_LS), retain_graph=True)
        for each_LS in after_KLS
    ]
    return torch.stack([torch.cat([each.flatten() for each in of]) for of in found])


def estimates(
    model: LSTMLanguageModel,
    reading: Reading,
    estimator: StateGradientEstimator,
    *,
    stretch: int,
    lookahead: int,
) -> Tensor:
    """Returns what an estimator would inject after each window in training, `(N, L, S)`.

    Args:
        model, reading: The model and its reading of the text, which the estimator is shown.
        estimator: An estimator; it learns nothing here.
        stretch: Number of windows of a stretch, whose coming text is read together.
        lookahead: Number of steps past a stretch that the estimator is shown.
    """
    estimator.begin_text()
    found = []
    for index in range(reading.windows):
        incoming = unpacked(model, reading.states_NLS[index])
        if index % stretch == 0:
            start = index * reading.window
            end = start + stretch * reading.window + lookahead
            coming = ComingText(reading.inputs_CL[start:end], reading.targets_CL[start:end])
            estimator.begin_stretch(StretchBeginning(model, incoming, coming, reading.window))
        estimator.enter_window(incoming)
        outgoing = unpacked(model, reading.states_NLS[index + 1])
        found.append(estimator.estimate(outgoing).detach().clone())
    return torch.stack(found)
