"""The faster product is the same product."""

import pytest
import torch
import torch.nn.functional as F

from sglm.model import linear as module
from sglm.model.linear import Linear, linear

# Rows of a size that goes the faster way, and of one that does not.
ROWS = (64, 1)


def tensors(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    shapes = ((rows, 40), (1000, 40), (1000,))
    return tuple(torch.randn(shape, generator=random) for shape in shapes)  # type: ignore[return-value]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("there", [True, False])
def test_is_the_product(rows: int, there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not there:
        monkeypatch.setattr(module, "has_onednn", lambda: False)
    values, weight, bias = tensors(rows)
    expected = F.linear(values.double(), weight.double(), bias.double())
    with torch.inference_mode():
        found = linear(values, weight, bias)
    # Sums of 40 float32 products of size one.
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert found.is_contiguous()


def test_gradients_flow() -> None:
    values, weight, bias = tensors(64)
    weight.requires_grad_()
    linear(values, weight, bias).sum().backward()
    torch.testing.assert_close(weight.grad, values.sum(0).expand_as(weight))


def test_other_types_and_shapes_go_the_ordinary_way() -> None:
    values, weight, bias = tensors(64)
    with torch.no_grad():
        for dtype in (torch.float64, torch.bfloat16):
            found = linear(values.to(dtype), weight.to(dtype), bias.to(dtype))
            assert torch.equal(found, F.linear(values.to(dtype), weight.to(dtype), bias.to(dtype)))
        in_three = linear(values.view(8, 8, 40), weight, bias)
        assert torch.equal(in_three, F.linear(values.view(8, 8, 40), weight, bias))


@pytest.mark.parametrize("shape", [(128, 40), (8, 16, 40), (1, 40)])
@pytest.mark.parametrize("wanted", [True, False])
def test_a_layer_is_the_ordinary_layer_with_its_gradients(
    shape: tuple[int, ...], wanted: bool
) -> None:
    torch.manual_seed(0)
    layer = Linear(40, 1000)
    values, to_out = torch.randn(shape), torch.randn(*shape[:-1], 1000)
    exact = torch.nn.Linear(40, 1000).double()
    exact.load_state_dict(layer.state_dict())
    found, right = values.requires_grad_(wanted), values.detach().double().requires_grad_(wanted)
    torch.testing.assert_close(layer(found).double(), exact(right), rtol=1e-5, atol=1e-5)
    layer(found).backward(to_out)
    exact(right).backward(to_out.double())
    # Sums of up to 1,000 float32 products of size one.
    for name, parameter in layer.named_parameters():
        expected = exact.get_parameter(name).grad
        torch.testing.assert_close(parameter.grad.double(), expected, rtol=1e-4, atol=1e-4)
    if wanted:
        torch.testing.assert_close(found.grad.double(), right.grad, rtol=1e-4, atol=1e-4)
