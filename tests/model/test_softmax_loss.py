"""The chunked loss: the numbers of plain logits, once differentiable, and small in memory."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sglm.model import linear, softmax_loss
from sglm.model.language_model import LSTMLanguageModel, ModelShape
from sglm.model.linear import ROWS_STEP
from sglm.model.softmax_loss import IGNORED, chunk_rows, chunked_nll, even_rows

N, V, H = 11, 7, 4


def inputs(dtype: torch.dtype = torch.float64, tokens: int = N) -> tuple[Tensor, ...]:
    """Features, weight, bias and targets; parameters are float32 where the products are half."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(tokens, H), (V, H), (V,)]
    values = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    parameter_type = torch.promote_types(dtype, torch.float32)
    features_NH = values[0].to(dtype).requires_grad_()
    weight_VH, bias_V = (value.to(parameter_type).requires_grad_() for value in values[1:])
    return features_NH, weight_VH, bias_V, torch.randint(V, (tokens,), generator=generator)


def plain_nll(features_NH: Tensor, weight_VH: Tensor, bias_V: Tensor, targets_N: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(features_NH, weight_VH, bias_V), targets_N, reduction="sum")


# Chunks of one row, an uneven last chunk, exactly one chunk, more rows than there are.
@pytest.mark.parametrize("rows", [1, 4, N, 100])
@pytest.mark.parametrize("ignored", [[], [0, 5, 10], range(N)])
def test_the_numbers_are_those_of_plain_logits(rows: int, ignored: list[int]) -> None:
    *parameters, targets_N = inputs()
    targets_N[list(ignored)] = IGNORED
    # A factor that the loss is multiplied with reaches every gradient.
    expected = plain_nll(*parameters, targets_N)
    actual = chunked_nll(*parameters, targets_N=targets_N, rows=rows)
    # float64 rounding of sums over a dozen rows
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    for left, right in zip(
        torch.autograd.grad(0.3 * actual, parameters),
        torch.autograd.grad(0.3 * expected, parameters),
        strict=True,
    ):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("more", [(1, 4), (3, 0), (0, 1)])
def test_words_and_features_more_change_nothing(
    more: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a GPU's products in half types want them."""
    *parameters, targets_N = inputs()
    targets_N[2] = IGNORED
    expected = plain_nll(*parameters, targets_N)
    monkeypatch.setattr(softmax_loss, "alignment_padding", lambda *of: more)
    actual = chunked_nll(*parameters, targets_N=targets_N, rows=4)
    # float64 rounding of sums over a dozen rows
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    for left, right in zip(
        torch.autograd.grad(0.3 * actual, parameters),
        torch.autograd.grad(0.3 * expected, parameters),
        strict=True,
    ):
        assert left.shape == right.shape
        torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


def test_rows_of_a_gpus_half_types_are_a_multiple_of_16_bytes() -> None:
    def of(kind: torch.dtype, device: str) -> tuple[int, int]:
        features_NH = torch.empty(4, 650, dtype=kind, device=device)
        return softmax_loss.alignment_padding(features_NH, torch.empty(33_278, 650, device=device))

    assert of(torch.bfloat16, "meta") == of(torch.float16, "meta") == (2, 6)
    assert of(torch.float32, "meta") == of(torch.bfloat16, "cpu") == (0, 0)


def test_nothing_to_predict_costs_nothing() -> None:
    *parameters, targets_N = inputs(tokens=0)
    nll = chunked_nll(*parameters, targets_N=targets_N, rows=4)
    nll.backward()
    assert nll.item() == 0
    assert all((parameter.grad == 0).all() for parameter in parameters)


@pytest.mark.parametrize("tied", [True, False])
def test_the_model_trains_the_same_with_chunks(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tied weights get gradient through the embedding as well."""

    def run() -> tuple[Tensor, dict[str, Tensor | None]]:
        torch.manual_seed(0)
        model = LSTMLanguageModel(
            ModelShape(vocab_size=V, layers=2, hidden=5, embedding=4, tied=tied)
        ).double()
        ids = torch.randint(V, (7, 3))
        nll = model.nll(model.features(ids[:-1], model.start_state(3))[0], ids[1:])
        (nll / 18).backward()
        return nll, {name: each.grad for name, each in model.named_parameters()}

    expected = run()
    monkeypatch.setattr(softmax_loss, "FEWEST_ROWS", 1)
    monkeypatch.setattr(softmax_loss, "CHUNK_ENTRIES", {"cpu": 4 * V})
    assert chunk_rows(V, "cpu") == 4  # of 18 tokens: the last chunk is uneven
    actual = run()
    assert "ChunkedNLL" in type(actual[0].grad_fn).__name__
    # float64 rounding
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rows", [128, 1000])
@pytest.mark.parametrize("features", [32, 512], ids=["narrow", "wide"])
@pytest.mark.parametrize("library", ["MKL", "oneDNN", "oneDNN, adding in place"])
def test_large_products_in_float32_are_those_of_plain_logits(
    library: str, features: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever library does them, in several chunks or in one."""
    monkeypatch.setattr(linear, "mkl_on_intel", lambda: library == "MKL")
    if library.endswith("in place"):
        monkeypatch.setattr(softmax_loss, "ADDED_IN_PLACE", 0)
    generator = torch.Generator().manual_seed(0)
    tokens, words = 300, 3000
    assert tokens * words * features > softmax_loss.WORTHWHILE_PRODUCTS
    values = [
        torch.randn(shape, generator=generator)
        for shape in ((tokens, features), (words, features), (words,))
    ]
    values[0] /= math.sqrt(features / 32)  # logits of the same size
    parameters = [value.requires_grad_() for value in values]
    targets_N = torch.randint(words, (tokens,), generator=generator)
    targets_N[7] = IGNORED
    actual = chunked_nll(*parameters, targets_N=targets_N, rows=rows)
    exact = [each.detach().double().requires_grad_() for each in parameters]
    expected = plain_nll(*exact, targets_N)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=0)
    for left, right in zip(
        torch.autograd.grad(actual, parameters), torch.autograd.grad(expected, exact), strict=True
    ):
        # float32 sums over thousands of products of size one
        torch.testing.assert_close(left.double(), right, rtol=1e-4, atol=1e-4)


def test_an_impossible_word_has_its_gradient_and_a_bounded_loss() -> None:
    """Its probability is below float32's least one, e⁻⁸⁷; plain logits say 200 nats."""
    logits_V = torch.tensor([0.0, -200.0, -1.0])
    features_NH, bias_V = torch.zeros(1, 2), logits_V.requires_grad_()
    nll = chunked_nll(features_NH, torch.zeros(3, 2), bias_V, targets_N=torch.tensor([1]), rows=1)
    nll.backward()
    assert 87 < nll.item() < 88
    right = torch.softmax(logits_V.detach(), 0) - torch.tensor([0.0, 1.0, 0.0])
    torch.testing.assert_close(bias_V.grad, right)


@pytest.mark.parametrize("tokens", [1, 31, 32, 33, 64, 700, 1149, 1150, 1793, 2049, 100_000])
@pytest.mark.parametrize("most", [1, 31, 256, 1149])
def test_chunks_are_even_and_never_larger_than_allowed(tokens: int, most: int) -> None:
    rows = even_rows(tokens, most)
    assert 1 <= rows <= most
    fewest = math.ceil(tokens / most)
    assert math.ceil(tokens / rows) == fewest
    last = tokens - rows * (fewest - 1)
    assert rows / 2 <= last <= rows or most < ROWS_STEP


def test_no_tokens_are_no_chunk_of_any_size() -> None:
    assert even_rows(0, 256) >= 1


@pytest.mark.parametrize("infinite", [math.inf, -math.inf])
def test_an_infinite_logit_is_not_hidden(infinite: float) -> None:
    """A step whose loss is not finite is not taken."""
    bias_V = torch.tensor([0.0, infinite, -1.0], requires_grad=True)
    nll = chunked_nll(
        torch.zeros(1, 2), torch.zeros(3, 2), bias_V, targets_N=torch.tensor([1]), rows=1
    )
    assert not math.isfinite(nll.item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_products_on_a_cpu_come_with_their_gradients(dtype: torch.dtype) -> None:
    """Even where one chunk is all there is: faster there, and with half of the memory."""
    model = LSTMLanguageModel(
        ModelShape(vocab_size=2000, layers=1, hidden=128, embedding=128, tied=True),
        compute_dtype=dtype,
    )
    for tokens, chunked in ((100, True), (10, False)):
        assert (tokens * 2000 * 128 >= softmax_loss.WORTHWHILE_PRODUCTS) is chunked
        features_TBH = torch.zeros(tokens, 1, 128, dtype=dtype)
        nll = model.nll(features_TBH, torch.zeros(tokens, 1, dtype=torch.int64))
        assert ("ChunkedNLL" in type(nll.grad_fn).__name__) is chunked


def test_half_products_are_summed_in_float32() -> None:
    features_NH, weight_VH, bias_V, targets_N = inputs(torch.bfloat16)
    nll = chunked_nll(features_NH, weight_VH, bias_V, targets_N=targets_N, rows=4)
    nll.backward()
    assert nll.dtype == weight_VH.grad.dtype == bias_V.grad.dtype == torch.float32
    assert features_NH.grad.dtype == torch.bfloat16
    exact = [each.detach().double().requires_grad_() for each in (features_NH, weight_VH, bias_V)]
    expected = plain_nll(*exact, targets_N)
    expected.backward()
    # bfloat16 has 8 bits of precision: each factor of a product is off by up to 0.4 %, a sum of a
    # dozen products of size one by a few hundredths.
    torch.testing.assert_close(nll.double(), expected, rtol=1e-2, atol=0)
    for left, right in zip((features_NH, weight_VH, bias_V), exact, strict=True):
        torch.testing.assert_close(left.grad.double(), right.grad, rtol=2e-2, atol=5e-2)


def test_many_small_gradients_add_up_where_half_would_drop_them() -> None:
    """Two hundred chunks of equal rows: in bfloat16 their sum would stop growing at 256 times."""
    tokens = 1000
    features_NH = torch.ones(tokens, 1, dtype=torch.bfloat16, requires_grad=True)
    weight_VH = torch.zeros(2, 1, requires_grad=True)
    bias_V = torch.zeros(2, requires_grad=True)
    chunked_nll(
        features_NH, weight_VH, bias_V, targets_N=torch.zeros(tokens).long(), rows=1
    ).backward()
    assert weight_VH.grad.flatten().tolist() == [-tokens / 2, tokens / 2]


def test_a_second_derivative_is_refused_not_wrong() -> None:
    *parameters, targets_N = inputs()
    nll = chunked_nll(*parameters, targets_N=targets_N, rows=4)
    with pytest.raises(RuntimeError, match="differentiated only once"):
        torch.autograd.grad(nll, parameters, create_graph=True)


def test_a_second_backward_pass_is_refused_not_wrong() -> None:
    *parameters, targets_N = inputs()
    nll = chunked_nll(*parameters, targets_N=targets_N, rows=4)
    nll.backward(retain_graph=True)
    with pytest.raises(RuntimeError):
        nll.backward()


# Prints by how many bytes the peak grows in one loss and its gradients, and the logits' size.
# (VmHWM is this process's own peak; ru_maxrss would start from that of the one that forked it.)
MEASURE = """
import torch
from sglm.model.language_model import LSTMLanguageModel, ModelShape

def peak():
    [line] = [l for l in open("/proc/self/status") if l.startswith("VmHWM")]
    return int(line.split()[1]) * 1024

torch.set_num_threads(1)
def run(tokens, vocab_size):
    shape = ModelShape(vocab_size=vocab_size, layers=1, hidden=32, embedding=32, tied=True)
    model = LSTMLanguageModel(shape)
    features = torch.randn(tokens, 1, 32, requires_grad=True)
    targets = torch.randint(vocab_size, (tokens, 1))
    before = peak()
    model.nll(features, targets).backward()
    return peak() - before

run(300, 8000)  # libraries are loaded and set up
print(run(2048, 20_000), 4 * 2048 * 20_000)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_the_logits_are_never_all_there() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    grown, logits = map(int, done.stdout.split())
    # Measured: 17 to 65 MB (a chunk, 33 MB, of which the C library may hold one that was freed, and
    # the gradients, 5 MB, less what the first run left free) of the logits' 164; plain logits: 490.
    assert grown < logits / 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("words", [1000, 3000])  # up to 1,024 columns torch has another kernel
def test_probabilities_on_the_device_may_take_the_place_of_logits(words: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(300, 32), (words, 32), (words,)]
    values = [torch.randn(shape, generator=generator) for shape in shapes]
    targets_N = torch.randint(words, (300,), generator=generator)
    there = [value.to("cuda").requires_grad_() for value in values]
    exact = [value.double().requires_grad_() for value in values]
    actual = chunked_nll(*there, targets_N=targets_N.to("cuda"), rows=128)
    expected = plain_nll(*exact, targets_N)
    # float32 sums over thousands of products of size one, TF32 off as torch has it
    torch.testing.assert_close(actual.cpu().double(), expected, rtol=1e-5, atol=0)
    for left, right in zip(
        torch.autograd.grad(actual, there), torch.autograd.grad(expected, exact), strict=True
    ):
        torch.testing.assert_close(left.cpu().double(), right, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_vocabulary_fits_on_the_device(dtype: torch.dtype) -> None:
    """80 lanes × 70 steps over 33,000 words: the peak stays below the float32 logits alone."""
    vocab_size, steps, lanes = 33_000, 70, 80
    model = LSTMLanguageModel(
        ModelShape(vocab_size=vocab_size, layers=1, hidden=256, embedding=256, tied=True),
        compute_dtype=dtype,
    )
    model.to("cuda")
    features = torch.randn(steps, lanes, 256, device="cuda", dtype=dtype, requires_grad=True)
    targets = torch.randint(vocab_size, (steps, lanes), device="cuda")
    torch.cuda.reset_peak_memory_stats()
    model.nll(features, targets).backward()
    assert torch.cuda.max_memory_allocated() < 4 * steps * lanes * vocab_size
