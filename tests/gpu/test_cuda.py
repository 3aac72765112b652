"""What only a CUDA device can show; tests/train/test_step.py has its counterparts on the CPU."""

import copy
import io
import subprocess
import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from sglm.config import Config
from sglm.dni.adjoint import AdjointEstimator
from sglm.dni.learned import LearnedEstimator
from sglm.dni.synthesizer import MLPSynthesizer
from sglm.errors import Stopped
from sglm.lm import LanguageModel
from sglm.loading import load
from sglm.model.language_model import DropoutRates, LSTMLanguageModel, ModelShape
from sglm.optim.precision import make_precision
from sglm.optim.schedule import Mode, StepPlan
from sglm.runtime.calls import Calls, RecordedCalls
from sglm.scoring.predictor import NetworkPredictor
from sglm.text.batcher import Batcher, Window
from sglm.text.store import TokenStore
from sglm.text.tokenizer import ByteTokenizer
from sglm.train.graph import GraphedPass
from sglm.train.learner import Learner
from sglm.train.loop import train
from sglm.train.step import train_step
from sglm.train.window_decision import WindowDecision
from sglm.train.window_pass import WindowPass
from tests.train.test_step import take_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # cuDNN says that our weights are not in one block; slower, not wrong.
    pytest.mark.filterwarnings("ignore:RNN module weights"),
]
B, T, V, H = 8, 16, 50, 64


def make_learner(precision: str, dropout: DropoutRates | None = None) -> Learner:
    device = torch.device("cuda")
    torch.manual_seed(0)
    chosen = make_precision(precision, device)
    model = LSTMLanguageModel(
        ModelShape(vocab_size=V, layers=2, hidden=H, embedding=H, tied=True),
        dropout,
        chosen.compute_dtype,
    )
    model.to(device).train()
    synthesizer = MLPSynthesizer(4 * H, 32).to(device)
    return Learner(
        model=model,
        window_pass=WindowPass(model),
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True),
        precision=chosen,
        estimator=LearnedEstimator(synthesizer, learning_rate=1e-3, factor=0.5),
        state=model.start_state(B),
        learning_rate=1e-2,
        clip_norm=1.0,
    )


def run(learner: Learner, steps: int = 60) -> list[float]:
    """Losses in nats per token on a sequence that counts."""
    losses = []
    for step in range(steps):
        ids = (torch.arange(T + 1)[:, None] + T * step + 3 * torch.arange(B)) % V
        ids = ids.to("cuda")
        window = Window(ids[:-1], ids[1:], is_first=step == 0, is_last=False)
        mode = Mode.SYNTHETIC if step >= steps // 2 else Mode.REAL
        result = take_step(learner, window, StepPlan(1.0, mode, 0), step)
        losses.append(float(result.nll_nats) / result.tokens)
    return losses


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_learns_in_every_precision(precision: str) -> None:
    losses = run(make_learner(precision, DropoutRates(weight=0.1)), steps=120)
    # log 50 = 3.9 nats is guessing; counting is learned within the 120 steps.
    assert losses[0] > 3.5
    assert losses[-1] < 1.0


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is for Linux")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_layer_that_stays_on_the_device_learns_as_cudnns(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {}
    for kernels in ("0", "1"):
        monkeypatch.setenv("SGLM_TRITON", kernels)
        losses[kernels] = run(make_learner(precision), steps=120)
    # A first loss has two digits of bfloat16; later ones have gone ways of their own.
    assert losses["1"][0] == pytest.approx(losses["0"][0], rel=1e-2)
    assert losses["1"][-1] < 1.0
    assert losses["1"] != losses["0"]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_lstm_runs_in_the_type_that_was_asked_for(precision: str) -> None:
    learner = make_learner(precision)
    ids = torch.zeros(T, B, dtype=torch.long, device="cuda")
    features_TBH, state = learner.model.features(ids, learner.state)
    assert features_TBH.dtype == learner.precision.compute_dtype
    assert state.cell[0].dtype == torch.float32


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    ("kind", "recorded"),
    [("adjoint", False), ("adjoint", True), ("mlp", False), ("recurrent", False)],
)
def test_a_run_stops_resumes_and_scores_on_the_device(
    precision: str,
    kind: str,
    *,
    recorded: bool,
    tiny_config: Callable[..., Config],
    word_store: TokenStore,
    tmp_path: Path,
) -> None:
    device, out = torch.device("cuda"), tmp_path / "run"
    config = tiny_config(
        synthesizer={"kind": kind, "auxiliary": kind != "adjoint"}, train={"cuda_graph": recorded}
    )
    polls = iter([None] * 10 + [15])
    for stop in (lambda: next(polls), lambda: None):
        chosen = make_precision(precision, device)
        try:
            train(
                config, word_store, out, precision=chosen, console=io.StringIO(), stop_signal=stop
            )
        except Stopped:
            continue
    texts = ["the cat sees the moon .", "all fish hear nothing ."]
    on_gpu, on_cpu = (load(out, name).score(texts) for name in ("cuda", "cpu"))
    for left, right in zip(on_gpu, on_cpu, strict=True):
        # Scoring is in full float32. The two sum in other orders, over some ten tokens.
        assert left.logprob == pytest.approx(right.logprob, rel=1e-5)


def test_auto_is_a_half_type() -> None:
    assert make_precision("auto", torch.device("cuda")).name in {"bf16", "fp16"}


def test_first_steps_agree_with_the_cpu() -> None:
    gpu = make_learner("fp32")
    torch.manual_seed(0)
    cpu = LSTMLanguageModel(gpu.model.shape)
    ids = (torch.arange(T)[:, None] + torch.arange(B)) % V
    expected = cpu.nll(cpu.features(ids, cpu.start_state(B))[0], ids)
    ids = ids.to("cuda")
    actual = gpu.model.nll(gpu.model.features(ids, gpu.state)[0], ids)
    # float32, or TF32 where the device uses it: three decimal digits
    torch.testing.assert_close(actual.cpu(), expected, rtol=1e-3, atol=0)


def test_a_recorded_pass_trains_as_launched_kernels_do() -> None:
    """The same kernels in the same order; only rounding of sums may differ (atomics)."""
    launched, replayed = make_learner("fp32"), make_learner("fp32")
    replayed.window_pass = GraphedPass(WindowPass(replayed.model))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run(replayed) == pytest.approx(run(launched), rel=1e-3)


def test_a_recorded_pass_hands_out_what_the_adjoint_learns_from() -> None:
    """As tests/train/test_graph.py has it for the CPU."""
    means = []
    for uses_cuda_graph in (False, True):
        learner = make_learner("fp32")
        estimator = AdjointEstimator(learner.model, exact=False, factor=1.0)
        learner.estimator = estimator
        window_pass = WindowPass(learner.model, keeps_features=True)
        learner.window_pass = GraphedPass(window_pass) if uses_cuda_graph else window_pass
        for step in range(20):
            ids = (torch.arange(T + 1)[:, None] + T * step + 3 * torch.arange(B)) % V
            ids = ids.to("cuda")
            window = Window(ids[:-1], ids[1:], is_first=step == 0, is_last=False)
            train_step(learner, window, WindowDecision(mode=Mode.REAL), learning_rate=1e-2)
        assert estimator.expected_row is not None
        means.append(estimator.expected_row.mean_H)
    # Rounding of sums may differ (atomics).
    torch.testing.assert_close(means[1], means[0], rtol=1e-3, atol=1e-5)


def test_a_recorded_synthesizer_trains_as_a_launched_one() -> None:
    """As tests/train/test_graph.py has it for the CPU, bit for bit."""
    ids_N = np.concatenate([(np.arange(40 * T) + 3 * lane) % V for lane in range(B)])
    text = Batcher(ids_N.astype(np.uint16), batch=B, window=T, bos_id=0, stretch=2, lookahead=20)
    losses, means = [], []
    for uses_cuda_graph in (False, True):
        learner = make_learner("fp32")
        calls = RecordedCalls() if uses_cuda_graph else Calls()
        named = {"exact": False, "factor": 1.0, "stretch": 2, "reach": 20}
        estimator = AdjointEstimator(learner.model, **named, calls=calls)  # type: ignore[arg-type]
        learner.estimator = estimator
        window_pass = WindowPass(learner.model, keeps_features=True)
        learner.window_pass = GraphedPass(window_pass) if uses_cuda_graph else window_pass
        for step in range(40):
            mode, probe = Mode.SYNTHETIC if step > 9 else Mode.REAL, step % 8 == 5
            decision = WindowDecision(
                mode=mode, inject=mode is Mode.SYNTHETIC and not probe, probe=probe
            )
            window = text.at(step).to(torch.device("cuda"))
            result = train_step(learner, window, decision, learning_rate=1e-2)
            losses.append(float(result.nll_nats) / result.tokens)
        assert estimator.expected_row is not None
        means.append(estimator.expected_row.mean_H)
    launched, replayed = losses[:40], losses[40:]
    # Rounding of sums may differ (atomics), and grows from step to step.
    assert replayed[:10] == pytest.approx(launched[:10], rel=1e-3)
    assert replayed == pytest.approx(launched, rel=2e-2, abs=2e-2)
    torch.testing.assert_close(means[1], means[0], rtol=5e-2, atol=1e-3)


def test_scoring_uses_no_tf32_whatever_the_program_has_set() -> None:
    """tests/runtime/test_device.py looks at the switches without a GPU."""
    torch.manual_seed(0)
    # As wide as to make TF32's three digits show: some 1e-4 of a log-probability without the guard.
    shape = ModelShape(vocab_size=257, layers=2, hidden=512, embedding=512, tied=True)
    network = LSTMLanguageModel(shape).eval()
    torch.nn.init.normal_(network.embedding, std=0.5)
    on_cpu = LanguageModel(NetworkPredictor(copy.deepcopy(network)), tokenizer=ByteTokenizer())
    on_gpu = LanguageModel(NetworkPredictor(network.to("cuda")), tokenizer=ByteTokenizer())
    texts = [f"{number} bottles of beer on the wall" * (1 + number % 9) for number in range(100)]
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        together, alone = on_gpu.score(texts), [on_gpu.score(text) for text in texts]
        assert torch.backends.cudnn.allow_tf32, "the program's own setting is left to it"
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
    for one, other, expected in zip(together, alone, on_cpu.score(texts), strict=True):
        assert one.logprob == pytest.approx(other.logprob, rel=1e-5)
        assert one.logprob == pytest.approx(expected.logprob, rel=1e-5)


def test_deterministic_training_is_the_same_twice(word_store: TokenStore, tmp_path: Path) -> None:
    """In processes of their own: the settings are a process's. tests/train/test_reproducible.py has
    the counterpart on the CPU."""
    weights = []
    for name in ("a", "b"):
        options = ["--device", "cuda", "--deterministic", "--precision", "fp32", "--seed", "3"]
        options += ["--set", "schedule.unit=steps", "--set", "schedule.cycles=[20, 40]"]
        options += ["--set", "dropout.weight=0.2", "--set", "train.batch=4"]
        command = [sys.executable, "-m", "sglm.cli.main", "train", "tiny", *options]
        command += ["--data", str(word_store.folder), "--out", str(tmp_path / name)]
        subprocess.run(command, check=True, capture_output=True)
        weights.append((tmp_path / name / "last" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
