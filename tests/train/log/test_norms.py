"""Norms of weights and updates: on optimizers whose steps are known."""

import pytest
import torch
from torch import Tensor, nn

from sglm.config import OptimizerConfig
from sglm.optim.optimizer import make_optimizer, set_weight_decay, step_where_finite
from sglm.train.log.norms import NormMeter

RATE, DECAY, BETA = 0.1, 0.01, 0.9


def net() -> nn.Module:
    """Two layers, one of them with two matrices and a bias."""
    torch.manual_seed(0)
    return nn.ModuleDict({"outer": nn.Linear(3, 4), "inner": nn.Bilinear(2, 3, 2)})


def matrices(model: nn.Module, layer: str) -> list[Tensor]:
    inside = model.get_submodule(layer)
    return [each.detach().clone() for each in inside.parameters() if each.dim() >= 2]


def length(tensors: list[Tensor]) -> float:
    return float(sum(each.double().square().sum() for each in tensors) ** 0.5)


def draw_gradients(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)


def test_the_norms_are_of_the_step_that_was_asked_for_and_of_matrices_alone() -> None:
    model = net()
    optimizer = make_optimizer(model, OptimizerConfig(kind="sgd", learning_rate=RATE))
    meter = NormMeter(model, optimizer=optimizer, sums={})
    draw_gradients(model)
    optimizer.step()
    assert meter.read() == {}
    meter.measure_next()
    draw_gradients(model)
    before = {layer: matrices(model, layer) for layer in ("outer", "inner")}
    optimizer.step()
    found = meter.read()
    draw_gradients(model)
    optimizer.step()
    assert meter.read() == {}
    assert set(found) == {
        f"{layer}/{what}" for layer in before for what in ("weight", "update", "effective_rate")
    }
    for layer, weights in before.items():
        assert found[f"{layer}/weight"] == pytest.approx(length(weights), rel=1e-6)


def test_a_step_of_sgd_is_its_rate_times_the_gradient() -> None:
    model = net()
    optimizer = make_optimizer(model, OptimizerConfig(kind="sgd", learning_rate=RATE))
    meter = NormMeter(model, optimizer=optimizer, sums={})
    draw_gradients(model)
    weight, gradient = matrices(model, "outer"), model.get_parameter("outer.weight").grad
    assert gradient is not None
    meter.measure_next()
    optimizer.step()
    found, moved = meter.read(), RATE * length([gradient])
    # float32: the update is a difference of numbers of size 1.
    assert found["outer/update"] == pytest.approx(moved, rel=1e-5)
    assert found["outer/effective_rate"] == pytest.approx(moved / length(weight), rel=1e-5)


def test_a_skipped_step_moves_nothing() -> None:
    model = net()
    optimizer = make_optimizer(model, OptimizerConfig(kind="adam", weight_decay=DECAY))
    meter = NormMeter(model, optimizer=optimizer, sums={})
    draw_gradients(model)
    meter.measure_next()
    step_where_finite(optimizer, torch.tensor(False))
    assert meter.read()["outer/update"] == 0.0
    assert "l2_share" not in meter.means()["outer"]  # 0 / 0: there is no moment yet


@pytest.mark.parametrize("rate", [0.0, 1e-3])
@pytest.mark.parametrize("until", [30, 20], ids=["always", "early"])
def test_the_share_of_l2_is_that_of_a_buffer_of_its_own(rate: float, until: int) -> None:
    """Exact where weights stand still; else within the error that the meter states. What early
    decay has put into the buffer fades from it."""
    model, weight_decay = net(), 0.5
    config = OptimizerConfig(kind="adam", weight_decay=weight_decay, beta1=BETA)
    optimizer = make_optimizer(model, config)
    for group in optimizer.param_groups:
        group["lr"] = rate
    meter = NormMeter(model, optimizer=optimizer, sums={})
    l2, loss = [[torch.zeros_like(each) for each in matrices(model, "inner")] for _ in range(2)]
    shares = []
    for step in range(30):
        if step == until:
            weight_decay = 0.0
            set_weight_decay(optimizer, weight_decay)
        draw_gradients(model)
        gradient = model.get_parameter("inner.weight").grad
        assert gradient is not None
        for buffer, term in ((l2, weight_decay * matrices(model, "inner")[0]), (loss, gradient)):
            buffer[0].lerp_(term, 1 - BETA)
        meter.measure_next()
        optimizer.step()
        found = meter.read()
        share = length(l2) / (length(l2) + length(loss))
        error = BETA / (1 - BETA) * found["inner/effective_rate"]
        assert abs(found["inner/l2_share"] - share) <= error + 1e-6  # float32
        shares.append(share)
    assert shares[19] > 0.2
    assert shares[21] > 0.02


def test_decoupled_decay_has_no_share() -> None:
    model = net()
    optimizer = make_optimizer(model, OptimizerConfig(kind="adamw", weight_decay=DECAY))
    meter = NormMeter(model, optimizer=optimizer, sums={})
    meter.measure_next()
    draw_gradients(model)
    optimizer.step()
    assert not any("l2_share" in key for key in meter.read())


def test_means_begin_anew_and_sums_go_on_after_a_checkpoint() -> None:
    def read_steps(model: nn.Module, meter: NormMeter, optimizer: torch.optim.Optimizer) -> None:
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        meter.measure_next()
        optimizer.step()
        meter.read()

    means = []
    for is_interrupted in (False, True):
        model = net()
        optimizer = make_optimizer(model, OptimizerConfig(learning_rate=RATE))
        meter = NormMeter(model, optimizer=optimizer, sums={"nll_nats": 1.0})
        read_steps(model, meter, optimizer)
        if is_interrupted:
            meter = NormMeter(model, optimizer=optimizer, sums={"nll_nats": 1.0, **meter.collect()})
        read_steps(model, meter, optimizer)
        means.append(meter.means())
        assert meter.means() == {}
    assert means[0] == means[1]
    assert set(means[0]) == {"outer", "inner"}
