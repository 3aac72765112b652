"""Two processes that train one model, over gloo on the CPU, give what one process gives."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sglm.errors import InputError, SglmError
from sglm.runtime import ranks
from sglm.runtime.device import claim_gpu
from sglm.runtime.ranks import ALONE, joined
from sglm.text.store import TokenStore

COMMON = [
    *("--set", "model.hidden=8", "--set", "train.batch=4", "--set", "train.window=5"),
    *("--set", "train.log_every_steps=5", "--set", "train.checkpoint_every_steps=1000"),
    *("--set", "schedule.unit=steps", "--set", "schedule.cycles=[10, 20]"),
    *("--set", "schedule.mode=alternating", "--set", "dropout.output=0.2"),
    *("--set", "dropout.weight=0.2", "--set", "dropout.input=0.2"),
]
CASES = {
    "mlp": [
        *("--set", "synthesizer.kind=mlp", "--set", "synthesizer.auxiliary=true"),
        *("--set", "optimizer.averaging=0.3"),
    ],
    "adjoint": [
        *("--set", "synthesizer.kind=adjoint", "--set", "synthesizer.every=2"),
        *("--set", "synthesizer.factor=0.5", "--set", "model.hidden=6"),  # few enough for q
    ],
    "critic": [
        *("--set", "synthesizer.kind=critic", "--set", "synthesizer.factor=1.0"),
        *("--set", "schedule.mode=synthetic"),
    ],
    "adaptive": [
        *("--set", "synthesizer.every=2", "--set", "synthesizer.factor=0.5"),
        *("--set", "model.hidden=6", "--set", "model.softmax=adaptive"),
        *("--set", "model.cutoffs=[4, 9]"),
    ],
    # Long windows: read now and then, and learned from in part.
    "adjoint, long": [
        *("--set", "train.window=40", "--set", "model.hidden=6"),
        *("--set", "synthesizer.every=2", "--set", "synthesizer.factor=0.5"),
    ],
    "other lane": [
        *("--set", "synthesizer.inject=other-lane", "--set", "synthesizer.factor=0.5"),
        *("--set", "model.hidden=6"),
    ],
    "recurrent noise": [
        *("--set", "synthesizer.kind=recurrent", "--set", "synthesizer.inject=noise"),
        *("--set", "synthesizer.factor=0.5"),
    ],
    "horizon": ["--set", "schedule.mode=real", "--set", "train.horizon=15"],
}


def start(
    processes: int, store: Path, out: Path, *settings: str, restarts: int = 0
) -> "subprocess.Popen[str]":
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc-per-node", str(processes), "--max-restarts", str(restarts)]
    command = ["-m", "sglm.cli.main", "train", "tiny", "--data", str(store), "--out", str(out)]
    return subprocess.Popen(
        [*launcher, *command, *COMMON, *settings, "--device", "cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def finish(process: "subprocess.Popen[str]") -> tuple[str, str]:
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    return stdout, stderr


def losses(out: Path) -> list[float]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["nll_per_token"] for line in lines]


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "last" / "model.safetensors")


def assert_same_run(one: Path, other: Path) -> None:
    # float32: gradients are summed over lanes in another order, and thirty updates carry that on.
    np.testing.assert_allclose(losses(one), losses(other), rtol=1e-4)
    for name, weight in weights(one).items():
        torch.testing.assert_close(weights(other)[name], weight, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_the_losses_of_one(
    word_store: TokenStore, tmp_path: Path, case: str
) -> None:
    runs = [
        start(count, word_store.folder, tmp_path / str(count), *CASES[case]) for count in (1, 2)
    ]
    (_, stderr), (stdout, two_stderr) = map(finish, runs)
    assert_same_run(tmp_path / "1", tmp_path / "2")
    # One of them speaks, and says what one process alone would say.
    assert stdout.count("finished: 30 steps") == 1
    assert two_stderr.count("step 30/30") == stderr.count("step 30/30") == 1
    assert len(list((tmp_path / "2" / "tensorboard").iterdir())) == 1


@pytest.mark.parametrize("case", ["recurrent noise", "adjoint"])
def test_stopped_and_continued_by_another_number_of_processes(
    word_store: TokenStore, tmp_path: Path, case: str
) -> None:
    """A checkpoint is of all lanes: two begin, one goes on, two end; one SIGTERM stops both."""
    settings = [*CASES[case], "--set", "schedule.cycles=[10, 290]"]
    whole = start(1, word_store.folder, tmp_path / "whole", *settings)
    finish(whole)
    out = tmp_path / "parts"
    for count in (2, 1):
        process = start(count, word_store.folder, out, *settings)
        assert process.stderr is not None
        while not process.stderr.readline().startswith("step "):
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=60)
        assert "with everything saved; the same command continues from there" in stderr
        assert not (out / "last").exists()  # it was stopped midway
    finish(start(2, word_store.folder, out, *settings))
    np.testing.assert_allclose(losses(tmp_path / "whole"), losses(out), rtol=1e-3)


def test_lanes_that_cannot_be_shared_out_are_refused(
    word_store: TokenStore, tmp_path: Path
) -> None:
    process = start(2, word_store.folder, tmp_path / "run", "--set", "train.batch=3")
    _, stderr = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "3 lanes cannot be shared out among 2 processes; make it a multiple of 2" in stderr
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_used_ends_all_of_them_without_a_traceback(
    word_store: TokenStore, tmp_path: Path
) -> None:
    finish(start(1, word_store.folder, tmp_path / "run", *CASES["horizon"]))
    process = start(2, word_store.folder, tmp_path / "run", *CASES["adjoint"])
    _, stderr = process.communicate(timeout=60)
    assert process.returncode != 0
    assert stderr.count("holds a run with another configuration") == 1
    assert "Connection" not in stderr


def test_folders_that_are_not_shared_are_noticed(word_store: TokenStore, tmp_path: Path) -> None:
    """Each process sees another checkpoint: as on machines without a common disk."""
    settings = ["--set", "schedule.cycles=[10, 990]", *CASES["adjoint"]]
    process = start(1, word_store.folder, tmp_path / "0" / "run", *settings)
    assert process.stderr is not None
    while not process.stderr.readline().startswith("step "):
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    (tmp_path / "1").mkdir()
    own = tmp_path / "own.py"
    own.write_text(
        "import os, sys\n"
        f"os.chdir(os.path.join({str(tmp_path)!r}, os.environ['RANK']))\n"
        "from sglm.cli.main import app\napp()\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [str(own), "train", "tiny", "--data", str(word_store.folder), "--out", "run"]
    done = subprocess.run(
        [*launcher, "--nproc-per-node", "2", *command, *COMMON, *settings, "--device", "cpu"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "not the same folder for all processes; give one that they share" in done.stderr


def test_the_first_process_s_clock_says_when_all_of_them_save(
    word_store: TokenStore, tmp_path: Path
) -> None:
    """Clocks differ: the second process finds that it is always time."""
    own, out = tmp_path / "own.py", tmp_path / "run"
    own.write_text(
        "import itertools, os\n"
        "from sglm.cli.main import app\n"
        "from sglm.train.save_timer import SaveTimer\n"
        "asked = itertools.count()\n"
        "SaveTimer.due = lambda _: os.environ['RANK'] == '1' or next(asked) in (7, 8, 16)\n"
        "app()\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command = [str(own), "train", "tiny", "--data", str(word_store.folder), "--out", str(out)]
    settings = [*COMMON, *CASES["adjoint"], "--set", "train.keep_checkpoints=50"]
    done = subprocess.run(
        [*launcher, "--nproc-per-node", "2", *command, *settings, "--device", "cpu"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    saved = {path.name for path in (out / "checkpoints").glob("step-*")}
    assert saved == {f"step-{step:09d}" for step in (7, 8, 16, 30)}


def test_variables_of_a_batch_system_alone_start_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with joined(torch.device("cpu")) as ranks:
        assert ranks == ALONE


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
def test_after_a_process_has_died_the_run_goes_on_from_its_checkpoint(
    word_store: TokenStore, tmp_path: Path
) -> None:
    settings = [*CASES["adjoint"], "--set", "schedule.cycles=[10, 990]"]
    settings += ["--set", "train.checkpoint_every_steps=5"]
    process = start(2, word_store.folder, tmp_path / "run", *settings)
    assert process.stderr is not None
    while not process.stderr.readline().startswith("step 10/"):
        assert process.poll() is None
    os.kill(children(process.pid)[1], signal.SIGKILL)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "RuntimeError" not in stderr
    resumed = start(1, word_store.folder, tmp_path / "run", *settings)
    _, stderr = resumed.communicate(timeout=120)
    assert "continuing at step" in stderr
    assert resumed.returncode == 0


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
def test_torchrun_starts_them_again_and_the_run_ends_as_it_would_have(
    word_store: TokenStore, tmp_path: Path
) -> None:
    settings = [*CASES["adjoint"], "--set", "schedule.cycles=[10, 50]"]
    settings += ["--set", "train.checkpoint_every_steps=5"]
    process = start(2, word_store.folder, tmp_path / "two", *settings, restarts=1)
    assert process.stderr is not None
    while not process.stderr.readline().startswith("step 10/"):
        assert process.poll() is None
    os.kill(children(process.pid)[1], signal.SIGKILL)
    _, stderr = finish(process)
    assert "continuing at step" in stderr
    finish(start(1, word_store.folder, tmp_path / "one", *settings))
    assert_same_run(tmp_path / "one", tmp_path / "two")


def as_if_launched(monkeypatch: pytest.MonkeyPatch, local_rank: str) -> None:
    launched = {"WORLD_SIZE": "4", "RANK": "1", "MASTER_ADDR": "head", "MASTER_PORT": "1"}
    for name, value in {**launched, "LOCAL_RANK": local_rank}.items():
        monkeypatch.setenv(name, value)


def test_a_process_without_a_gpu_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    as_if_launched(monkeypatch, "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert claim_gpu(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(InputError, match=r"process 3 .* no GPU of its own \(2 seen\)"):
        claim_gpu(torch.device("cuda"))


@pytest.mark.parametrize(
    ("rank", "asked", "own"),
    [("0", "cuda", 0), ("1", "cuda", 1), ("0", "cuda:1", 0), (None, "cuda:1", 1)],
)
def test_a_process_computes_on_its_own_gpu(
    rank: str | None, asked: str, own: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    current: list[torch.device] = []
    if rank is None:  # a batch system may number what does not run together
        monkeypatch.setenv("LOCAL_RANK", "3")
    else:
        as_if_launched(monkeypatch, rank)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert claim_gpu(torch.device(asked)) == torch.device("cuda", own)
    assert current == [torch.device("cuda", own)]


def test_the_loss_of_a_process_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("init_process_group", "new_group", "destroy_process_group"):
        monkeypatch.setattr(torch.distributed, name, lambda *_, **__: None)
    store = torch.distributed.HashStore()
    monkeypatch.setattr(ranks, "rendezvous", lambda _: iter([(store, 0, 2)]))
    cpu = torch.device("cpu")
    lost = "[gloo/transport/tcp/pair.cc:547] Connection closed by peer [::1]:1"
    with pytest.raises(SglmError, match="same command continues"), joined(cpu):
        raise RuntimeError(lost)
    with pytest.raises(RuntimeError, match="another matter"), joined(cpu):
        raise RuntimeError("another matter")
