"""Both uses of a tied matrix through one node: the gradients that autograd finds through two."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sglm.model.embedding import tied_embedding
from sglm.model.language_model import DropoutRates, LSTMLanguageModel, ModelShape

V, E = 7, 3


def uses(ids: Tensor, weight_VE: Tensor, tied: bool) -> tuple[Tensor, Tensor]:
    return tied_embedding(ids, weight_VE) if tied else (F.embedding(ids, weight_VE), weight_VE)


def gradient(used: str, tied: bool) -> Tensor:
    torch.manual_seed(0)
    weight_VE = torch.randn(V, E, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(V - 1, (5, 2))  # a word more than once, another one never
    embedded, weight = uses(ids, weight_VE, tied)
    sums = {"embedding": embedded.square().sum(), "softmax": (weight**3).sum()}
    sums["both"] = sums["embedding"] * sums["softmax"]
    (actual,) = torch.autograd.grad(sums[used], weight_VE)
    return actual


@pytest.mark.parametrize("used", ["embedding", "softmax", "both"])
def test_the_gradient_is_that_of_two_separate_uses(used: str) -> None:
    # float64 rounding: sums of a few numbers in another order
    torch.testing.assert_close(gradient(used, True), gradient(used, False), rtol=1e-12, atol=0)


def test_second_derivatives_are_those_of_two_separate_uses() -> None:
    def second(tied: bool) -> Tensor:
        torch.manual_seed(0)
        weight_VE = torch.randn(V, E, dtype=torch.float64, requires_grad=True)
        embedded, weight = uses(torch.tensor([1, 1, 4]), weight_VE, tied)
        loss = (embedded @ weight.t()).square().sum()
        (first,) = torch.autograd.grad(loss, weight_VE, create_graph=True)
        (actual,) = torch.autograd.grad(first.square().sum(), weight_VE)
        return actual

    torch.testing.assert_close(second(True), second(False), rtol=1e-12, atol=0)


@pytest.mark.parametrize("chunked", [True, False])
def test_a_model_learns_the_same_through_either(
    chunked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With word dropout too, whose mask lies between the matrix and one of its uses."""
    from sglm.model import softmax_loss

    if chunked:
        monkeypatch.setattr(softmax_loss, "FEWEST_ROWS", 1)
        monkeypatch.setattr(softmax_loss, "CHUNK_ENTRIES", {"cpu": 4 * V})

    def run(together: bool) -> Tensor:
        torch.manual_seed(0)
        model = LSTMLanguageModel(
            ModelShape(vocab_size=V, layers=1, hidden=5, embedding=4, tied=True),
            DropoutRates(embedding=0.4),
        ).double()
        ids = torch.randint(V, (7, 3))
        embedded_TBE, output_weight = model.embed(ids[:-1])
        outputs_TBH, _ = model.outputs(embedded_TBE, model.start_state(3))
        given = output_weight if together else None
        model.nll(outputs_TBH, ids[1:], output_weight=given).backward()
        assert model.embedding.grad is not None
        return model.embedding.grad

    torch.testing.assert_close(run(True), run(False), rtol=1e-12, atol=1e-15)


def test_without_gradients_the_matrix_is_the_parameter() -> None:
    model = LSTMLanguageModel(ModelShape(vocab_size=V, layers=1, hidden=5, embedding=4, tied=True))
    with torch.no_grad():
        assert model.embed(torch.zeros(1, 1).long())[1] is model.embedding
