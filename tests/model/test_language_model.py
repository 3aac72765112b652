"""The network: equations, shapes, initialisation, dropout, number types."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sglm.model import lstm_layer
from sglm.model.dropout import locked_dropout, weight_dropout, word_dropout
from sglm.model.language_model import DropoutRates, LSTMLanguageModel, ModelShape

T, B, V = 6, 3, 11


def make_model(tied: bool = True, **kwargs: object) -> LSTMLanguageModel:
    torch.manual_seed(0)
    shape = ModelShape(vocab_size=V, layers=2, hidden=5, embedding=4, tied=tied)
    return LSTMLanguageModel(shape, **kwargs).double()  # type: ignore[arg-type]


def window() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(V, (T + 1, B), generator=generator)
    return ids[:-1], ids[1:]


@pytest.mark.parametrize("tied", [True, False])
def test_shapes(tied: bool) -> None:
    model = make_model(tied)
    inputs_TB, targets_TB = window()
    features_TBH, state = model.features(inputs_TB, model.start_state(B))
    last = 4 if tied else 5
    assert features_TBH.shape == (T, B, last)
    assert [part.shape for part in state.hidden] == [(B, 5), (B, last)]
    assert state.packed().shape == (B, model.shape.state_size) == (B, 2 * (5 + last))
    assert model.nll(features_TBH, targets_TB).shape == ()
    assert model.nll(features_TBH, targets_TB, reduction="none").shape == (T, B)
    assert model.logits(features_TBH).shape == (T, B, V)


def test_forward_is_the_lstm_of_the_textbook() -> None:
    """Recomputed gate by gate: i, f, g, o; c = f·c + i·g; h = o·tanh c (Gers et al. 2000)."""
    model = make_model()
    inputs_TB, targets_TB = window()
    features_TBH, state = model.features(inputs_TB, model.start_state(B))
    outputs = model.embedding[inputs_TB]
    for layer in model.layers:
        units = layer.bias.shape[0] // 4
        hidden = cell = torch.zeros(B, units, dtype=torch.float64)
        steps = []
        for x in outputs:
            gates = x @ layer.weight_ih.t() + hidden @ layer.weight_hh.t() + layer.bias
            i, f, g, o = gates.chunk(4, dim=1)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
            steps.append(hidden)
        outputs = torch.stack(steps)
    # float64 rounding over a dozen steps
    torch.testing.assert_close(features_TBH, outputs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(state.cell[-1], cell, rtol=1e-12, atol=1e-12)
    logits = outputs @ model.embedding.t() + model.softmax_bias
    expected = F.cross_entropy(logits.flatten(0, 1), targets_TB.flatten(), reduction="sum")
    torch.testing.assert_close(model.nll(features_TBH, targets_TB), expected)


def test_two_windows_are_one_long_one() -> None:
    model = make_model()
    inputs_TB, _ = window()
    whole, end = model.features(inputs_TB, model.start_state(B))
    first, middle = model.features(inputs_TB[:2], model.start_state(B))
    second, last = model.features(inputs_TB[2:], middle)
    torch.testing.assert_close(torch.cat([first, second]), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last.packed(), end.packed(), rtol=1e-12, atol=1e-12)


def test_a_long_window_is_the_same_in_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = ModelShape(vocab_size=9, layers=2, hidden=6, embedding=5, tied=False)
    torch.manual_seed(0)
    model = LSTMLanguageModel(shape).double()
    inputs_TB = torch.randint(9, (11, 3))
    actual = []
    for steps in (1000, 4):  # 4 + 4 + 3
        monkeypatch.setattr(lstm_layer, "SEGMENT_STEPS", steps)
        model.zero_grad()
        features_TBH, state = model.features(inputs_TB, model.start_state(3))
        (features_TBH.square().sum() + sum(each.sum() for each in state.cell)).backward()
        grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        actual.append([features_TBH, *state.hidden, *state.cell, *grads])
    for whole, segments in zip(*actual, strict=True):
        torch.testing.assert_close(whole, segments)


def test_tied_weights_are_one_parameter() -> None:
    tied, untied = make_model(True), make_model(False)
    assert tied.output_weight is tied.embedding
    assert untied.output_weight is not untied.embedding
    assert sum(p.numel() for p in tied.parameters()) == V * 4 + V + 20 * 10 + 16 * 10


def test_initialisation_follows_its_sources() -> None:
    model = make_model()
    for layer in model.layers:
        units = layer.weight_hh.shape[1]
        gates = layer.bias.detach().view(4, units)
        assert (gates[1] == 1).all()
        assert (gates[[0, 2, 3]] == 0).all()
        for gate in layer.weight_hh.detach().view(4, units, units):
            # float32 orthogonalisation: a few times 1e-7 off
            torch.testing.assert_close(
                gate @ gate.t(), torch.eye(units, dtype=torch.float64), rtol=0, atol=1e-5
            )


@torch.no_grad()
@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5])
def test_a_fresh_net_with_weight_dropout_forgets_where_it_started(rate: float) -> None:
    """Else the state depends on its past alone, and not on what is read: nothing is learned."""
    torch.manual_seed(0)
    shape = ModelShape(vocab_size=V, layers=1, hidden=300, embedding=50, tied=False)
    model = LSTMLanguageModel(shape, DropoutRates(weight=rate))
    states = [model.start_state(2), model.start_state(2)]
    states[1].cell[0].add_(0.01 * torch.randn(2, 300))
    for window in range(4):
        inputs_TB = torch.randint(V, (70, 2))
        for which in range(2):
            torch.manual_seed(window)  # both drop the same weights
            states[which] = model.features(inputs_TB, states[which])[1]
    # A difference of 0.24 at the start; what grows would be of the order of ten by now.
    assert (states[0].cell[0] - states[1].cell[0]).norm() < 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_reach_every_product_and_the_state_stays_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    shape = ModelShape(vocab_size=V, layers=2, hidden=8, embedding=8, tied=True)
    model = LSTMLanguageModel(shape, compute_dtype=dtype)
    reference = LSTMLanguageModel(shape)
    reference.load_state_dict(model.state_dict())
    inputs_TB, targets_TB = window()
    features_TBH, state = model.features(inputs_TB, model.start_state(B))
    nll = model.nll(features_TBH, targets_TB)
    assert features_TBH.dtype == model.logits(features_TBH).dtype == dtype
    assert nll.dtype == state.hidden[0].dtype == state.cell[1].dtype == torch.float32
    expected = reference.nll(reference.features(inputs_TB, reference.start_state(B))[0], targets_TB)
    # bfloat16 has 8 bits of precision: each product is off by up to 0.4 %
    torch.testing.assert_close(nll, expected, rtol=1e-2, atol=0)
    nll.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_dropout_only_while_training_and_reproducible() -> None:
    model = make_model(
        dropout=DropoutRates(input=0.3, between=0.3, output=0.3, embedding=0.3, weight=0.3)
    )
    inputs_TB, targets_TB = window()

    def run() -> Tensor:
        return model.nll(model.features(inputs_TB, model.start_state(B))[0], targets_TB)

    model.eval()
    clean = run()
    assert clean == run()
    model.train()
    torch.manual_seed(5)
    first = run()
    assert first != run() != clean
    torch.manual_seed(5)
    assert first == run()


def test_locked_dropout_keeps_one_mask_through_the_window() -> None:
    torch.manual_seed(0)
    dropped = locked_dropout(torch.ones(T, B, 50), 0.4)
    assert (dropped == dropped[0]).all()
    assert dropped.unique().tolist() == [0.0, pytest.approx(1 / 0.6)]
    assert (dropped[0, 0] != dropped[0, 1]).any()  # lanes differ


def test_word_dropout_drops_whole_words_wherever_they_stand() -> None:
    torch.manual_seed(0)
    ids = torch.arange(200).repeat(2)
    dropped = word_dropout(torch.ones(400, 7), ids, words=200, rate=0.5)
    assert (dropped == dropped[:, :1]).all()
    assert torch.equal(dropped[:200], dropped[200:])
    assert 0 < (dropped[:200, 0] == 0).sum() < 200


def drop_words(inputs: torch.Tensor, rate: float) -> torch.Tensor:
    return word_dropout(inputs, torch.arange(len(inputs)), words=len(inputs), rate=rate)


@pytest.mark.parametrize("drop", [locked_dropout, weight_dropout, drop_words])
def test_dropout_keeps_the_mean_and_the_input(drop: object) -> None:
    torch.manual_seed(0)
    inputs = (
        torch.ones(100, 100, 10)[..., 0] if drop is not locked_dropout else torch.ones(1, 100, 100)
    )
    copy = inputs.clone()
    dropped = drop(inputs, 0.25)  # type: ignore[operator]
    # 100 rows of masks at least: the mean's standard error is at most 0.06
    assert dropped.mean().item() == pytest.approx(1, abs=0.2)
    assert torch.equal(inputs, copy)
    assert drop(inputs, 0.0) is inputs  # type: ignore[operator]


def test_weight_dropout_reaches_the_gradient_and_registers_nothing() -> None:
    model = make_model(dropout=DropoutRates(weight=0.5))
    names = [name for name, _ in model.named_parameters()]
    inputs_TB, targets_TB = window()
    model.nll(model.features(inputs_TB, model.start_state(B))[0], targets_TB).backward()
    gradient = model.layers[0].weight_hh.grad
    assert (gradient == 0).any()
    assert (gradient != 0).any()
    assert [name for name, _ in model.named_parameters()] == names
