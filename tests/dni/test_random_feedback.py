"""Feedback alignment and direct feedback alignment: the laws that define them, in float64."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from sglm.dni.adjoint_pass import WayBack, adjoint_gradients
from sglm.dni.estimator import StretchBeginning
from sglm.dni.expected_row import softmax_residual
from sglm.dni.random_feedback import (
    DirectFeedback,
    FeedbackLayers,
    FeedbackMatrices,
    draw_direct,
    draw_feedback,
)
from sglm.model.language_model import DropoutRates, LSTMLanguageModel, ModelShape
from sglm.train.step import train_step
from tests.dni.exact import future_gradients
from tests.dni.test_adjoint import PROBE, a_model, estimator_of, some_text, with_adjoint
from tests.dni.test_estimator import INJECT, batcher
from tests.train.test_step import B, T

SHAPE = ModelShape(vocab_size=9, layers=2, hidden=8, embedding=6, tied=True)


def true_matrices(model: LSTMLanguageModel) -> list[FeedbackMatrices]:
    return [
        FeedbackMatrices(layer.weight_ih.detach() if index else None, layer.weight_hh.detach())  # type: ignore[arg-type, operator, union-attr]
        for index, layer in enumerate(model.layers)
    ]


def through(model: LSTMLanguageModel, way_back: WayBack, *, boundaries: int = 4) -> Tensor:
    """With the true residual, over some text."""
    return way_back(
        model,
        model.start_state(B),
        some_text(4 * T + 1),
        window=T,
        boundaries=boundaries,
        residual=partial(softmax_residual, model),
    )


def feedback(model: LSTMLanguageModel, matrices: list[FeedbackMatrices]) -> WayBack:
    return partial(adjoint_gradients, layers=FeedbackLayers(model, matrices=matrices))


@pytest.mark.parametrize(
    ("layers", "tied", "cutoffs"), [(1, True, ()), (2, True, ()), (2, False, ()), (2, True, (2, 4))]
)
def test_feedback_through_the_true_weights_is_the_exact_gradient(
    layers: int, tied: bool, cutoffs: tuple[int, ...]
) -> None:
    model = a_model(layers=layers, tied=tied, cutoffs=cutoffs)
    found_PBS = through(model, feedback(model, true_matrices(model)))
    beginning = StretchBeginning(model, model.start_state(B), some_text(4 * T + 1), T)
    _, right_PBS = future_gradients(beginning, 4)
    # float64: the same sums in another order
    torch.testing.assert_close(found_PBS, right_PBS, rtol=1e-10, atol=1e-12)
    assert right_PBS.abs().max() > 1e-2
    other_PBS = through(model, feedback(model, draw_feedback(model.shape, 0)))
    assert (other_PBS - right_PBS).norm() > 0.5 * right_PBS.norm()


def test_the_weights_themselves_are_not_gone_back_through() -> None:
    """Without feedback only what needs no matrix comes back: into the last layer's cell."""
    model = a_model(layers=2)
    nothing = [
        FeedbackMatrices(*(None if each is None else torch.zeros_like(each) for each in pair))  # type: ignore[arg-type]
        for pair in true_matrices(model)
    ]
    parts = model.start_state(B).parts_of(through(model, feedback(model, nothing))[0])
    assert [bool(part_BH.any()) for part_BH in parts] == [False, False, False, True]


def test_feedback_is_fixed_by_its_seed_and_as_long_as_the_weights_at_their_start() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        drawn, global_numbers = draw_feedback(SHAPE, 5), torch.rand(3)
        torch.manual_seed(3)
        assert torch.equal(global_numbers, torch.rand(3))  # it draws from a generator of its own
        model = LSTMLanguageModel(SHAPE)
    again, other = draw_feedback(SHAPE, 5), draw_feedback(SHAPE, 6)
    assert drawn[0].input_4HI is None
    assert drawn[1].input_4HI is not None
    for one, same, different, true in zip(drawn, again, other, true_matrices(model), strict=True):
        for index, weight in enumerate(true):
            if weight is None:
                continue
            assert torch.equal(one[index], same[index])
            assert not torch.equal(one[index], different[index])
            # Orthogonal gates have one length; a Xavier draw of 4·6·8 numbers varies by 4 %.
            assert float(one[index].norm()) == pytest.approx(float(weight.norm()), rel=0.15)
    assert torch.equal(draw_direct(SHAPE, 5, reach=4), draw_direct(SHAPE, 5, reach=4))
    assert not torch.equal(draw_direct(SHAPE, 5, reach=4), draw_direct(SHAPE, 6, reach=4))


def test_direct_feedback_keeps_the_length_of_a_sum_of_strangers() -> None:
    residual_CBR = torch.randn(10, 200, SHAPE.widths[-1], generator=torch.Generator())
    found_BS = residual_CBR.sum(0) @ draw_direct(SHAPE, 0, reach=10).t()
    # The squared length of one matrix of 28·6 numbers varies by √(2/168) = 11 %: its root by half.
    assert float(found_BS.norm() / residual_CBR[0].norm()) == pytest.approx(1, rel=0.2)


def given_residual(values_CBR: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda outputs_CBR, targets_CB: values_CBR


def test_direct_feedback_is_linear_in_the_residuals_of_its_reach_and_knows_no_weights() -> None:
    model, text, reach = a_model(layers=2), some_text(3 * T), T + 1
    direct = DirectFeedback(draw_direct(model.shape, 0, reach=reach).double(), reach=reach)

    def found(residual_CBR: Tensor) -> Tensor:
        return direct(
            model,
            model.start_state(B),
            text,
            window=T,
            boundaries=2,
            residual=given_residual(residual_CBR),
        )

    one, other = torch.randn(2, 3 * T, B, model.shape.widths[-1], dtype=torch.float64)
    whole_PBS = found(2 * one - 3 * other)
    torch.testing.assert_close(whole_PBS, 2 * found(one) - 3 * found(other))
    assert whole_PBS.shape == (2, B, model.shape.state_size)
    beyond = one.clone()
    beyond[reach:T] = 9.0  # nothing: the reach ends after the first boundary's window
    beyond[T + reach :] = 9.0
    torch.testing.assert_close(found(beyond), found(one))
    before = found(one)
    with torch.no_grad():
        for layer in model.layers:
            for weight in layer.parameters():
                weight.zero_()
    assert torch.equal(found(one), before)


@pytest.mark.parametrize("cutoffs", [(), (2, 4)])
def test_direct_feedback_reads_as_the_model_does(cutoffs: tuple[int, ...]) -> None:
    model, text, seen = a_model(cutoffs=cutoffs), some_text(2 * T), list[Tensor]()

    def residual(outputs_CBR: Tensor, targets_CB: Tensor) -> Tensor:
        seen.append(outputs_CBR)
        return outputs_CBR

    direct = DirectFeedback(draw_direct(model.shape, 0, reach=T).double(), reach=T)
    start = model.start_state(B)
    direct(model, start, text, window=T, boundaries=1, residual=residual)
    torch.testing.assert_close(seen, [model.features(text.inputs_CB, start)[0].detach()])


@pytest.mark.parametrize("kind", ["feedback", "direct"])
def test_it_reads_and_learns_as_an_adjoint_does(kind: str) -> None:
    """Once a stretch, for all its boundaries; q learns the same; a probe measures it."""
    learners = [with_adjoint(stretch=2, reach=T + 1, factor=None) for _ in range(2)]
    model = learners[1].model
    way_back: WayBack = feedback(model, draw_feedback(model.shape, 0))
    if kind == "direct":
        way_back = DirectFeedback(draw_direct(model.shape, 0, reach=5).double(), reach=5)
    estimator_of(learners[1]).way_back = way_back
    text = batcher(stretch=2)
    for learner in learners:
        for step in range(4):
            train_step(learner, text.at(step), PROBE if step == 3 else INJECT, learning_rate=0.0)
    adjoint, other = (estimator_of(learner) for learner in learners)
    assert adjoint._gradients_PBS is not None
    assert other._gradients_PBS is not None
    assert adjoint._gradients_PBS.shape == other._gradients_PBS.shape
    assert not torch.equal(adjoint._gradients_PBS, other._gradients_PBS)
    assert adjoint.expected_row is not None
    assert other.expected_row is not None
    assert torch.equal(adjoint.expected_row.mean_H, other.expected_row.mean_H)
    assert other.status().probes == 1


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_feedback_is_as_large_as_fresh_weights(rate: float) -> None:
    model = LSTMLanguageModel(SHAPE, DropoutRates(weight=rate))
    drawn = draw_feedback(SHAPE, 0, weight_drop_rate=rate)
    for layer, matrices in zip(model.layers, drawn, strict=True):
        # Orthogonal ones are all of one norm.
        torch.testing.assert_close(layer.weight_hh.norm().float(), matrices.hidden_4HH.norm())
