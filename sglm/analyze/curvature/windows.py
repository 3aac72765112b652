"""The loss of short windows of text as a function of an LSTM's weights, twice differentiable.

sglm's own forward pass cannot be used here: oneDNN's float32 LSTM has no forward differentiation
and can be differentiated only once, as can the chunked softmax loss. So the layers are written in
plain torch operations, and the loss is replaced by its expansion in the features to second order:
first and second derivatives at the model's own weights are the same, exactly, and a product with
the Hessian then needs no softmax.

Shapes: T steps of a window, N windows, S = T·N tokens, V vocabulary, I inputs and H units of a
layer (of the last one where features are meant). Losses are in nats.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sglm.model.language_model import LSTMLanguageModel, ModelShape
from sglm.model.lstm_layer import LSTMLayer
from sglm.model.state import LSTMState

# Steps before a window from which its first state comes; the start state is forgotten by then.
CONTEXT_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Pieces of a text, all of one length.

    Attributes:
        context_CN: ids before each window.
        inputs_TN, targets_TN: ids; a target is the token after its input.
    """

    context_CN: Tensor
    inputs_TN: Tensor
    targets_TN: Tensor


def needed_tokens(windows: int, steps: int) -> int:
    """How long a text must be for so many windows that do not overlap."""
    return CONTEXT_STEPS + windows * steps + 1


def choose_windows(ids: npt.NDArray[np.integer[Any]], *, windows: int, steps: int) -> Windows:
    """Windows at even distances over the whole text.

    Args:
        ids: the text, at least `needed_tokens` long.
        windows, steps: N and T.
    """
    last = len(ids) - CONTEXT_STEPS - steps - 1
    starts = np.linspace(0, last, windows).round().astype(np.int64)
    length = CONTEXT_STEPS + steps + 1
    pieces = np.stack([np.asarray(ids[start : start + length], np.int64) for start in starts])
    tokens = torch.from_numpy(pieces).t().contiguous()
    return Windows(
        context_CN=tokens[:CONTEXT_STEPS],
        inputs_TN=tokens[CONTEXT_STEPS:-1],
        targets_TN=tokens[CONTEXT_STEPS + 1 :],
    )


@dataclass(frozen=True, kw_only=True)
class LayerTrace:
    """What a layer's matrices read and give in a window.

    Attributes:
        inputs_TNI: that `weight_ih` reads.
        hidden_TNH: that `weight_hh` reads: the hidden state before each step.
        gates: for each step `(N, 4H)`, before the nonlinearities, in the graph of the features.
    """

    inputs_TNI: Tensor
    hidden_TNH: Tensor
    gates: list[Tensor]


class WindowFeatures(nn.Module):
    """The features of windows, from embedded inputs, as the model in evaluation mode gives them.

    The state before a window and the embedded inputs are constants: as in training, nothing is
    differentiated past the window's start.
    """

    def __init__(self, model: LSTMLanguageModel, *, state: LSTMState) -> None:
        """
        Args:
            model: its layers are shared, not copied.
            state: before the windows; N lanes.
        """
        super().__init__()
        self.layers = model.layers
        self.state = state.detach()

    def forward(self, embedded_TNI: Tensor) -> Tensor:
        """`(T, N, H)`."""
        return self.trace(embedded_TNI)[0]

    def trace(self, embedded_TNI: Tensor) -> tuple[Tensor, list[LayerTrace]]:
        """The features, and what happened in every layer on the way."""
        below_TNI, traces = embedded_TNI, []
        layers = cast(Iterable[LSTMLayer], self.layers)
        for layer, hidden_NH, cell_NH in zip(
            layers, self.state.hidden, self.state.cell, strict=True
        ):
            hidden, gates = [hidden_NH], []
            from_below = below_TNI @ layer.weight_ih.t() + layer.bias
            for from_below_NG in from_below:
                gates_NG = from_below_NG + hidden[-1] @ layer.weight_hh.t()
                input_, forget, candidate, output = gates_NG.chunk(4, -1)
                cell_NH = forget.sigmoid() * cell_NH + input_.sigmoid() * candidate.tanh()
                hidden.append(output.sigmoid() * cell_NH.tanh())
                gates.append(gates_NG)
            traces.append(
                LayerTrace(inputs_TNI=below_TNI, hidden_TNH=torch.stack(hidden[:-1]), gates=gates)
            )
            below_TNI = torch.stack(hidden[1:])
        return below_TNI, traces


class ExpandedLoss(nn.Module):
    """The mean loss of a token, to second order in the features of each.

    With d the distance of a token's features from those of the model, W the softmax matrix and p
    the model's distribution there:
    `g·d + ½ dᵀCd`, where `g = Wᵀ(p − [target])` and `C = Wᵀ(diag p − ppᵀ)W`.
    Because the logits are linear in the features, C also makes the Gauss–Newton matrix.
    """

    reduction = "sum"  # for curvlinops: the batches are added up as they are

    def __init__(
        self, model: LSTMLanguageModel, *, features_TNH: Tensor, targets_TN: Tensor
    ) -> None:
        """
        Args:
            model: of the softmax.
            features_TNH: at which the loss is expanded.
            targets_TN: token ids.
        """
        super().__init__()
        with torch.no_grad():
            features_SH, weight_VH = features_TNH.detach().flatten(0, 1), model.output_weight
            logits_SV = features_SH @ weight_VH.t() + model.softmax_bias
            p_SV = logits_SV.softmax(-1)
            mean_SH = p_SV @ weight_VH
            curvature_SHH = features_SH.new_empty(*features_SH.shape, features_SH.shape[1])
            for p_V, mean_H, out_HH in zip(p_SV, mean_SH, curvature_SHH, strict=True):
                scaled_VH = weight_VH * p_V.sqrt()[:, None]
                torch.mm(scaled_VH.t(), scaled_VH, out=out_HH)
                out_HH.addr_(mean_H, mean_H, alpha=-1)
            targets_S = targets_TN.flatten()
            self.nll = F.cross_entropy(logits_SV, targets_S).item()
            self.features_SH: Tensor
            self.gradient_SH: Tensor
            self.curvature_SHH: Tensor
            self.register_buffer("features_SH", features_SH)
            self.register_buffer("gradient_SH", mean_SH - weight_VH[targets_S])
            self.register_buffer("curvature_SHH", curvature_SHH)

    def forward(self, features_TNH: Tensor, _: Tensor) -> Tensor:
        """Nats a token, up to a constant; the second argument is what curvlinops calls y.

        Only at the model's own features: there, and in its derivatives, d is zero.
        """
        features_SH = features_TNH.flatten(0, 1)
        total: Tensor = _SecondOrder.apply(  # type: ignore[no-untyped-call]
            features_SH, self.gradient_SH, self.curvature_SHH
        )
        return total / len(features_SH)


class _SecondOrder(torch.autograd.Function):
    """A sum whose gradient is g, and whose gradient's derivative is C.

    By hand, because C is the largest array by far and automatic differentiation of `g·d + ½ dᵀCd`
    would read it at least four times for a product, three of them times zero. So it is read once.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(features_SH: Tensor, gradient_SH: Tensor, curvature_SHH: Tensor) -> Tensor:
        return (features_SH * gradient_SH).sum()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.set_materialize_grads(False)  # no zeros of the size of C
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx: Any, towards_SH: Tensor, *_: None) -> Tensor:
        gradient_SH: Tensor = ctx.saved_tensors[1]
        return (towards_SH * gradient_SH).sum()

    @staticmethod
    def backward(ctx: Any, to_total: Tensor) -> tuple[Tensor, None, None]:
        features_SH, gradient_SH, curvature_SHH = ctx.saved_tensors
        curved: Tensor = _Curved.apply(features_SH, curvature_SHH)  # type: ignore[no-untyped-call]
        return to_total * (gradient_SH + curved), None, None


class _Curved(torch.autograd.Function):
    """Zero, with the derivative C."""

    generate_vmap_rule = True

    @staticmethod
    def forward(features_SH: Tensor, curvature_SHH: Tensor) -> Tensor:
        return torch.zeros_like(features_SH)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[1])
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def jvp(ctx: Any, towards_SH: Tensor, _: None) -> Tensor:
        return torch.bmm(ctx.saved_tensors[0], towards_SH.unsqueeze(-1)).squeeze(-1)

    @staticmethod
    def backward(ctx: Any, to_curved_SH: Tensor) -> tuple[Tensor, None]:
        return torch.bmm(ctx.saved_tensors[0], to_curved_SH.unsqueeze(-1)).squeeze(-1), None


def expansion_floats(shape: ModelShape, tokens: int) -> int:
    """How many numbers the making of an `ExpandedLoss` of so many tokens holds at most."""
    features, words = shape.widths[-1], shape.vocab_size
    return tokens * (features**2 + 3 * features + 3 * words) + words * features


class WindowLoss:
    """A model's loss over some windows.

    Attributes:
        model, windows: what it is of.
        features: the function of the weights, of `embedded_TNI`.
        embedded_TNI: its argument.
        loss: the function of the features.
    """

    def __init__(self, model: LSTMLanguageModel, *, windows: Windows) -> None:
        """
        Args:
            model: in evaluation mode; products are computed in the type of its parameters.
            windows: of the text.
        """
        self.model, self.windows = model, windows
        with torch.no_grad():
            start = model.start_state(windows.inputs_TN.shape[1])
            _, state = model.features(windows.context_CN, start)
            self.embedded_TNI = model.embedding.detach()[windows.inputs_TN]
            self.features = WindowFeatures(model, state=state)
            features_TNH = self.features(self.embedded_TNI)
        self.loss = ExpandedLoss(model, features_TNH=features_TNH, targets_TN=windows.targets_TN)
