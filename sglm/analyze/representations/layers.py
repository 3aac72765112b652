"""The layers of a model at the positions of a sample, and the model's predictions there.

Shapes: N positions, D units of a layer, B lanes, T steps, E units of the embedding, H
features, M some of the positions, V vocabulary.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sglm.analyze.representations.sample import LANES, WARM_STEPS, Sample
from sglm.model.language_model import LSTMLanguageModel

_LOGIT_ENTRIES = 2**22  # 16 MB in float32


@dataclass(frozen=True, kw_only=True)
class Layers:
    """The layers of one model at the positions of a sample.

    Attributes:
        model: Model that read the sample.
        by_name: Values `(N, D)` of each layer, in the order in which a token passes through them:
            `embedding`, then `cell 1`, `hidden 1`, …, and `logits` (see `_logits`).
        features_NH: The softmax's input: the last hidden state.
    """

    model: LSTMLanguageModel
    by_name: Mapping[str, Tensor]
    features_NH: Tensor

    def every(self, step: int) -> "Layers":
        """Returns the layers at every `step`-th position only."""
        return Layers(
            model=self.model,
            by_name={name: rows_ND[::step] for name, rows_ND in self.by_name.items()},
            features_NH=self.features_NH[::step],
        )


@torch.no_grad()
def read_layers(model: LSTMLanguageModel, sample: Sample) -> Layers:
    """Reads the sample's lanes from the start state on."""
    ids_TB = torch.from_numpy(sample.ids_TB[:-1])
    embedded_TBE, _ = model.embed(ids_TB)
    _, state = model.outputs(embedded_TBE[:WARM_STEPS], model.start_state(LANES))
    kept: dict[str, list[Tensor]] = {}
    # A pass returns the cell states of its last step only, so a pass ends at every position.
    for piece_TBE in torch.split(embedded_TBE[WARM_STEPS:], sample.stride):
        _, state = model.outputs(piece_TBE, state)
        kept.setdefault("embedding", []).append(piece_TBE[-1])
        for number, (cell_BH, hidden_BH) in enumerate(zip(state.cell, state.hidden, strict=True)):
            kept.setdefault(f"cell {number + 1}", []).append(cell_BH)
            kept.setdefault(f"hidden {number + 1}", []).append(hidden_BH)
    by_name = {name: torch.stack(parts, dim=1).flatten(0, 1) for name, parts in kept.items()}
    features_NH = by_name[f"hidden {len(model.layers)}"]
    by_name["logits"] = _logits(model, features_NH)
    return Layers(model=model, by_name=by_name, features_NH=features_NH)


def _logits(model: LSTMLanguageModel, features_NH: Tensor) -> Tensor:
    """Returns `(N, H)` numbers with the distances and centred inner products of the logits.

    Logits less their mean over the vocabulary, which the softmax does not depend on, are W°h + b°,
    and b° is the same at all positions. In H dimensions instead of V, h·(W°ᵀW°)^½ has the same
    distances and centred inner products. For an adaptive softmax, a word's row of W is its own row
    plus that of its tail in the head, which gives the logits before the tails are normalised.
    """
    weight_VH = model.target_rows(torch.arange(model.shape.vocab_size)).double()
    weight_VH = weight_VH - weight_VH.mean(0)
    values_H, vectors_HH = torch.linalg.eigh(weight_VH.T @ weight_VH)
    root_HH = vectors_HH * values_H.clamp_min(0).sqrt()
    logits_NH: Tensor = features_NH.double() @ root_HH
    return logits_NH.to(features_NH.dtype)


@torch.no_grad()
def log_probabilities(layers: Layers, rows: int | None = None) -> Iterator[Tensor]:
    """Yields the log-probabilities position after position, `(at most rows, V)` at a time."""
    rows = rows or rows_at_once(layers.model)
    for features_MH in torch.split(layers.features_NH, rows):
        yield layers.model.logits(features_MH).log_softmax(-1)


def rows_at_once(model: LSTMLanguageModel) -> int:
    """Returns the number of positions whose logits are held in memory together."""
    return max(1, _LOGIT_ENTRIES // model.shape.vocab_size)


def mean_nats(layers: Layers, sample: Sample) -> float:
    """Returns the mean surprisal of the sample's next tokens, in nats per token."""
    targets_N = torch.from_numpy(sample.next_N)
    rows, total = rows_at_once(layers.model), 0.0
    for logp_MV, next_M in zip(
        log_probabilities(layers), torch.split(targets_N, rows), strict=True
    ):
        total -= float(logp_MV.gather(1, next_M[:, None]).double().sum())
    return total / len(targets_N)
