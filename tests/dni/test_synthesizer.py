"""The networks that predict state gradients."""

import pytest
import torch
from torch import Tensor

from sglm.dni.synthesizer import LookaheadSynthesizer, Synthesizer, make_synthesizer

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


def test_unknown_kind_is_named() -> None:
    with pytest.raises(ValueError, match="'oracle'"):
        make("oracle")


C, F = 9, 5  # steps of coming text, features of a step


def lookahead(auxiliary: bool = False) -> LookaheadSynthesizer:
    torch.manual_seed(0)
    return LookaheadSynthesizer(S, F, 6, auxiliary=auxiliary)


def summary_at(net: LookaheadSynthesizer, features_CBF: Tensor, boundary: int) -> Tensor:
    return net.summarise(features_CBF, torch.tensor([boundary]))[0]


def test_a_summary_depends_on_every_step_after_its_boundary_and_on_none_before() -> None:
    net = lookahead()
    features_CBF = torch.randn(C, B, F, requires_grad=True)
    for boundary in range(C):
        summary_BN = summary_at(net, features_CBF, boundary)
        (gradient_CBF,) = torch.autograd.grad(summary_BN.sum(), features_CBF)
        depends_C = gradient_CBF.abs().amax(dim=(1, 2)) > 0
        assert depends_C.tolist() == [False] * boundary + [True] * (C - boundary)


def test_a_summary_is_the_same_in_a_stretch_and_by_itself() -> None:
    net = lookahead()
    features_CBF = torch.randn(C, B, F)
    boundaries_P = torch.tensor([0, 2, 4, 8])
    together_PBN = net.summarise(features_CBF, boundaries_P)
    for boundary, summary_BN in zip(boundaries_P.tolist(), together_PBN, strict=True):
        # float32: products of other shapes are summed in another order
        torch.testing.assert_close(summary_BN, summary_at(net, features_CBF[boundary:], 0))


def test_a_summary_does_not_depend_on_how_large_embeddings_are() -> None:
    net, features_CBF = lookahead(), torch.randn(C, B, F)
    small, large = (summary_at(net, scale * features_CBF, 0) for scale in (1.0, 100.0))
    torch.testing.assert_close(small, large, rtol=1e-3, atol=1e-4)  # LayerNorm adds 1e-5


@pytest.mark.parametrize("auxiliary", [False, True])
def test_lookahead_predicts_zero_before_it_has_learned(auxiliary: bool) -> None:
    net = lookahead(auxiliary)
    prediction = net(torch.randn(B, S), torch.randn(B, 12))
    assert torch.equal(prediction.gradient_BS, torch.zeros(B, S))
    if auxiliary:
        assert torch.equal(prediction.next_gradient_BS, torch.zeros(B, S))
    else:
        assert prediction.next_gradient_BS is None


def test_lookahead_reads_state_and_text_of_its_own_lane_only() -> None:
    net = lookahead()
    torch.nn.init.normal_(net.heads.weight)
    state_BS = torch.randn(B, S, requires_grad=True)
    features_CBF = torch.randn(C, B, F, requires_grad=True)
    for lane in range(B):
        predicted_S = net(state_BS, summary_at(net, features_CBF, 0)).gradient_BS[lane]
        of_state_BS, of_text_CBF = torch.autograd.grad(predicted_S.sum(), (state_BS, features_CBF))
        own = [each == lane for each in range(B)]
        assert (of_state_BS.abs().amax(dim=1) > 0).tolist() == own
        assert (of_text_CBF.abs().amax(dim=(0, 2)) > 0).tolist() == own
