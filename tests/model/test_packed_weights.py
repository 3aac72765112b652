"""One block for cuDNN: the same LSTM, laid out as torch looks for it."""

import warnings

import pytest
import torch
from torch import Tensor

from sglm.model.language_model import DropoutRates, LSTMLanguageModel, ModelShape
from sglm.model.packed_weights import packed_weights

I, H = 3, 2


def parameters() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(  # type: ignore[return-value]
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in [(4 * H, I), (4 * H, H), (4 * H,)]
    )


def test_one_block_without_gaps_matrices_before_biases() -> None:
    packed = packed_weights(*parameters(), dtype=torch.float64)
    assert [each.storage_offset() for each in packed] == [0, 4 * H * I, 4 * H * (I + H), 40 + 8]
    assert len({each.untyped_storage().data_ptr() for each in packed}) == 1
    assert all(each.is_contiguous() for each in packed)
    assert packed[0].untyped_storage().nbytes() == 8 * sum(each.numel() for each in packed)


def test_values_and_gradients_are_those_of_the_parameters() -> None:
    given = parameters()
    packed = packed_weights(*given, dtype=torch.float64)
    assert all(torch.equal(*pair) for pair in zip(given, packed, strict=False))
    assert (packed[3] == 0).all()
    assert not packed[3].requires_grad
    inputs_TBI, state = torch.randn(4, 2, I).double(), (torch.zeros(1, 2, H).double(),) * 2

    def outputs(weights: tuple[Tensor, ...]) -> Tensor:
        return torch.lstm(inputs_TBI, state, weights, True, 1, 0.0, True, False, False)[0]

    actual = torch.autograd.grad(outputs(packed).square().sum(), given)
    plain = (*given, torch.zeros_like(given[2]))
    expected = torch.autograd.grad(outputs(plain).square().sum(), given)
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_gradients_come_in_the_type_of_the_parameters() -> None:
    given = parameters()
    packed = packed_weights(*given, dtype=torch.bfloat16)
    assert all(each.dtype == torch.bfloat16 for each in packed)
    (packed[0].sum() + packed[2].sum()).backward()
    assert given[0].grad is not None
    assert given[0].grad.dtype == torch.float64
    with torch.inference_mode():
        assert torch.equal(packed_weights(*given, dtype=torch.float64)[1], given[1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("hidden", [64, 650])
def test_cudnn_finds_the_weights_where_it_wants_them(dtype: torch.dtype, hidden: int) -> None:
    rates = DropoutRates(weight=0.3)
    shape = ModelShape(vocab_size=50, layers=2, hidden=hidden, embedding=48, tied=True)
    model = LSTMLanguageModel(shape, rates, dtype).to("cuda")
    ids = torch.zeros(5, 4, dtype=torch.long, device="cuda")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "RNN module weights are not part of single … chunk"
        for mode in (model.train(), model.eval()):
            mode.nll(mode.features(ids, mode.start_state(4))[0], ids).backward()
        with torch.inference_mode():
            model.features(ids, model.start_state(4))
    assert all(parameter.grad is not None for parameter in model.parameters())
