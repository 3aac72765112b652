"""What `sglm analyze` shows of any analysis while it is carried out."""

from pathlib import Path

import pytest

from sglm.cli.analyze import show
from sglm.errors import Stopped
from sglm.runtime import terminal
from tests.analyze.test_analysis import Adding


def test_a_stopped_analysis_leaves_no_progress_before_what_is_said_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal, "is_terminal", lambda _: True)
    with pytest.raises(Stopped, match="the same command continues"):
        show(lambda: Adding(fails_at=4.0), [tmp_path], None, as_json=False)
    last_line = capsys.readouterr().err.rpartition("\n")[2]
    assert "3/3  0:02 left  number-4" in last_line
    assert last_line.endswith("\r\x1b[2K")
