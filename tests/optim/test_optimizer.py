"""Parameter groups, weight decay and precision."""

import pytest
import torch
from torch import nn

from sglm.config import OptimizerConfig
from sglm.errors import ConfigError
from sglm.optim import precision as precision_module
from sglm.optim.optimizer import make_optimizer, set_learning_rate
from sglm.optim.precision import make_precision, unchecked_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
def test_decay_pulls_on_matrices_and_leaves_biases(kind: str) -> None:
    net = nn.Linear(3, 2)
    nn.init.ones_(net.weight)
    nn.init.ones_(net.bias)
    optimizer = make_optimizer(net, OptimizerConfig(kind=kind, learning_rate=0.1, weight_decay=0.5))
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert (net.weight < 1).all()
    assert (net.bias == 1).all()


def test_adamw_decouples_decay_and_adam_does_not() -> None:
    """AdamW shrinks by lr·decay exactly; Adam's normalised L2 term moves by about lr instead."""
    moved = {}
    for kind in ("adamw", "adam"):
        net = nn.Linear(1, 1, bias=False)
        nn.init.ones_(net.weight)
        config = OptimizerConfig(kind=kind, learning_rate=0.01, weight_decay=0.1)
        optimizer = make_optimizer(net, config)
        net.weight.grad = torch.zeros_like(net.weight)
        optimizer.step()
        moved[kind] = 1 - net.weight.item()
    assert moved["adamw"] == pytest.approx(0.001, rel=1e-3)
    assert moved["adam"] == pytest.approx(0.01, rel=1e-3)


def test_rate_is_set_for_every_group() -> None:
    optimizer = make_optimizer(nn.Linear(2, 2), OptimizerConfig())
    set_learning_rate(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]


@pytest.mark.parametrize("amx", [True, False])
def test_half_types_on_a_cpu_are_refused_where_they_are_slow(
    amx: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision_module, "cpu_multiplies_bfloat16", lambda: amx)
    assert make_precision("auto", CPU).compute_dtype == torch.float32
    with pytest.raises(ConfigError, match=r"fp16 needs a CUDA device; .*fp32"):
        make_precision("fp16", CPU)
    if amx:
        assert make_precision("bf16", CPU).compute_dtype == torch.bfloat16
    else:
        with pytest.raises(
            ConfigError, match=r"bf16 needs a CUDA device, or a CPU with AMX; .*fp32"
        ):
            make_precision("bf16", CPU)


def test_only_fp16_scales_the_loss() -> None:
    precision = make_precision("fp32", CPU)
    assert precision.loss_scale() == 1.0
    loss = torch.tensor(3.0)
    assert torch.equal(precision.scale(loss), loss)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
def test_a_step_that_is_not_finite_leaves_no_trace(kind: str, precision: str) -> None:
    """Not even as the first one, with which optimizers make their moments; fp16 may begin so."""

    def train(gradients: list[float]) -> torch.Tensor:
        net = nn.Linear(2, 3, bias=False)
        nn.init.ones_(net.weight)
        optimizer = make_optimizer(
            net, OptimizerConfig(kind=kind, momentum=0.9 if kind == "sgd" else 0.0)
        )
        chosen = unchecked_precision(precision, CPU)
        for gradient in gradients:
            scale = float(chosen.scale(torch.ones(())))
            net.weight.grad = torch.full_like(net.weight, gradient * scale)
            chosen.update(optimizer, *chosen.measure(optimizer))
        return net.weight.detach()

    inf = float("inf")
    expected = train([0.5, 0.25])
    assert not torch.equal(expected, torch.ones(3, 2))
    for gradients in ([inf, 0.5, 0.25], [0.5, float("nan"), 0.25]):
        assert torch.equal(train(gradients), expected)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
@pytest.mark.parametrize("clip_norm", [1e-2, 10.0])
def test_clipping_within_the_step_is_torchs_own(
    kind: str, precision: str, clip_norm: float
) -> None:
    """As `clip_grad_norm_` and then a step, whether it cuts or not; and it is not left lying."""
    clipped, expected = nn.Linear(2, 3), nn.Linear(2, 3)
    expected.load_state_dict(clipped.state_dict())
    optimizers = [
        make_optimizer(net, OptimizerConfig(kind=kind, momentum=0.9 if kind == "sgd" else 0.0))
        for net in (clipped, expected)
    ]
    chosen = unchecked_precision(precision, CPU)
    for step in range(3):
        torch.manual_seed(step)
        gradients = [torch.randn(3, 2), torch.randn(3)]
        scale = float(chosen.scale(torch.ones(())))
        for net, factor in ((clipped, scale), (expected, 1.0)):
            for p, gradient in zip(net.parameters(), gradients, strict=True):
                p.grad = gradient * factor
        chosen.update(optimizers[0], *chosen.measure(optimizers[0]), clip_norm=clip_norm)
        nn.utils.clip_grad_norm_(expected.parameters(), clip_norm)
        optimizers[1].step()
        for one, other in zip(clipped.parameters(), expected.parameters(), strict=True):
            # float32: divided by the number that the other multiplies with the reciprocal of
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-9)
    assert not hasattr(optimizers[0], "grad_scale")


@pytest.mark.parametrize("kind", ["adamw", "adam"])
def test_adam_has_the_betas_that_were_set(kind: str) -> None:
    optimizer = make_optimizer(nn.Linear(2, 2), OptimizerConfig(kind=kind, beta1=0.5, beta2=0.9))
    assert [group["betas"] for group in optimizer.param_groups] == [(0.5, 0.9)] * 2
