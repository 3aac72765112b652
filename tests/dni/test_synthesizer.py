"""The networks that predict state gradients."""

import pytest
import torch
import torch.nn.functional as F

from sglm.dni.synthesizer import RecurrentSynthesizer, Synthesizer, make_synthesizer

B, S = 3, 12
KINDS = ["mlp", "recurrent", "linear"]


def make(kind: str, auxiliary: bool = False) -> Synthesizer:
    torch.manual_seed(0)
    return make_synthesizer(kind, S, hidden=6, auxiliary=auxiliary)


@pytest.mark.parametrize("auxiliary", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_predicts_zero_before_it_has_learned(kind: str, auxiliary: bool) -> None:
    prediction = make(kind, auxiliary)(torch.randn(B, S))
    assert torch.equal(prediction.gradient_BS, torch.zeros(B, S))
    if auxiliary:
        assert torch.equal(prediction.next_gradient_BS, torch.zeros(B, S))
    else:
        assert prediction.next_gradient_BS is None


@pytest.mark.parametrize("kind", KINDS)
def test_lanes_do_not_see_each_other(kind: str) -> None:
    net = make(kind)
    torch.nn.init.normal_(net.heads.weight)  # type: ignore[union-attr, arg-type]
    state_BS = torch.randn(B, S)
    whole = net(state_BS).gradient_BS
    alone = torch.cat([net(state_BS[b : b + 1]).gradient_BS for b in range(B)])
    torch.testing.assert_close(whole, alone)  # float32 rounding


def test_recurrent_treats_every_coordinate_alike_and_remembers() -> None:
    net = make("recurrent")
    torch.nn.init.normal_(net.heads.weight)  # type: ignore[union-attr, arg-type]
    state_BS = torch.randn(B, S)
    order = torch.randperm(S)
    first = net(state_BS)
    shuffled = net(state_BS[:, order]).gradient_BS
    torch.testing.assert_close(shuffled, first.gradient_BS[:, order])
    again = net(state_BS, first.recurrent_state)
    assert not torch.equal(again.gradient_BS, first.gradient_BS)
    assert first.recurrent_state is not None
    assert not first.recurrent_state.requires_grad


@pytest.mark.parametrize("auxiliary", [False, True])
def test_recurrent_is_torchs_linear_layers_and_gru_cell(auxiliary: bool) -> None:
    net = make("recurrent", auxiliary)
    assert isinstance(net, RecurrentSynthesizer)
    torch.nn.init.normal_(net.heads.weight)
    state_BS = torch.randn(B, S)
    for memory_MN in (None, torch.randn(B * S, 6)):
        actual = net(state_BS, memory_MN)
        inputs_MN = F.linear(state_BS.reshape(-1, 1), net.encoder.weight, net.encoder.bias)
        expected_MN = net.cell(inputs_MN, memory_MN)
        predicted_MK = F.linear(expected_MN, net.heads.weight, net.heads.bias)
        assert actual.recurrent_state is not None
        assert torch.equal(actual.recurrent_state, expected_MN)
        assert not actual.recurrent_state.requires_grad
        assert torch.equal(actual.gradient_BS, predicted_MK[:, 0].view(B, S))
        if auxiliary:
            assert torch.equal(actual.next_gradient_BS, predicted_MK[:, 1].view(B, S))


def test_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match="'oracle'"):
        make("oracle")
