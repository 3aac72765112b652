"""The row that a softmax expects, Wᵀ·softmax(Wh + b): from the softmax, or predicted without it.

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
# A new model's targets are nearly constant, and the errors of q and of their mean then differ by
# rounding alone: q is better only if its error is smaller by more than that.
_CLEARLY = 1 - 1e-4
_LOGIT_ENTRIES = 2**20  # 4 MB in float32


class ExpectedRow(nn.Module):
    """q: from a feature to the row that the softmax expects, Wᵀ·softmax(Wh + b): `(…, H)` to same.

    A linear map plus a network of one hidden layer. Both start at zero and predict the deviation
    from the targets' running mean, in units of its root mean square: before it has learned
    anything, q returns that mean.

    With an adaptive softmax the row depends on the target too, by its cluster: those of a tail get
    the expected row of the tail's own softmax added. So q also learns an offset for each cluster.

    Args:
        size: H.
        hidden: units of its hidden layer.
        clusters: of an adaptive softmax, the head among them; 1: a full one.

    Attributes:
        mean_H: running mean of the targets.
        unit: root mean square of their deviation from it.
        error, mean_error: running means of the squared error of q, and of the mean alone, on
            windows that neither had seen; both 0 before the second window: q is not better then.
        windows: how many were observed.
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
        return self.mean_H + self.unit * self.in_units(features, clusters)

    def in_units(self, features: Tensor, clusters: Tensor | None = None) -> Tensor:
        """The predicted deviation from the mean, in units.

        Args:
            features: `(…, H)`.
            clusters: of the targets, `(…)`; None where the softmax is full.
        """
        features = features.to(self.mean_H.dtype)
        predicted: Tensor = self.linear(features) + self.last(self.hidden(features).tanh())
        return predicted if self.offset is None else predicted + self.offset[clusters]

    @property
    def is_better(self) -> Tensor:
        """Whether it predicts better than the mean does, and by more than rounding, on windows it
        had not learned from."""
        return self.error < _CLEARLY * self.mean_error

    def observe(
        self,
        features_NH: Tensor,
        expected_NH: Tensor,
        counts_N: Tensor,
        *,
        clusters_N: Tensor | None = None,
        ranks: Ranks,
    ) -> tuple[Tensor, Tensor]:
        """Takes in a window's targets, which q has not learned from.

        Args:
            features_NH, expected_NH: what it is to predict from, and what.
            counts_N: whether there is a target; where there is none, nothing is learned.
            clusters_N: see `in_units`.
            ranks: the loss is this rank's; its mean over them is that of all lanes.

        Returns:
            `(loss, finite)`: the mean squared error in units, to be differentiated; and whether all
            targets were finite and there were some, else nothing is changed.
        """
        predicted_NH = self.in_units(features_NH, clusters_N)
        with torch.no_grad():
            # A mean over all tokens, with zeros where there is no target, divided by the share of
            # tokens that have one, is the mean over these.
            share = counts_N.to(expected_NH.dtype).mean()
            ranks.average([share])
            from_mean_NH = expected_NH - self.mean_H
            wrong_NH = self.unit * predicted_NH - from_mean_NH
            errors = torch.stack(
                [
                    each_NH.where(counts_N[:, None], 0.0).square().mean() / share
                    for each_NH in (wrong_NH, from_mean_NH)
                ]
            )
            finite = self._move(errors, expected_NH, counts_N=counts_N, share=share, ranks=ranks)
        # By the mean and the unit as just updated: `forward` will use these.
        right_NH = (expected_NH - self.mean_H) / self.unit
        right_NH = right_NH.where(counts_N[:, None], predicted_NH.detach())
        return F.mse_loss(predicted_NH, right_NH) / share, finite

    def _move(
        self, errors: Tensor, expected_NH: Tensor, *, counts_N: Tensor, share: Tensor, ranks: Ranks
    ) -> Tensor:
        """Updates the running means unless something is not finite; returns whether all was."""
        counted_NH = expected_NH.where(counts_N[:, None], 0.0)
        newest = torch.cat((errors, counted_NH.mean(0) / share))
        ranks.average([newest])
        finite = newest.isfinite().all()
        (error, mean_error), mean_H = newest[:2], newest[2:]
        first = self.windows == 0  # nothing was predicted: the mean was zero
        self.windows += finite
        weight = finite / self.windows.clamp(1, _ERROR_MEAN_OVER)
        counts = finite & ~first
        for kept, new in ((self.error, error), (self.mean_error, mean_error)):
            kept.copy_(torch.where(counts, kept + weight * (new - kept), kept))
        weight = finite / self.windows.clamp(1, _ROW_MEAN_OVER)
        moved_H = self.mean_H + weight * (mean_H - self.mean_H)
        self.mean_H.copy_(moved_H.where(finite, self.mean_H))
        spread_NH = (self.mean_H - expected_NH).where(counts_N[:, None], 0.0)
        spread = (spread_NH.square().mean() / share)[None]
        ranks.average([spread])
        weight = finite / self.windows.clamp(1, _ERROR_MEAN_OVER)
        square = self.unit.square() + weight * (spread[0] - self.unit.square())
        self.unit.copy_(square.clamp_min(_SMALLEST).sqrt().where(finite, self.unit))
        return finite


@torch.no_grad()
def softmax_residual(model: LSTMLanguageModel, outputs_CBH: Tensor, targets_CB: Tensor) -> Tensor:
    """The true residual, Wᵀ·softmax(Wh + b) − W[y]; of logits a bounded number is held.

    Of an adaptive softmax, the sum of these over its stages.
    """
    outputs_NH = outputs_CBH.flatten(0, 1)
    expected_NH = torch.zeros_like(outputs_NH, dtype=model.output_weight.dtype)
    for stage in model.stages(targets_CB.flatten()):
        expected_MH = _expected_rows(stage, stage.of(outputs_NH))
        expected_NH = stage.added(expected_NH, expected_MH)
    return residual_of(model, expected_NH.view_as(outputs_CBH), targets_CB)


def _expected_rows(stage: Stage, features_MH: Tensor) -> Tensor:
    weight_VH, kind = stage.weight_VH, features_MH.dtype
    weight, bias_V = weight_VH.to(kind), stage.bias_V.to(kind)
    rows = max(1, _LOGIT_ENTRIES // len(weight_VH))
    return torch.cat(
        [
            linear(some_RH, weight, bias_V).to(weight_VH.dtype).softmax(-1) @ weight_VH
            for some_RH in torch.split(features_MH, rows)
        ]
    )


def residual_of(model: LSTMLanguageModel, expected_CBH: Tensor, targets_CB: Tensor) -> Tensor:
    """From expected rows to ∂(nats)/∂features; zero where nothing is predicted."""
    counts_CB1 = (targets_CB != IGNORED)[..., None]
    return expected_CBH.where(counts_CB1, 0.0) + model.known_residual(targets_CB)


def residual_is_cheap(shape: ModelShape) -> bool:
    """Whether the true residual takes no more products than q does: V·H against H·(H + N) a token,
    and q has to learn besides."""
    return shape.vocab_size <= 2 * shape.widths[-1]
