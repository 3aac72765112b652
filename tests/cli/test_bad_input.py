"""Bad input, through the command line: a clear error of one or two lines, and nothing lost."""

import builtins
import gzip
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from sglm.cli.main import app
from sglm.text import store as store_module
from sglm.text.prepare import StoreSettings, prepare
from sglm.text.store import TokenStore
from tests.conftest import make_text

SMALL = [
    *("--set", "model.hidden=8", "--set", "schedule.unit=steps", "--set", "schedule.cycles=[3, 3]"),
    *("--set", "train.batch=4", "--set", "train.window=5"),
]


@pytest.fixture
def workdir(tmp_path: Path, word_store: TokenStore) -> Iterator[Path]:
    """A working folder with a good text, a store, a run, and everything bad."""
    (tmp_path / "good.txt").write_text(make_text(100))
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(b"\x7fELF\x02\x01\x01\x00" + bytes(range(256)) * 4)
    (tmp_path / "latin1.txt").write_bytes(b"fine here\n" + "caf\xe9\n".encode("latin-1"))
    (tmp_path / "packed.txt").write_bytes(gzip.compress(b"text\n" * 50))
    (tmp_path / "line.txt").write_text(make_text(100).replace("\n", " "))
    (tmp_path / "short.txt").write_text("one two three\nfour five\nsix\nseven\neight nine\nten\n")
    (tmp_path / "broken.toml").write_text("[model\n")
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied" / "thesis.tex").write_text("years of work")
    (tmp_path / "store").symlink_to(word_store.folder)
    prepare([str(tmp_path / "good.txt")], tmp_path / "bytes", StoreSettings(tokenizer="byte"))
    result = CliRunner().invoke(
        app,
        [
            "train",
            "tiny",
            "--data",
            str(tmp_path / "store"),
            "--out",
            str(tmp_path / "run"),
            *SMALL,
        ],
    )
    assert result.exit_code == 0, result.stderr
    before = Path.cwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


TRAIN = ("train", "tiny", "--data", "store", "--out", "new")
CASES = {
    "missing file": (("prep", "no.txt", "--out", "new"), ["no.txt"]),
    "empty file": (("prep", "empty.txt", "--out", "new"), ["empty"]),
    "binary file": (("prep", "binary.txt", "--out", "new"), ["binary.txt", "binary"]),
    "gzip under a wrong name": (("prep", "packed.txt", "--out", "new"), ["packed.txt", "gz"]),
    "not UTF-8": (("prep", "latin1.txt", "--out", "new"), ["latin1.txt", "offset 13"]),
    "vocabulary too large for the text": (
        ("prep", "good.txt", "--out", "new", "--vocab-size", "5000"),
        ["vocab"],
    ),
    "word vocabulary too large for the text": (
        ("prep", "good.txt", "--out", "new", "--tokenizer", "word", "--vocab-size", "5000"),
        ["vocab"],
    ),
    "unknown tokenizer": (
        ("prep", "good.txt", "--out", "new", "--tokenizer", "wrod"),
        ["wrod", "word"],
    ),
    "prep into something else": (("prep", "good.txt", "--out", "occupied"), ["occupied"]),
    "prep over a store": (("prep", "good.txt", "--out", "bytes"), ["bytes", "--force"]),
    "a store in place of the configuration": (
        ("train", "store", "--data", "store", "--out", "new"),
        ["store: a token store", "tiny --data store"],
    ),
    "the text before the model": (
        ("score", "good.txt", "run"),
        ["run: a model", "the model comes first"],
    ),
    "candidates before the model": (
        ("rescore", "good.txt", "run", "--beam-size", "2"),
        ["run: a model", "the model comes first"],
    ),
    "a whole text on one line": (
        ("prep", "line.txt", "--out", "new"),
        ["too few lines", "fold -s"],
    ),
    "text shorter than one window": (
        ("train", "tiny", "--data", "bytes", "--out", "new", "--set", "train.window=9999"),
        ["9999", "train.window"],
    ),
    "unknown key": ((*TRAIN, "--set", "model.hiden=3"), ["model.hiden", "'hidden'"]),
    "wrong type": ((*TRAIN, "--set", "model.hidden=big"), ["model.hidden", "integer"]),
    "impossible value": ((*TRAIN, "--set", "train.batch=-1"), ["train.batch", "greater than 0"]),
    "no such recipe": (("train", "tinny", "--data", "store", "--out", "new"), ["'tiny'"]),
    "no such configuration file": (
        ("train", "no.toml", "--data", "store", "--out", "new"),
        ["no.toml", "does not exist"],
    ),
    "not TOML": (("train", "broken.toml", "--data", "store", "--out", "new"), ["not valid TOML"]),
    "data that is no store": (
        ("train", "tiny", "--data", "occupied", "--out", "new"),
        ["occupied", "sglm prep"],
    ),
    "train into something else": (
        ("train", "tiny", "--data", "store", "--out", "occupied"),
        ["occupied", "thesis.tex", "--out"],
    ),
    "train another configuration into a run": (
        ("train", "tiny", "--data", "store", "--out", "run", *SMALL, "--seed", "5"),
        ["train.seed: 0 → 5"],
    ),
    "train another corpus into a run": (
        ("train", "tiny", "--data", "bytes", "--out", "run", *SMALL),
        ["another corpus"],
    ),
    "start a run anew where one is": ((*TRAIN[:-1], "run", *SMALL, "--no-resume"), ["holds a run"]),
    "half precision on a CPU": ((*TRAIN, "--device", "cpu", "--precision", "fp16"), ["fp32"]),
    "a device by another name": ((*TRAIN, "--device", "gpu"), ["--device", "did you mean 'cuda'?"]),
    "a device in capitals": ((*TRAIN, "--device", "CPU"), ["--device", "did you mean 'cpu'?"]),
    "an unknown device": ((*TRAIN, "--device", "quantum"), ["'quantum'", "auto, cpu, cuda"]),
    "a precision by another name": (
        (*TRAIN, "--precision", "float32"),
        ["--precision", "did you mean 'fp32'?"],
    ),
    "a split by another name": (("eval", "run", "--split", "dev"), ["did you mean 'valid'?"]),
    "an unknown split": (("eval", "run", "--split", "train"), ["--split", "test, valid"]),
    "an unknown context": (("eval", "run", "--context", "carry"), ["did you mean 'carried'?"]),
    "a seed that is no number": ((*TRAIN, "--seed", "one"), ["--seed", "'one' is not an integer"]),
    "a temperature that is no number": (
        ("generate", "run", "--temperature", "hot"),
        ["--temperature", "'hot' is not a number"],
    ),
    "no run": (("eval",), ["Missing argument 'RUN'", "sglm eval --help"]),
    "an unknown option": (("score", "run", "--nope"), ["--nope", "sglm score --help"]),
    "an unknown command": (("scroe", "run"), ["'scroe'", "sglm --help"]),
    "an option that needs a value": (("score", "run", "--out"), ["--out", "requires"]),
    "an option that is missing": (("rescore", "run", "good.txt"), ["--beam-size"]),
    "evaluate both": (("eval", "run", "--data", "store", "--text", "good.txt"), ["not both"]),
    "evaluate what is no run": (("eval", "occupied", "--data", "store"), ["occupied"]),
    "evaluate what is not there": (("eval", "nothing", "--data", "store"), ["nothing"]),
    "a store of another tokenizer": (
        ("eval", "run", "--data", "bytes", "--split", "test"),
        ["bytes", "another tokenizer"],
    ),
    "evaluate a missing text": (("eval", "run", "--text", "no.txt"), ["no.txt"]),
    "evaluate a text that is not UTF-8": (("eval", "run", "--text", "latin1.txt"), ["offset 13"]),
    "score a text that is not UTF-8": (("score", "run", "latin1.txt"), ["latin1.txt", "13"]),
    "score with what is no run": (("score", "occupied", "good.txt"), ["occupied"]),
    "a seed out of range": (
        ("generate", "run", "--prompt", "a", "--seed", "9" * 30),
        ["seed"],
    ),
    "generate with what is no run": (("generate", "nothing", "--prompt", "a"), ["nothing"]),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_named_with_its_cure_and_nothing_is_lost(workdir: Path, case: str) -> None:
    arguments, words = CASES[case]
    before = everything(workdir)
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 2, (result.stdout, result.stderr)
    lines = result.stderr.strip().splitlines()
    assert 1 <= len([line for line in lines if line.startswith("sglm: ")]) <= 2, result.stderr
    assert len(lines) <= 3, result.stderr
    for word in ("Traceback", "training on", "Value error", "valid integer"):
        assert word not in result.stderr
    for word in words:
        assert word in result.stderr
    assert everything(workdir) == before


def test_the_traceback_is_shown_when_asked_for_and_changes_nothing_else(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = CliRunner().invoke(app, ["eval", "nothing", "--data", "store"])
    monkeypatch.setenv("SGLM_DEBUG", "1")
    shown = CliRunner().invoke(app, ["eval", "nothing", "--data", "store"])
    assert shown.exit_code == plain.exit_code == 2
    assert shown.stderr.startswith("Traceback")
    assert shown.stderr.endswith(plain.stderr)


def test_a_share_may_be_given_in_per_cent(workdir: Path) -> None:
    for name, share in (("a", "20%"), ("b", "0.2")):
        arguments = ["prep", "good.txt", "--tokenizer", "byte", "--out", name, "--valid", share]
        result = CliRunner().invoke(app, [*arguments, "--test", "0"])
        assert result.exit_code == 0, result.stderr
    assert TokenStore.open(Path("a")).fingerprint == TokenStore.open(Path("b")).fingerprint


@pytest.mark.skipif(torch.cuda.is_available(), reason="here it would succeed")
@pytest.mark.parametrize(
    "arguments",
    [(*TRAIN, "--device", "cuda"), ("eval", "run", "--data", "store", "--device", "cuda")],
)
def test_cuda_that_is_absent_is_named(workdir: Path, arguments: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 2
    assert "cpu" in result.stderr
    assert "CUDA" in result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_in_prep_is_named_and_leaves_no_store(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_open = Path.open

    def open_full(self: Path, mode: str = "r", *args: object, **kwargs: object) -> object:
        target = Path("/dev/full") if self.name == "train.bin" and "w" in mode else self
        return plain_open(target, mode, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(store_module.Path, "open", open_full)
    result = CliRunner().invoke(app, ["prep", "good.txt", "--out", "new"])
    assert result.exit_code == 1
    assert "no space left on the device" in result.stderr
    assert not (workdir / "new").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_in_training_is_named_and_the_run_goes_on_afterwards(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", "tiny", "--data", "store", "--out", "new", *SMALL]
    command += ["--set", "train.checkpoint_every_steps=2"]
    plain_open, calls = builtins.open, []

    def open_full(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if str(path).endswith("state.safetensors") and "w" in mode:
            calls.append(path)
        # The checkpoint at step 4 meets a full disk; the one at step 2 is written.
        target = "/dev/full" if len(calls) == 2 else path
        return plain_open(target, mode, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", open_full)
        result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert "no space left on the device" in result.stderr
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 0
    assert "continuing at step 2" in again.stderr


def test_a_model_too_large_for_the_memory_is_named_and_leaves_nothing(workdir: Path) -> None:
    # 8·10¹² float32 weights: refused by the allocator at once, nowhere taken.
    command = ["train", "tiny", "--data", "store", "--out", "new", *SMALL]
    result = CliRunner().invoke(app, [*command, "--set", "model.hidden=1000000"])
    assert result.exit_code == 1
    assert "out of memory; use shorter lines or, for training, a lower" in result.stderr
    assert not (workdir / "new").exists()
    assert CliRunner().invoke(app, command).exit_code == 0
