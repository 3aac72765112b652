"""`sglm eval`, `score` and `generate` as a user meets them."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

import sglm
from sglm.cli.main import app
from sglm.model.folder import save_model
from sglm.text.overlap import LineHasher
from sglm.text.store import TokenStore
from tests.tiny_models import LINES, make_network, make_store, save_lm

EVAL_KEYS = [
    *("model", "split", "tokens", "words", "bytes", "nll_nats", "token_ppl", "word_ppl"),
    *("bits_per_byte", "context", "adapt", "seconds", "lines", "lines_in_training"),
]
SCORE_KEYS = ["text", "logprob", "n_tokens", "n_words", "n_bytes", "ppl", "bits_per_byte"]
TOKEN_KEYS = ["tokens", "token_logprobs", "unk"]


def sglm_command(*arguments: object, stdin: bytes | None = None) -> Result:
    """The command, without a process of its own."""
    return CliRunner().invoke(app, [str(a) for a in arguments], input=stdin)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`store`, made of a text and `test.txt`, and `run` with a model for it."""
    folder = tmp_path_factory.mktemp("eval-score")
    (folder / "test.txt").write_text("\n".join(LINES) + "\n", encoding="utf-8")
    store = make_store(folder, "sentencepiece", folder / "test.txt")
    tokenizer = store.tokenizer()
    model = folder / "run" / "model"
    save_model(make_network(tokenizer.vocab_size), model, tokenizer.fingerprint)
    tokenizer.save(model)
    return folder


class TestEval:
    def test_the_store_the_file_stdin_and_python_agree(self, folder: Path) -> None:
        text = folder / "test.txt"
        shown = [
            sglm_command("eval", folder / "run", "--data", folder / "store", "--json"),
            sglm_command("eval", folder / "run", "--text", text, "--json"),
            sglm_command(
                "eval", folder / "run" / "model", "--text", "-", "--json", stdin=text.read_bytes()
            ),
        ]
        found = []
        for result in shown:
            assert result.exit_code == 0, result.output
            assert result.stdout.count("\n") == 1
            found.append(json.loads(result.stdout))
            assert list(found[-1]) == EVAL_KEYS
        with text.open(encoding="utf-8") as file:
            found.append(sglm.load(folder / "run").perplexity(file).to_json())
        for other in found[1:]:
            assert other["nll_nats"] == pytest.approx(found[0]["nll_nats"], rel=1e-6)
            for key in ("tokens", "words", "bytes", "context", "adapt"):
                assert other[key] == found[0][key]
        first = found[0]
        assert (first["context"], first["adapt"]) == ("carried", "none")
        assert [one["split"] for one in found] == ["test", str(text), "-", str(text)]
        assert first["token_ppl"] == pytest.approx(math.exp(first["nll_nats"] / first["tokens"]))
        assert first["word_ppl"] == pytest.approx(math.exp(first["nll_nats"] / first["words"]))
        assert first["bits_per_byte"] == pytest.approx(
            first["nll_nats"] / first["bytes"] / math.log(2)
        )

    def test_a_field_of_another_name(self, folder: Path) -> None:
        (folder / "named.jsonl").write_text('{"a": {"b": "the cat sat"}}\n' * 3)
        (folder / "plain.jsonl").write_text('{"text": "the cat sat"}\n' * 3)
        found = [
            json.loads(sglm_command("eval", folder / "run", *how, "--json").stdout)["nll_nats"]
            for how in (
                ("--text", folder / "named.jsonl", "--text-field", "a.b"),
                ("--text", folder / "plain.jsonl"),
            )
        ]
        lm = sglm.load(folder / "run")
        assert found[0] == found[1]
        assert lm.perplexity(folder / "named.jsonl", text_field="a.b").nll_nats == found[0]

    def test_the_splits(self, folder: Path) -> None:
        store = TokenStore.open(folder / "store")
        for chosen in ("valid", "test"):
            result = sglm_command(
                *("eval", folder / "run", "--data", folder / "store", "--split", chosen, "--json")
            )
            found = json.loads(result.stdout)
            assert (found["split"], found["tokens"]) == (chosen, store.counts(chosen).tokens)

    def test_reset_takes_lines_one_by_one(self, folder: Path) -> None:
        result = sglm_command(
            *("eval", folder / "run", "--text", folder / "test.txt"),
            *("--context", "reset", "--json"),
        )
        found = json.loads(result.stdout)
        lm = sglm.load(folder / "run")
        alone = lm.score([line + "\n" for line in LINES])
        assert found["context"] == "reset"
        assert found["nll_nats"] == pytest.approx(-sum(s.logprob for s in alone), rel=1e-6)

    def test_the_human_form_says_the_same(self, folder: Path) -> None:
        arguments = ("eval", folder / "run", "--text", folder / "test.txt")
        result = sglm_command(*arguments)
        assert result.exit_code == 0
        found = json.loads(sglm_command(*arguments, "--json").stdout)
        assert f"{found['token_ppl']:,.2f}" in result.stdout
        assert f"{found['bits_per_byte']:.4f}" in result.stdout

    def test_lines_that_were_trained_on_are_told(self, folder: Path) -> None:
        run = folder / "known"
        shutil.copytree(folder / "run", run)
        known, short, new = "the cat sat on the mat", "the cat", "a dog saw a cat and ran off"
        text = "\n".join([known, short, new, new, known]).encode()
        arguments = ("eval", run, "--text", "-")
        result = sglm_command(*arguments, "--json", stdin=text)
        found = json.loads(result.stdout)
        assert (found["lines"], found["lines_in_training"]) == (4, None)
        assert "unknown" in sglm_command(*arguments, stdin=text).stdout

        hasher = LineHasher()
        hasher.add(known + "\n" + short)
        hasher.finish().write(run / "train.lines")
        (run / "run.json").write_text("{}")
        result = sglm_command(*arguments, "--json", stdin=text)
        found = json.loads(result.stdout)
        assert (found["lines"], found["lines_in_training"]) == (4, 2)
        assert result.stderr.startswith("warning: 2 of 4 lines (50 %) also occur in the training")
        assert "2 of 4" in sglm_command(*arguments, stdin=text).stdout
        # Nothing is said where there is nothing to say.
        assert sglm_command(*arguments, stdin=new.encode()).stderr == ""
        (run / "train.lines").write_bytes(b"damaged")
        result = sglm_command(*arguments, stdin=text)
        assert (result.exit_code, len(result.stderr.splitlines())) == (2, 1)

    def test_unknown_words_leave_no_bits(self, tmp_path: Path) -> None:
        run = save_lm("word", tmp_path / "model")
        arguments = ("eval", run, "--text", "-")
        result = sglm_command(*arguments, "--json", stdin=b"zyx the cat\n")
        assert json.loads(result.stdout)["bits_per_byte"] is None
        assert "1 <unk>" in sglm_command(*arguments, stdin=b"zyx the cat\n").stdout


class TestScore:
    TEXT = "the cat\n\nthe cat\r\n  two — ünd 🙂\nlast"
    TEXTS = ("the cat", "", "the cat", "  two — ünd 🙂", "last")

    def score(self, folder: Path, *options: str) -> list[dict[str, object]]:
        result = sglm_command("score", folder / "run", "--json", *options, stdin=self.TEXT.encode())
        assert result.exit_code == 0, result.output
        return [json.loads(line) for line in result.stdout.splitlines()]

    def test_a_line_each_in_order(self, folder: Path) -> None:
        lines = self.score(folder)
        assert [line["text"] for line in lines] == list(self.TEXTS)
        lm = sglm.load(folder / "run")
        for line, expected in zip(lines, lm.score(list(self.TEXTS)), strict=True):
            assert list(line) == SCORE_KEYS
            assert line["logprob"] == pytest.approx(expected.logprob, rel=1e-5)
            assert line["n_tokens"] == expected.n_tokens
            assert (line["n_words"], line["n_bytes"]) == (expected.n_words, expected.n_bytes)
        assert lines[1]["ppl"] is None
        assert lines[1]["logprob"] == 0
        assert lines[0] == lines[2], "a CRLF is no part of the text"

    def test_per_token(self, folder: Path) -> None:
        for line in self.score(folder, "--per-token"):
            assert list(line) == SCORE_KEYS + TOKEN_KEYS
            assert sum(line["token_logprobs"]) == pytest.approx(line["logprob"])
            assert len(line["tokens"]) == len(line["unk"]) == line["n_tokens"]

    def test_bos_and_eos(self, folder: Path) -> None:
        lm = sglm.load(folder / "run")
        for options, bos, eos in (
            (["--no-bos"], False, False),
            (["--eos"], True, True),
            (["--bos", "--no-eos"], True, False),
        ):
            lines = self.score(folder, *options)
            for text, line in zip(self.TEXTS, lines, strict=True):
                expected = lm.score(text, bos=bos, eos=eos)
                assert line["n_tokens"] == expected.n_tokens
                assert line["logprob"] == pytest.approx(expected.logprob, rel=1e-5)

    def test_more_lines_than_one_batch(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sglm.cli.lines.BATCH_LINES", 3)
        texts = [f"{n} {LINES[n % len(LINES)]}" for n in range(20)]
        (tmp_path / "many.txt").write_text("\n".join(texts), encoding="utf-8")
        result = sglm_command("score", folder / "run", tmp_path / "many.txt", "--json")
        found = [json.loads(line) for line in result.stdout.splitlines()]
        assert [line["text"] for line in found] == texts
        for line, expected in zip(found, sglm.load(folder / "run").score(texts), strict=True):
            assert line["logprob"] == pytest.approx(expected.logprob, rel=1e-5)

    def test_the_human_form_is_a_table(self, folder: Path) -> None:
        result = sglm_command("score", folder / "run", stdin=self.TEXT.encode())
        header, *rows = result.stdout.splitlines()
        assert header.split() == ["logprob", "ppl", "bits/byte", "text"]
        assert [row[header.index("text") :] for row in rows] == list(self.TEXTS)
        detailed = sglm_command("score", folder / "run", "--per-token", stdin=b"the cat\n")
        assert len(detailed.stdout.splitlines()) > 2
        assert "| the" in detailed.stdout

    def test_stdout_without_unicode(self, folder: Path) -> None:
        """Where the terminal speaks ASCII, characters are escaped instead of ending the command."""
        result = subprocess.run(
            [sys.executable, "-m", "sglm.cli.main", "score", str(folder / "run")],
            input="ünd".encode(),
            capture_output=True,
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
            check=True,
        )
        assert b"\\xfcnd" in result.stdout


class TestGenerate:
    def test_reproducible(self, folder: Path) -> None:
        arguments = ("generate", folder / "run", "--prompt", "the cat", "--tokens", 8)
        first = sglm_command(*arguments, "--seed", 1, "--temperature", 0.9, "--top-p", 0.9)
        again = sglm_command(*arguments, "--seed", 1, "--temperature", 0.9, "--top-p", 0.9)
        assert first.exit_code == 0, first.output
        assert first.stdout == again.stdout
        lm = sglm.load(folder / "run")
        expected = lm.generate("the cat", tokens=8, seed=1, temperature=0.9, top_p=0.9)
        assert first.stdout == expected + "\n"

    def test_json(self, folder: Path) -> None:
        result = sglm_command("generate", folder / "run", "--seed", 1, "--json")
        found = json.loads(result.stdout)
        assert found["text"] == sglm.load(folder / "run").generate(seed=1)


def wrong_uses(folder: Path) -> dict[str, tuple[list[object], str]]:
    """What a user may get wrong, and a piece of what is said about it."""
    run, store, text = folder / "run", folder / "store", folder / "test.txt"
    bad, empty = folder / "bad.txt", folder / "empty.txt"
    bad.write_bytes(b"fine\nb\xffd\n")
    empty.touch()
    (folder / "a.docx").write_bytes(b"PK\x03\x04" + bytes(range(256)))
    (folder / "a.jsonl").write_text('{"content": "the cat"}\n')
    other = save_lm("byte", folder / "other")
    return {
        "nothing to evaluate": (["eval", run], "--data DIR"),
        "both": (["eval", run, "--data", store, "--text", text], "not both"),
        "a split of a file": (["eval", run, "--text", text, "--split", "test"], "--split chooses"),
        "no run": (["eval", folder / "runn", "--text", text], "did you mean 'run'"),
        "not a run": (["score", store], "give the run that was trained on it"),
        "no store": (["eval", run, "--data", folder / "nowhere"], "nowhere"),
        "not a store": (["eval", run, "--data", run], "run"),
        "another tokenizer": (["eval", other, "--data", store], "another tokenizer"),
        "no file": (["score", run, folder / "nowhere.txt"], "no such file"),
        "a text for a file": (
            ["score", run, "it's a text"],
            "echo 'it'\"'\"'s a text' | sglm score",
        ),
        "a prompt that is no option": (["generate", run, "The", "cat"], "--prompt 'The cat'"),
        "an office document": (["eval", run, "--text", folder / "a.docx"], "save it as plain text"),
        "another field": (["eval", run, "--text", folder / "a.jsonl"], "--text-field"),
        "a file as a store": (["eval", run, "--data", text], f"sglm prep {text} --out {folder}/"),
        "a folder": (["score", run, folder], "a folder"),
        "not UTF-8": (["score", run, bad], "byte offset 6"),
        "not UTF-8 in eval": (["eval", run, "--text", bad], "byte offset 6"),
        "empty": (["eval", run, "--text", empty], "empty"),
        "temperature": (["generate", run, "--temperature", "-1"], "temperature"),
        "top-p": (["generate", run, "--top-p", "2"], "top-p"),
        "tokens": (["generate", run, "--tokens", "-5"], "number of tokens"),
        "surrogates": (["generate", run, "--prompt", "\udc80"], "surrogate"),
        "cuda": (["score", run, "--device", "cuda"], "--device cpu"),
    }


def test_wrong_uses_end_in_a_line_and_exit_code_2(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for what, (arguments, said) in wrong_uses(folder).items():
        result = sglm_command(*arguments)
        assert result.exit_code == 2, (what, result.output)
        assert said in result.stderr, (what, result.stderr)
        assert "Traceback" not in result.stderr, what
        assert len(result.stderr.splitlines()) <= 2, (what, result.stderr)
        assert result.stdout == "", what


def test_damaged_models_are_named(folder: Path, tmp_path: Path) -> None:
    run = save_lm("byte", tmp_path / "model")
    (run / "model.safetensors").write_bytes(b"short")
    result = sglm_command("score", run, "--json", stdin=b"the cat\n")
    assert result.exit_code == 2
    assert "model.safetensors is cut off or damaged" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_it_at_once(folder: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "sglm.cli.main", "score", str(folder / "run"), "--json"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    with process.stdin, process.stdout, process.stderr:
        time.sleep(1)  # it waits for text, or is still starting: both must end
        process.send_signal(number)
        assert process.wait(timeout=120) in (128 + number, -number)
        assert process.stdout.read() == b""


@pytest.mark.parametrize("command", ["score", "eval", "generate", "compare"])
def test_an_interrupt_while_torch_is_imported_raises_nothing(command: str, tmp_path: Path) -> None:
    """An exception would come out in its C++, which aborts."""
    interrupted = "import os, signal; os.kill(os.getpid(), signal.SIGINT)"
    (tmp_path / "torch.py").write_text(interrupted, encoding="utf-8")
    arguments = {"compare": ["tiny", "--data", "no", "--out", "no"]}.get(command, ["no"])
    done = subprocess.run(
        [sys.executable, "-m", "sglm.cli.main", command, *arguments],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, b"sglm: interrupted\n")


def test_a_reader_that_has_enough_is_no_error(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "many.txt").write_text("the cat\n" * 5000)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "sglm.cli.main"),
            *("score", str(folder / "run"), str(tmp_path / "many.txt"), "--json"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process.stdout, process.stderr:
        json.loads(process.stdout.readline())
        process.stdout.close()
        assert process.wait(timeout=120) == 0
        assert process.stderr.read() == b""
