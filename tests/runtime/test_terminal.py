"""A line that is written over on a terminal, and lines elsewhere."""

import io

import pytest

from sglm.runtime.terminal import OverwrittenLine


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("term", "stream", "expected"),
    [
        ("xterm", Terminal(), f"\r\x1b[2Kone\r\x1b[2K{'x' * 79}\r\x1b[2K"),
        ("dumb", Terminal(), f"one\n{'x' * 90}\n"),
        ("xterm", io.StringIO(), f"one\n{'x' * 90}\n"),
    ],
)
def test_what_is_shown(
    monkeypatch: pytest.MonkeyPatch, term: str, stream: io.StringIO, expected: str
) -> None:
    monkeypatch.setenv("TERM", term)
    line = OverwrittenLine(stream)
    line.show("one")
    line.show("x" * 90)
    line.clear()
    assert stream.getvalue() == expected


def test_a_closed_stream_ends_nothing() -> None:
    stream = io.StringIO()
    line = OverwrittenLine(stream)
    stream.close()
    line.show("one")
    line.clear()
