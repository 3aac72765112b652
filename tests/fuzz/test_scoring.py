"""Score, evaluate, generate: any text gives numbers, or a refusal in words."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from sglm.cli.main import app
from sglm.errors import InputError
from tests.fuzz.examples import TEXTS, VALUES, examples
from tests.tiny_models import KINDS, make_lm

ModelFolders = Callable[[str], Path]
SURROGATES = st.text(st.characters(), max_size=20)


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


@given(kind=st.sampled_from(KINDS), text=st.one_of(TEXTS, SURROGATES), bos=st.booleans())
@examples(80)
def test_any_text_is_scored_and_its_pieces_add_up(kind: str, text: str, bos: bool) -> None:
    lm = make_lm(kind)
    try:
        score = lm.score(text, bos=bos)
    except InputError as error:
        assert "half a surrogate pair" in str(error)
        return
    assert math.isfinite(score.logprob)
    assert score.logprob <= 0
    assert score.n_bytes == len(text.encode())
    assert len(score.tokens) == len(score.token_logprobs) == len(score.unk)
    if not bos:
        return
    half = len(text) // 2
    first, state = lm.extend(lm.start(), text[:half])
    second, _ = lm.extend(state, text[half:])
    # Float32 sums of up to a few hundred tokens.
    assert first.logprob + second.logprob == pytest.approx(score.logprob, rel=1e-4, abs=1e-4)
    assert first.n_tokens + second.n_tokens == score.n_tokens


@given(kind=st.sampled_from(KINDS), prompt=st.one_of(TEXTS, SURROGATES))
@examples(40)
def test_any_prompt_is_continued(kind: str, prompt: str) -> None:
    try:
        assert make_lm(kind).generate(prompt, tokens=3, seed=0).startswith(prompt)
    except InputError as error:
        assert "half a surrogate pair" in str(error)


NUMBERS = st.one_of(st.floats(), st.sampled_from([0.0, 1e-320, 5e-324, 1e308, -0.0]))


@given(
    temperature=NUMBERS,
    top_p=st.one_of(st.none(), NUMBERS),
    seed=st.one_of(st.none(), st.integers()),
    tokens=st.integers(max_value=3),
)
@examples(100)
def test_any_numbers_generate_or_are_refused(
    temperature: float, top_p: float | None, seed: int | None, tokens: int
) -> None:
    try:
        make_lm("word").generate(
            "the", tokens=tokens, temperature=temperature, top_p=top_p, seed=seed
        )
    except InputError as error:
        assert len(str(error)) < 500


@given(value=st.one_of(VALUES, st.binary(), st.lists(VALUES)))
@examples(60)
def test_what_is_no_text_is_refused_by_its_type(value: Any) -> None:
    lm = make_lm("char")
    for ask in (lm.score, lm.perplexity):
        try:
            ask(value)
        except InputError as error:
            assert len(str(error)) < 1000


@given(raw=st.one_of(TEXTS.map(str.encode), st.binary(max_size=60)))
@examples(60)
def test_the_command_prints_one_object_for_each_line_of_any_input(
    model_folders: ModelFolders, raw: bytes
) -> None:
    folder = str(model_folders("char"))
    result = CliRunner().invoke(app, ["score", folder, "-", "--json"], input=raw)
    assert result.exit_code in (0, 2), result.stderr
    assert "Traceback" not in result.stderr
    if result.exit_code == 2:
        assert result.stderr.startswith("sglm: stdin: ")
        return
    assert result.exception is None
    lines = raw.decode().removeprefix("\ufeff").split("\n")
    texts = [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]
    found = [json.loads(line, parse_constant=no_constant) for line in result.stdout.splitlines()]
    assert [line["text"] for line in found] == texts


@given(raw=st.one_of(TEXTS.map(str.encode), st.binary(max_size=60)), reset=st.booleans())
@examples(60)
def test_the_command_evaluates_any_text_or_refuses_it(
    model_folders: ModelFolders, raw: bytes, reset: bool
) -> None:
    context = "reset" if reset else "carried"
    command = ["eval", str(model_folders("word")), "--text", "-", "--json", "--context", context]
    result = CliRunner().invoke(app, command, input=raw)
    assert result.exit_code in (0, 2), result.stderr
    if result.exit_code == 2:
        assert result.stderr.startswith("sglm: ")
        return
    found = json.loads(result.stdout, parse_constant=no_constant)
    assert found["bytes"] == len(raw.decode().removeprefix("\ufeff").encode())


def test_a_line_too_long_for_one_text_is_refused_and_the_lines_before_it_are_not(
    model_folders: ModelFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sglm.cli.lines.LONGEST_LINE_BYTES", 1 << 20)
    monkeypatch.setattr("sglm.cli.lines.BATCH_LINES", 1)
    raw = b"one\n" + b"x" * (3 << 20)
    command = ["score", str(model_folders("word")), "-", "--json"]
    result = CliRunner().invoke(app, command, input=raw)
    assert result.exit_code == 2
    assert "stdin, line 2: longer than 1 MiB" in result.stderr
    assert json.loads(result.stdout)["text"] == "one"


def test_a_closed_stdin_is_told(
    model_folders: ModelFolders, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sglm.text.lines as lines

    class NoStdin:
        stdin = None

    monkeypatch.setattr(lines, "sys", NoStdin)
    with pytest.raises(InputError, match="stdin is closed"):
        list(lines.read_text_lines("-"))
