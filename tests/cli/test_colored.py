"""`sglm score --color`: what reaches the terminal is the text, and colours, and nothing else."""

import math
import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from sglm.cli.colored import EDGES, colored_text, spans
from sglm.cli.main import app
from tests.tiny_models import KINDS, OWN_KINDS, make_lm, save_lm

COLOR = re.compile(r"\x1b\[(?:38;5;\d+;48;5;\d+|0)m")
WELL_FORMED = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(deadline=None)  # the first example of a kind makes its model
@given(WELL_FORMED, st.sampled_from(KINDS))
@example("e\u0301 \x1b[2J\x07\r\t \u202eabc\u200b 日本 👩\u200d👧 \u0301", "byte")
@example("\u3000a\xa0b", "sentencepiece")
@example("  a  b ", "word")
def test_the_text_and_no_control_character_of_its_own(text: str, kind: str) -> None:
    score = make_lm(kind).score(text)
    shown = COLOR.sub("", colored_text(text, score))
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Zl", "Zp")]
    assert not set(shown) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200b")
    # Of text that moves nothing, every character is there as it was.
    harmless = "".join(c for c in text if c.isprintable())
    for bos in (True, False):
        painted = colored_text(harmless, make_lm(kind).score(harmless, bos=bos))
        assert COLOR.sub("", painted) == harmless


@settings(deadline=None)  # the first example of a kind makes its model
@given(WELL_FORMED, st.sampled_from(KINDS))
@example("  a  b ", "word")
@example("ae\u0301\u0301b", "byte")
def test_spans_cover_the_text_and_add_up(text: str, kind: str) -> None:
    score = make_lm(kind).score(text)
    found = spans(text, score)
    total = sum(span.bits for span in found)
    assert total == pytest.approx(-score.logprob / math.log(2), rel=1e-9, abs=1e-9)
    ends = [0, *(span.end for span in found)]
    assert all(span.start >= end for span, end in zip(found, ends, strict=False))
    if kind in OWN_KINDS:  # a given vocabulary may drop characters
        assert [span.start for span in found] == ends[:-1]
        assert text[ends[-1] :].strip() == ""
    for span in found[1:]:  # an accent stays with its letter
        assert unicodedata.category(text[span.start]) != "Mn"


def test_colours_rise_with_the_surprisal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    run, text = save_lm("word", tmp_path / "run"), "the cat zyx mat"
    command = ["score", str(run), "--color"]
    result = CliRunner().invoke(app, command, input=text.encode())
    legend, line = result.stdout.splitlines()
    backgrounds = re.findall(r"48;5;(\d+)m", legend)
    assert len(set(backgrounds)) == len(EDGES) + 1
    levels = [backgrounds.index(each) for each in re.findall(r"48;5;(\d+)m", line)]
    bits = [-each / math.log(2) for each in make_lm("word").score(text).token_logprobs]
    assert levels == [sum(each >= edge for edge in EDGES) for each in bits]
    assert line.endswith("\x1b[0m")
    monkeypatch.setenv("TERM", "dumb")
    dumb = CliRunner().invoke(app, command, input=text.encode()).stdout
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    plain = CliRunner().invoke(app, command, input=text.encode()).stdout
    assert plain == dumb
    assert "\x1b" not in plain
    digits = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
    shown = [int(each.translate(digits)) for each in re.findall("[₀-₉]+", plain)]
    assert shown == [round(each) for each in bits]


@pytest.mark.parametrize("other", ["--json", "--per-token"])
def test_one_form_at_a_time(tmp_path: Path, other: str) -> None:
    result = CliRunner().invoke(app, ["score", str(tmp_path), "--color", other])
    assert result.exit_code == 2
    assert "do not go together" in result.stderr
