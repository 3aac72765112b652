"""The row that a softmax expects, Wᵀ·softmax(Wh + b): computed, or predicted without a softmax.

Shapes: C steps of coming text, B lanes, H features, N = T·B tokens of a window, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sglm.dni.synthesizer import zero_linear
from sglm.model.language_model import LSTMLanguageModel, ModelShape
from sglm.model.linear import linear
from sglm.model.softmax_loss import IGNORED, Stage
from sglm.runtime.ranks import Ranks

_ROW_MEAN_OVER = 10  # windows; the rows of W for frequent words change fast
_ERROR_MEAN_OVER = 100  # windows
_SMALLEST = 1e-12  # keeps the unit of constant targets above zero
# The targets of a new model are nearly constant, so the errors of q and of the targets' mean differ
# only by rounding: q counts as better only if its error is smaller by more than that.
_CLEARLY = 1 - 1e-4
_LOGIT_ENTRIES = 2**20  # 4 MB in float32


class ExpectedRow(nn.Module):
    """The network q from features to the rows that the softmax expects: `(…, H)` to `(…, H)`.

    A linear map plus a network with one hidden layer. Both start at zero and predict the deviation
    from the targets' running mean, in units of its root mean square: before it has learned
    anything, q returns that mean.

    With an adaptive softmax the row also depends on the target's cluster: for a target in a tail,
    the expected row of the tail's own softmax is added. So q also learns an offset per cluster.

    Args:
        size: H.
        hidden: Number of units in the hidden layer.
        clusters: Number of clusters of an adaptive softmax, including the head; 1: a full softmax.

    Attributes:
        mean_H: Running mean of the targets.
        unit: Root mean square of their deviation from the mean.
        error, mean_error: Running means of the squared errors of q and of the mean alone, on
            windows that neither had seen. Both are 0 before the second window, so that q does not
            count as better.
        windows: Number of windows observed.
    """

    def __init__(self, size: int, hidden: int = 128, *, clusters: int = 1) -> None:
        super().__init__()
        self.linear = zero_linear(size, size)
        self.offset = None
        if clusters > 1:
            self.offset = nn.Parameter(torch.zeros(clusters, size))
        self.hidden = nn.Linear(size, hidden)
        self.last = zero_linear(hidden, size)
        for name, value in (
            ("mean_H", torch.zeros(size)),
            ("unit", torch.ones(())),
            ("error", torch.zeros(())),
            ("mean_error", torch.zeros(())),
            ("windows", torch.zeros(())),
        ):
            self.register_buffer(name, value)

    mean_H: Tensor
    unit: Tensor
    error: Tensor
    mean_error: Tensor
    windows: Tensor

    def forward(self, features: Tensor, clusters: Tensor | None = None) -> Tensor:
        return self.mean_H + self.unit * self.normalized_deviation(features, clusters)

    def normalized_deviation(self, features: Tensor, clusters: Tensor | None = None) -> Tensor:
        """Returns the predicted deviation from the mean, in multiples of `unit`.

        Args:
            features: Features `(…, H)`.
            clusters: Clusters of the targets `(…)`; None: the softmax is full.
        """
        features = features.to(self.mean_H.dtype)
        predicted: Tensor = self.linear(features) + self.last(self.hidden(features).tanh())
        return predicted if self.offset is None else predicted + self.offset[clusters]

    @property
    def is_better(self) -> Tensor:
        """Whether q predicts better than the mean, by more than rounding, on windows from which
        it had not learned."""
        return self.error < _CLEARLY * self.mean_error

    def observe(
        self,
        features_NH: Tensor,
        expected_NH: Tensor,
        has_target_N: Tensor,
        *,
        clusters_N: Tensor | None = None,
        ranks: Ranks,
    ) -> tuple[Tensor, Tensor]:
        """Updates the running means with a window from which q has not learned; returns q's loss.

        Args:
            features_NH, expected_NH: Features, and the rows to be predicted from them.
            has_target_N: Whether a token has a target; nothing is learned from the others.
            clusters_N: See `normalized_deviation`.
            ranks: The processes that share the lanes. The loss is this rank's; its mean over the
                ranks is the loss over all lanes.

        Returns:
            `(loss, finite)`: the mean squared error in multiples of `unit`, to be differentiated;
            and whether there were targets and everything was finite. Otherwise nothing is changed.
        """
        predicted_NH = self.normalized_deviation(features_NH, clusters_N)
        with torch.no_grad():
            # The mean over all tokens, with zeros where there is no target, divided by the share of
            # tokens with a target is the mean over the latter.
            share = has_target_N.to(expected_NH.dtype).mean()
            ranks.average([share])
            from_mean_NH = expected_NH - self.mean_H
            error_NH = self.unit * predicted_NH - from_mean_NH
            errors = torch.stack(
                [
                    each_NH.where(has_target_N[:, None], 0.0).square().mean() / share
                    for each_NH in (error_NH, from_mean_NH)
                ]
            )
            finite = self._move(
                errors, expected_NH, has_target_N=has_target_N, share=share, ranks=ranks
            )
        # With the updated mean and unit, because `forward` will use these.
        target_NH = (expected_NH - self.mean_H) / self.unit
        target_NH = target_NH.where(has_target_N[:, None], predicted_NH.detach())
        return F.mse_loss(predicted_NH, target_NH) / share, finite

    def _move(
        self,
        errors: Tensor,
        expected_NH: Tensor,
        *,
        has_target_N: Tensor,
        share: Tensor,
        ranks: Ranks,
    ) -> Tensor:
        """Updates the running means if everything is finite; returns whether it is."""
        counted_NH = expected_NH.where(has_target_N[:, None], 0.0)
        newest = torch.cat((errors, counted_NH.mean(0) / share))
        ranks.average([newest])
        finite = newest.isfinite().all()
        (error, mean_error), mean_H = newest[:2], newest[2:]
        first = self.windows == 0  # the mean was still zero, so there was no prediction to measure
        self.windows += finite
        weight = finite / self.windows.clamp(1, _ERROR_MEAN_OVER)
        measured = finite & ~first
        for kept, new in ((self.error, error), (self.mean_error, mean_error)):
            kept.copy_(torch.where(measured, kept + weight * (new - kept), kept))
        weight = finite / self.windows.clamp(1, _ROW_MEAN_OVER)
        moved_H = self.mean_H + weight * (mean_H - self.mean_H)
        self.mean_H.copy_(moved_H.where(finite, self.mean_H))
        spread_NH = (self.mean_H - expected_NH).where(has_target_N[:, None], 0.0)
        spread = (spread_NH.square().mean() / share)[None]
        ranks.average([spread])
        weight = finite / self.windows.clamp(1, _ERROR_MEAN_OVER)
        square = self.unit.square() + weight * (spread[0] - self.unit.square())
        self.unit.copy_(square.clamp_min(_SMALLEST).sqrt().where(finite, self.unit))
        return finite


@torch.no_grad()
def softmax_residual(model: LSTMLanguageModel, outputs_CBH: Tensor, targets_CB: Tensor) -> Tensor:
    """Computes the true residual, Wᵀ·softmax(Wh + b) − W[y]; the logits held at once are bounded.

    For an adaptive softmax, it is the sum of the residuals of the stages.
    """
    outputs_NH = outputs_CBH.flatten(0, 1)
    expected_NH = torch.zeros_like(outputs_NH, dtype=model.output_weight.dtype)
    for stage in model.stages(targets_CB.flatten()):
        expected_MH = _expected_rows(stage, stage.select(outputs_NH))
        expected_NH = stage.scatter_add(expected_NH, expected_MH)
    return residual_of(model, expected_NH.view_as(outputs_CBH), targets_CB)


def _expected_rows(stage: Stage, features_MH: Tensor) -> Tensor:
    weight_VH, dtype = stage.weight_VH, features_MH.dtype
    weight, bias_V = weight_VH.to(dtype), stage.bias_V.to(dtype)
    rows = max(1, _LOGIT_ENTRIES // len(weight_VH))
    return torch.cat(
        [
            linear(some_RH, weight, bias_V).to(weight_VH.dtype).softmax(-1) @ weight_VH
            for some_RH in torch.split(features_MH, rows)
        ]
    )


def residual_of(model: LSTMLanguageModel, expected_CBH: Tensor, targets_CB: Tensor) -> Tensor:
    """Returns ∂(nats)/∂features from expected rows; zero where nothing is predicted."""
    has_target_CB1 = (targets_CB != IGNORED)[..., None]
    return expected_CBH.where(has_target_CB1, 0.0) + model.known_residual(targets_CB)


def residual_is_cheap(shape: ModelShape) -> bool:
    """Returns whether the true residual costs about as little as q, so that q is not needed.

    Per token, the former takes 2·V·H products. q takes H² + 2·H·(hidden units), and has to be
    trained as well.
    """
    return shape.vocab_size <= 2 * shape.widths[-1]
