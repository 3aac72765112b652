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


@pytest.fixture(params=["oneDNN", "MKL", "no oneDNN"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that large products go to, whatever this machine would choose."""
    monkeypatch.setattr(module, "mkl_on_intel", lambda: request.param == "MKL")
    if request.param == "no oneDNN":
        monkeypatch.setattr(module, "has_onednn", lambda: False)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("rows", ROWS)
def test_is_the_product(rows: int) -> None:
    values, weight, bias = tensors(rows)
    expected = F.linear(values.double(), weight.double(), bias.double())
    with torch.inference_mode():
        actual = linear(values, weight, bias)
    # Sums of 40 float32 products of size one.
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)
    assert actual.is_contiguous()


@pytest.mark.parametrize(("maker", "preferred"), [("GenuineIntel", True), ("AuthenticAMD", False)])
def test_mkl_is_preferred_on_its_makers_processors(
    maker: str, preferred: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.Path, "read_text", lambda self, *_: f"vendor_id\t: {maker}\n")
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert module.mkl_on_intel.__wrapped__() is preferred
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert not module.mkl_on_intel.__wrapped__()


@pytest.mark.parametrize("features", ["avx512_bf16 amx_bf16 amx_tile", "avx512_bf16"])
@pytest.mark.parametrize("there", [True, False])
def test_bfloat16_is_for_cpus_with_amx(
    features: str, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.Path, "read_text", lambda self, *_: f"flags\t: {features}\n")
    monkeypatch.setattr(module, "has_onednn", lambda: there)
    fast = there and "amx" in features
    assert module.cpu_multiplies_bfloat16.__wrapped__() is fast


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("biased", [True, False])
def test_a_result_goes_where_it_is_wanted_or_is_new(rows: int, biased: bool) -> None:
    values, weight, bias = tensors(rows)
    into = torch.empty(rows, 1000)
    actual = module.matmul(values, weight.t(), bias if biased else None, out_RC=into)
    by_onednn = module.onednn_pays(values, weight.t())
    assert (actual.data_ptr() == into.data_ptr()) is not by_onednn
    expected = values.double() @ weight.t().double() + (bias.double() if biased else 0)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)


def test_gradients_flow() -> None:
    values, weight, bias = tensors(64)
    weight.requires_grad_()
    linear(values, weight, bias).sum().backward()
    torch.testing.assert_close(weight.grad, values.sum(0).expand_as(weight))


def test_other_types_and_shapes_go_the_ordinary_way() -> None:
    values, weight, bias = tensors(64)
    with torch.no_grad():
        for dtype in (torch.float64, torch.bfloat16):
            actual = linear(values.to(dtype), weight.to(dtype), bias.to(dtype))
            assert torch.equal(actual, F.linear(values.to(dtype), weight.to(dtype), bias.to(dtype)))
        in_three = linear(values.view(8, 8, 40), weight, bias)
        assert torch.equal(in_three, F.linear(values.view(8, 8, 40), weight, bias))


@pytest.mark.usefixtures("library")
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
    actual, right = values.requires_grad_(wanted), values.detach().double().requires_grad_(wanted)
    torch.testing.assert_close(layer(actual).double(), exact(right), rtol=1e-5, atol=1e-5)
    layer(actual).backward(to_out)
    exact(right).backward(to_out.double())
    # Sums of up to 1,000 float32 products of size one.
    for name, parameter in layer.named_parameters():
        expected = exact.get_parameter(name).grad
        torch.testing.assert_close(parameter.grad.double(), expected, rtol=1e-4, atol=1e-4)
    if wanted:
        torch.testing.assert_close(actual.grad.double(), right.grad, rtol=1e-4, atol=1e-4)
