"""Progress fits the terminal, and 80 columns where there is none."""

import fcntl
import io
import os
import struct
import termios

import pytest

from sglm.train.log.console import ConsoleLog

FACTS = ("loss 12.345", "cycle 11 synthetic", "123,456 tokens/s", "rate 4.00e-03")
LONG_RUN = 9_999_999


@pytest.fixture(autouse=True)
def _a_terminal_that_moves_its_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")


def shown_on_a_terminal(columns: int) -> str:
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with open(theirs, "w", encoding="utf-8") as stream:
        log = ConsoleLog(stream, total_steps=LONG_RUN, first_step=0)
        log.started -= 360_000.0  # a hundred hours ago
        log.progress(1_234_567, *FACTS)
        raw = os.read(ours, 1 << 16).decode()
    os.close(ours)
    return raw.removeprefix("\r\x1b[2K")


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
def test_on_a_terminal_the_time_left_comes_first_and_no_fact_is_cut(columns: int) -> None:
    shown = shown_on_a_terminal(columns)
    facts = shown.split("  ")
    assert len(shown) < columns
    assert facts[0].endswith(" left")
    everything = ["█░░░░░░░░░", "step 1,234,567/9,999,999", *FACTS]
    assert facts[1:] == everything[: len(facts) - 1]
    assert len(facts) == {20: 1, 40: 2, 80: 4, 200: 7}[columns]


def test_plain_lines_name_their_step_and_fit_80_columns() -> None:
    stream = io.StringIO()
    log = ConsoleLog(stream, total_steps=LONG_RUN, first_step=0)
    log.started -= 360_000.0
    log.progress(1_234_567, *FACTS)
    line = stream.getvalue().removesuffix("\n")
    assert line.startswith("step 1,234,567/9,999,999  ")
    assert line.split("  ")[1].endswith(" left")
    assert len(line) <= 80


def test_a_terminal_that_does_not_tell_its_width_has_80_columns() -> None:
    """A notebook's, say."""
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    ConsoleLog(stream, total_steps=100, first_step=0).progress(10, *(["a fact"] * 30))
    (line,) = stream.getvalue().split("\x1b[2K")[1:]
    assert 70 < len(line) < 80


def test_a_terminal_that_cannot_move_its_cursor_gets_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert "█" in shown_on_a_terminal(80)
    monkeypatch.setenv("TERM", "dumb")
    shown = shown_on_a_terminal(80)
    assert "\x1b" not in shown
    assert shown.startswith("step 1,234,567/9,999,999  ")
