"""`sglm train` as a user meets it."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from sglm.cli.main import app
from sglm.cli.signals import stop_request
from sglm.cli.train import _as_json
from sglm.optim import precision
from sglm.text.store import TokenStore
from sglm.train.loop import Outcome

SMALL = [
    *("--set", "model.hidden=8", "--set", "schedule.unit=steps", "--set", "schedule.cycles=[8, 8]"),
    *("--set", "train.batch=4", "--set", "train.window=5"),
]


def sglm_command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}


def train_command(store: TokenStore, out: Path, *settings: str) -> list[str]:
    """A training that prints a line every step, as a process of its own."""
    command = [sys.executable, "-m", "sglm.cli.main", "train", "tiny", "--data"]
    command += [str(store.folder), "--out", str(out), *SMALL]
    for setting in (*settings, "train.log_every_steps=1"):
        command += ["--set", setting]
    return command


def test_train_eval_score_generate_from_end_to_end(word_store: TokenStore, tmp_path: Path) -> None:
    out, data = tmp_path / "run", word_store.folder
    result = sglm_command("train", "tiny", "--data", data, "--out", out, *SMALL, "--json")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.splitlines()[0].startswith("training on ")
    outcome = json.loads(result.stdout)
    assert outcome["steps"] == 16
    assert outcome["already_finished"] is False
    last = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])

    result = sglm_command("eval", out, "--data", data, "--split", "valid", "--json")
    evaluation = json.loads(result.stdout)
    # The run's own validations are the evaluation; only the summing order of float32 differs.
    assert evaluation["token_ppl"] == pytest.approx(outcome["best_token_ppl"], rel=1e-6)
    assert evaluation["token_ppl"] <= last["token_ppl"] * (1 + 1e-6)

    result = sglm_command("train", "tiny", "--data", data, "--out", out, *SMALL)
    assert result.exit_code == 0
    assert "was finished already" in result.stdout
    assert "training on" not in result.stderr

    assert sglm_command("generate", out, "--prompt", "the cat", "--tokens", "3").exit_code == 0


def test_seed_is_short_for_a_setting(word_store: TokenStore, tmp_path: Path) -> None:
    common = ["train", "tiny", "--data", word_store.folder, *SMALL]
    sglm_command(*common, "--out", tmp_path / "a", "--seed", 7)
    sglm_command(*common, "--out", tmp_path / "b", "--set", "train.seed=7")
    config = (tmp_path / "a" / "config.toml").read_text()
    assert config == (tmp_path / "b" / "config.toml").read_text()
    assert "seed = 7" in config


def test_bfloat16_on_a_cpu_that_is_fast_with_it(
    word_store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = ["train", "tiny", "--data", word_store.folder, *SMALL, "--device", "cpu", "--json"]
    half, out = [*common, "--precision", "bf16"], tmp_path / "half"
    for amx in (False, True):  # any CPU has the products; only some have them fast
        monkeypatch.setattr(precision, "cpu_multiplies_bfloat16", lambda amx=amx: amx)
        if not amx:
            result = sglm_command(*half, "--out", out)
            assert (result.exit_code, out.exists()) == (2, False)
            assert "needs a CUDA device, or a CPU with AMX" in result.stderr
    bfloat16 = json.loads(sglm_command(*half, "--out", out).stdout)
    exact = json.loads(sglm_command(*common, "--out", tmp_path / "whole").stdout)
    # Sixteen steps of a model that is evaluated in float32 either way: a digit or two of bfloat16.
    assert bfloat16["best_token_ppl"] == pytest.approx(exact["best_token_ppl"], rel=0.02)
    assert bfloat16["best_token_ppl"] != exact["best_token_ppl"]
    [session] = (out / "sessions.jsonl").read_text().splitlines()
    assert json.loads(session)["precision"] == "bf16"


def test_dry_run_prints_the_plan_and_leaves_nothing(word_store: TokenStore, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = sglm_command(
        "train", "tiny", "--data", word_store.folder, "--out", out, *SMALL, "--dry-run"
    )
    assert result.exit_code == 0
    for word in ("parameters", "MiB", "real", "synthetic", "peak rate", "16 steps"):
        assert word in result.stdout
    as_json = sglm_command(
        "train", "tiny", "--data", word_store.folder, "--out", out, *SMALL, "--dry-run", "--json"
    )
    found = json.loads(as_json.stdout)
    assert [cycle["mode"] for cycle in found["cycles"]] == ["real", "synthetic"]
    assert found["seconds"] > 0
    assert result.stdout.splitlines()[-1].startswith("time     about ")
    assert not out.exists()


def test_a_plan_that_is_interrupted_while_it_is_timed_says_so(
    word_store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)  # and the process that times ends by it, too

    monkeypatch.setattr("sglm.compare.timing.seconds_of_runs", interrupted)
    arguments = ["train", "tiny", "--data", word_store.folder, "--out", tmp_path / "run", *SMALL]
    result = sglm_command(*arguments, "--dry-run")
    assert result.exit_code == 130
    assert "parameters" in result.stdout


def test_what_would_fill_the_memory_is_not_timed(
    word_store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sglm.runtime.memory.available_bytes", lambda: 2.0**20)
    arguments = ["train", "tiny", "--data", word_store.folder, "--out", tmp_path / "run", *SMALL]
    assert "time " not in sglm_command(*arguments, "--dry-run").stdout
    assert json.loads(sglm_command(*arguments, "--dry-run", "--json").stdout)["seconds"] is None


def test_a_dry_run_under_torchrun_plans_one_process(
    word_store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["train", "tiny", "--data", word_store.folder, "--out", tmp_path / "run", *SMALL]
    arguments += ["--dry-run", "--set", "train.batch=4"]
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RANK", "1")
    assert sglm_command(*arguments).stdout == ""  # one of them prints
    monkeypatch.setenv("RANK", "0")
    assert "each of 2 processes" in sglm_command(*arguments).stdout
    assert json.loads(sglm_command(*arguments, "--json").stdout)["processes"] == 2
    wrong = [*arguments, "--set", "train.batch=none"]
    assert "train.batch = 'none'" in sglm_command(*wrong).stderr
    monkeypatch.setenv("LOCAL_RANK", "1")
    silent = sglm_command(*wrong)
    assert (silent.exit_code, silent.output) == (2, "")
    with monkeypatch.context() as alone:  # a batch system may number what does not run together
        alone.delenv("RANK")
        assert "train.batch = 'none'" in sglm_command(*wrong).stderr
    monkeypatch.setenv("LOCAL_RANK", "0")
    refused = sglm_command(*arguments, "--set", "train.batch=3")
    assert refused.exit_code != 0
    assert "3 lanes cannot be shared out among 2 processes" in refused.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_leaves_and_the_same_command_continues(
    number: signal.Signals, word_store: TokenStore, tmp_path: Path
) -> None:
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("this signal is ignored here (nohup), and programs inherit that")
    out = tmp_path / "run"
    # Long enough that the signal arrives in the midst of it.
    command = train_command(word_store, out, "schedule.cycles=[2000, 2000]")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ONE_THREAD) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if line.startswith("step"))
        process.send_signal(number)
        if number == signal.SIGHUP:  # a shell sends it, and then the terminal
            next(line for line in process.stderr if "stopping after this step" in line)
            process.send_signal(number)
        rest = process.stderr.read()
        assert process.wait(timeout=30) == 128 + number
    assert "Traceback" not in rest
    assert "with everything saved" in rest.splitlines()[-1]
    assert (out / "checkpoints" / "latest" / "state.json").exists()

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ONE_THREAD) as process:
        assert process.stderr is not None
        continuing = next(line for line in process.stderr if "continuing at step" in line)
        process.kill()
        process.communicate()
    assert int(continuing.split()[3].replace(",", "")) > 0


def test_nohup_goes_on_when_the_terminal_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_request() as request:
            os.kill(os.getpid(), signal.SIGHUP)
            assert request.signal_number() is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_twice_in_a_row_ends_at_once_and_harms_nothing(
    number: signal.Signals, word_store: TokenStore, tmp_path: Path
) -> None:
    """The second comes before the next step, or amid the checkpoint that the first asked for."""
    command = train_command(word_store, tmp_path / "run", "schedule.cycles=[400, 400]")
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ONE_THREAD) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if line.startswith("step"))
        process.send_signal(number)
        next(line for line in process.stderr if "once more to stop" in line)
        process.send_signal(number)
        rest = process.stderr.read()
        # Killed by the second one, or quicker than that.
        assert process.wait(timeout=30) in (-number, 128 + number)
    assert "Traceback" not in rest
    again = subprocess.run(command, capture_output=True, text=True, env=ONE_THREAD, check=False)
    assert again.returncode == 0, again.stderr
    assert "800 steps" in again.stdout


def test_a_reader_of_the_progress_who_goes_away_ends_no_training(
    word_store: TokenStore, tmp_path: Path
) -> None:
    """As `sglm train … 2>&1 | head` does, or a terminal that is closed."""
    command = train_command(word_store, tmp_path / "run")
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stderr is not None
        process.stderr.readline()
        process.stderr.close()
        assert process.wait(timeout=60) == 0
    assert (tmp_path / "run" / "last" / "model.safetensors").exists()


def test_progress_is_plain_lines_away_from_a_terminal(
    word_store: TokenStore, tmp_path: Path
) -> None:
    result = sglm_command(
        *("train", "tiny", "--data", word_store.folder, "--out", tmp_path / "run", *SMALL),
        *("--set", "train.log_every_steps=4"),
    )
    assert "\r" not in result.stderr
    assert "\x1b" not in result.stderr
    steps = [line for line in result.stderr.splitlines() if line.startswith("step 4/16")]
    assert len(steps) == 1
    assert "tokens/s" in steps[0]
    assert "left" in steps[0]


def test_a_perplexity_that_json_cannot_hold_is_null() -> None:
    outcome = Outcome(
        steps=1, tokens_seen=2, seconds=3.0, best_token_ppl=math.inf,
        skipped_steps=0, already_finished=False, diagnosis=None,
    )  # fmt: skip
    assert json.loads(_as_json(outcome, Path("run")))["best_token_ppl"] is None
    assert "Infinity" not in _as_json(outcome, Path("run"))
