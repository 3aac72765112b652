"""The adaptive softmax: exact probabilities by token id, and their gradients."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sglm.model.cutoffs import SHARES, chosen_cutoffs
from sglm.model.language_model import LSTMLanguageModel, ModelShape
from sglm.model.softmax_loss import IGNORED, chunk_rows
from sglm.scoring.predictor import NetworkPredictor, target_logprobs
from tests.tiny_models import softmax_by_definition

V, H, CUTOFFS = 23, 6, (5, 9)
# float64 rounding of sums over two dozen words
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def a_model(*, tied: bool = True, cutoffs: tuple[int, ...] = CUTOFFS) -> LSTMLanguageModel:
    """In float64, its words in an order of their own."""
    torch.manual_seed(0)
    shape = ModelShape(vocab_size=V, layers=1, hidden=H, embedding=H, tied=tied, cutoffs=cutoffs)
    model = LSTMLanguageModel(shape).double()
    model.start_from_unigram(torch.randint(1000, (V,)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
    return model


def some_features(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, H, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("cutoffs", [(1,), (22,), CUTOFFS, (3, 4, 8, 21)])
def test_its_probabilities_are_those_of_the_definition(
    cutoffs: tuple[int, ...], tied: bool
) -> None:
    model, features_NH = a_model(tied=tied, cutoffs=cutoffs), some_features(7)
    right_NV = softmax_by_definition(model, features_NH)
    logprobs_NV = model.logits(features_NH)
    torch.testing.assert_close(logprobs_NV, right_NV, **CLOSE)
    torch.testing.assert_close(logprobs_NV.exp().sum(1), torch.ones(7).double(), **CLOSE)
    for word in range(V):
        targets_N = torch.full((7,), word)
        scored_N = target_logprobs(model, features_NH, targets_N)
        torch.testing.assert_close(scored_N, right_NV[:, word], **CLOSE)
        nll_N1 = model.nll(features_NH[:, None], targets_N[:, None], reduction="none")
        torch.testing.assert_close(-nll_N1[:, 0], right_NV[:, word], **CLOSE)


# All at once; and in chunks, where of each of three clusters there are more tokens than fit one.
@pytest.mark.parametrize("tokens", [40, 1200])
@pytest.mark.parametrize("tied", [True, False])
def test_loss_and_gradients_are_those_of_the_definition(
    tokens: int, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sglm.model.softmax_loss.CHUNK_ENTRIES", {"cpu": 1})
    assert (tokens > 3 * chunk_rows(V, "cpu")) == (tokens == 1200)
    model = a_model(tied=tied)
    features_NH = some_features(tokens).requires_grad_()
    targets_N = torch.randint(V, (tokens,), generator=torch.Generator().manual_seed(2))
    targets_N[::9] = IGNORED
    counted_N = targets_N != IGNORED
    logprobs_NV = softmax_by_definition(model, features_NH)
    right = -logprobs_NV[counted_N].gather(1, targets_N[counted_N, None]).sum()
    nll = model.nll(features_NH.unflatten(0, (-1, 4)), targets_N.unflatten(0, (-1, 4)))
    torch.testing.assert_close(nll, right, **CLOSE)
    weights = [features_NH, model.output_weight, model.softmax_bias]
    weights += list(model.adaptive.parameters()) if model.adaptive else []
    # A factor that the loss is multiplied with reaches every gradient.
    pairs = zip(
        torch.autograd.grad(0.3 * nll, weights),
        torch.autograd.grad(0.3 * right, weights),
        strict=True,
    )
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("lanes", [3, 300])
def test_through_the_network_gradients_of_tied_weights_add_up(lanes: int) -> None:
    """`embed` hands out the matrix for the softmax, whose gradient is added to in place."""
    model = a_model()
    ids_TB = torch.randint(V, (3, lanes), generator=torch.Generator().manual_seed(2))
    embedded_TBE, output_weight = model.embed(ids_TB[:-1])
    rows_TB = model.rows_of(ids_TB[:-1])
    gradients = []
    for words_TBE, weight_VH in (
        (embedded_TBE, output_weight),
        (F.embedding(rows_TB, model.embedding), None),
    ):
        features_TBH, _ = model.outputs(words_TBE, model.start_state(lanes))
        nll = model.nll(features_TBH, ids_TB[1:], output_weight=weight_VH)
        gradients.append(torch.autograd.grad(nll, list(model.parameters())))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, **CLOSE)


def test_a_token_id_reads_the_row_of_its_word() -> None:
    model = a_model()
    assert model.adaptive is not None
    rows = model.adaptive.word_rows
    assert rows.tolist() != list(range(V))
    ids_TB = torch.arange(V)[None]
    embedded_TBE, _ = model.embed(ids_TB)
    for word in range(V):
        assert torch.equal(embedded_TBE[0, word], model.embedding[rows[word]])


def test_with_tails_that_cannot_come_it_is_the_full_softmax_of_the_head() -> None:
    model, features_NH = a_model(), some_features(5)
    assert model.adaptive is not None
    with torch.no_grad():
        model.adaptive.bias.fill_(-math.inf)
    head = slice(CUTOFFS[0])
    full = F.linear(features_NH, model.output_weight[head], model.softmax_bias[head])
    words = model.adaptive.word_rows.argsort()[head]  # the ids of these rows
    torch.testing.assert_close(model.logits(features_NH)[:, words], full.log_softmax(1), **CLOSE)


def test_it_is_torchs_where_that_has_the_same_parameters() -> None:
    """There tails have a projection, and no biases; words are numbered by count."""
    model, features_NH = a_model(tied=False), some_features(50)
    assert model.adaptive is not None
    theirs = nn.AdaptiveLogSoftmaxWithLoss(
        H, V, list(CUTOFFS), div_value=1.0, head_bias=True, dtype=torch.float64
    )
    with torch.no_grad():
        model.softmax_bias[CUTOFFS[0] :] = 0
        weight_VH, bias_V = model.output_weight, model.softmax_bias
        theirs.head.weight.copy_(torch.cat((weight_VH[: CUTOFFS[0]], model.adaptive.weight)))
        theirs.head.bias.copy_(torch.cat((bias_V[: CUTOFFS[0]], model.adaptive.bias)))
        bounds = (*CUTOFFS, V)
        for index, tail in enumerate(theirs.tail):
            tail[0].weight.copy_(torch.eye(H))
            tail[1].weight.copy_(weight_VH[bounds[index] : bounds[index + 1]])
    rows = model.adaptive.word_rows
    torch.testing.assert_close(
        model.logits(features_NH), theirs.log_prob(features_NH)[:, rows], **CLOSE
    )
    targets_N = torch.randint(V, (50,), generator=torch.Generator().manual_seed(2))
    nll = model.nll(features_NH[None], targets_N[None])
    torch.testing.assert_close(nll / 50, theirs(features_NH, rows[targets_N]).loss, **CLOSE)


def test_it_starts_from_the_frequencies_of_the_words() -> None:
    """Where features say nothing, probabilities are the counts plus one, whatever the order."""
    counts_V = torch.randint(1000, (V,), generator=torch.Generator().manual_seed(3))
    model = a_model()
    model.start_from_unigram(counts_V)
    assert model.adaptive is not None
    by_row = counts_V[model.adaptive.word_rows.argsort()]
    assert by_row.tolist() == sorted(counts_V.tolist(), reverse=True)
    right_V = (counts_V + 1).double() / (counts_V + 1).sum()
    torch.testing.assert_close(
        model.logits(torch.zeros(1, H, dtype=torch.float64))[0].exp(), right_V, **CLOSE
    )


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_in_other_types(kind: torch.dtype) -> None:
    """A loss is a sum in float32, also of products in half precision."""
    model = a_model().float()
    features_NH = some_features(64).to(kind)
    targets_N = torch.arange(64) % V
    right = (
        -softmax_by_definition(model, features_NH.double())
        .gather(1, targets_N[:, None])
        .sum()
        .float()
    )
    nll = model.nll(features_NH[None], targets_N[None])
    assert nll.dtype == model.logits(features_NH).dtype == torch.float32
    # bfloat16 has eight binary digits; sixty errors partly cancel.
    torch.testing.assert_close(nll, right, rtol=1e-5 if kind is torch.float32 else 1e-2, atol=0)


def test_a_predictor_gives_one_number_by_every_way() -> None:
    predictor = NetworkPredictor(a_model().float().eval())
    ids_TB = torch.randint(V, (9, 3), generator=torch.Generator().manual_seed(5))
    targets_TB = ids_TB.roll(-1, 0).clone()
    targets_TB[4, 1] = IGNORED
    logprobs_TB, _ = predictor.read(ids_TB, targets_TB, predictor.start(3))
    blocks, _ = predictor.distributions(ids_TB, predictor.start(3))
    every_NV = torch.cat([block for _, block in blocks])
    gathered_N = every_NV.gather(1, targets_TB.clamp_min(0).flatten()[:, None])[:, 0]
    assert logprobs_TB is not None
    assert logprobs_TB[4, 1] == 0
    counted_TB = targets_TB != IGNORED
    torch.testing.assert_close(
        logprobs_TB[counted_TB].float(), gathered_N.view(9, 3)[counted_TB], rtol=1e-5, atol=1e-5
    )


class TestCutoffs:
    def test_the_head_makes_up_most_of_the_text(self) -> None:
        counts_V = (1e6 / np.arange(1, 5001)).astype(np.int64)
        shuffled_V = np.random.default_rng(0).permutation(counts_V)
        cutoffs = chosen_cutoffs(shuffled_V)
        assert cutoffs == chosen_cutoffs(counts_V)
        smoothed_V = counts_V + 1
        for cutoff, share in zip(cutoffs, SHARES, strict=True):
            before, after = (smoothed_V[:n].sum() / smoothed_V.sum() for n in (cutoff - 1, cutoff))
            assert before < share <= after

    @pytest.mark.parametrize("counts", [[1], [5, 5], [100, 1, 1], [0] * 8])
    def test_none_where_a_cluster_would_be_empty(self, counts: list[int]) -> None:
        assert chosen_cutoffs(np.array(counts, dtype=np.int64)) == ()
