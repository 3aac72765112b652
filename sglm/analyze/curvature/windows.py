"""The loss of short windows of text as a twice differentiable function of an LSTM's weights.

sglm's own forward pass cannot be used here: oneDNN's float32 LSTM supports no forward-mode
differentiation and can be differentiated only once, as can the chunked softmax loss. So the layers
are written in plain torch operations, and the loss is replaced by its second-order expansion in the
features: the first and second derivatives at the model's own weights are exactly the same, and a
product with the Hessian then needs no softmax.

Shapes: T steps of a window, N windows, S = T·N tokens, V vocabulary, I inputs and H units of a
layer (of the last layer in shapes of features). Losses are in nats.
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

# Steps that are read before a window to compute its first state; by then the model has forgotten
# the start state.
CONTEXT_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Windows of a text, all of the same length.

    Attributes:
        context_CN: The C = `CONTEXT_STEPS` token ids before each window.
        inputs_TN, targets_TN: Token ids; each target is the token after its input.
    """

    context_CN: Tensor
    inputs_TN: Tensor
    targets_TN: Tensor


def needed_tokens(windows: int, steps: int) -> int:
    """Returns the number of tokens that a text must have for that many disjoint windows."""
    return CONTEXT_STEPS + windows * steps + 1


def choose_windows(ids: npt.NDArray[np.integer[Any]], *, windows: int, steps: int) -> Windows:
    """Chooses windows at even distances over the whole text.

    Args:
        ids: The text, at least `needed_tokens` long.
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
    """The inputs and outputs of a layer's two weight matrices in a window.

    Attributes:
        inputs_TNI: The inputs of `weight_ih`.
        hidden_TNH: The inputs of `weight_hh`: the hidden state before each step.
        gates: The gates at each step, `(N, 4H)`, before the nonlinearities, as nodes of the
            features' autograd graph.
    """

    inputs_TNI: Tensor
    hidden_TNH: Tensor
    gates: list[Tensor]


class WindowFeatures(nn.Module):
    """The features of windows as a function of their embedded inputs, in evaluation mode.

    The state before a window and the embedded inputs are constants: as in training, nothing is
    differentiated past the window's start.
    """

    def __init__(self, model: LSTMLanguageModel, *, state: LSTMState) -> None:
        """
        Args:
            model: The model, whose layers are shared, not copied.
            state: The state before the windows, with N lanes.
        """
        super().__init__()
        self.layers = model.layers
        self.state = state.detach()

    def forward(self, embedded_TNI: Tensor) -> Tensor:
        """Returns the features, `(T, N, H)`."""
        return self.trace(embedded_TNI)[0]

    def trace(self, embedded_TNI: Tensor) -> tuple[Tensor, list[LayerTrace]]:
        """Returns the features and the trace of each layer."""
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
    """The mean loss per token, to second order in each token's features.

    Let d be the difference between a token's features and those of the model, W the softmax matrix
    and p the model's distribution for that token. Up to a constant, the token's loss is then
    `g·d + ½ dᵀCd`, where `g = Wᵀ(p − [target])` and `C = Wᵀ(diag p − ppᵀ)W`.
    Because the logits are linear in the features, C also yields the Gauss–Newton matrix.
    """

    reduction = "sum"  # tells curvlinops to add up the batches without rescaling them

    def __init__(
        self, model: LSTMLanguageModel, *, features_TNH: Tensor, targets_TN: Tensor
    ) -> None:
        """
        Args:
            model: The model whose softmax is used.
            features_TNH: The features at which the loss is expanded.
            targets_TN: The token ids to predict.
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
        """Returns the loss in nats per token, up to a constant.

        Valid only at the model's own features: value and derivatives are those at d = 0. The second
        argument, curvlinops's `y`, is ignored.
        """
        features_SH = features_TNH.flatten(0, 1)
        total: Tensor = _SecondOrder.apply(  # type: ignore[no-untyped-call]
            features_SH, self.gradient_SH, self.curvature_SHH
        )
        return total / len(features_SH)


class _SecondOrder(torch.autograd.Function):
    """A sum over tokens whose gradient is g and whose second derivative is C.

    Its derivatives are written by hand because C is by far the largest array: automatic
    differentiation of `g·d + ½ dᵀCd` would read it at least four times per product, three of them
    to multiply by zero. Here it is read once.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(features_SH: Tensor, gradient_SH: Tensor, curvature_SHH: Tensor) -> Tensor:
        return (features_SH * gradient_SH).sum()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.set_materialize_grads(False)  # avoids zeros of the size of C
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
    """A function that is zero and whose derivative is C."""

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
    """Returns the most numbers held while an `ExpandedLoss` of that many tokens is constructed."""
    features, words = shape.widths[-1], shape.vocab_size
    return tokens * (features**2 + 3 * features + 3 * words) + words * features


class WindowLoss:
    """A model's loss over some windows, as `loss(features(embedded_TNI))`.

    Attributes:
        model, windows: The model and the windows.
        features: The features as a function of the embedded inputs and the layers' weights.
        embedded_TNI: The embedded inputs of the windows.
        loss: The loss as a function of the features.
    """

    def __init__(self, model: LSTMLanguageModel, *, windows: Windows) -> None:
        """
        Args:
            model: The model in evaluation mode; products are computed in its parameters' dtype.
            windows: The windows of the text.
        """
        self.model, self.windows = model, windows
        with torch.no_grad():
            start = model.start_state(windows.inputs_TN.shape[1])
            _, state = model.features(windows.context_CN, start)
            self.embedded_TNI = model.embedding.detach()[windows.inputs_TN]
            self.features = WindowFeatures(model, state=state)
            features_TNH = self.features(self.embedded_TNI)
        self.loss = ExpandedLoss(model, features_TNH=features_TNH, targets_TN=windows.targets_TN)
