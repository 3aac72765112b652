"""Without the extra nothing starts."""

import sys
from pathlib import Path

import pytest

import sglm.analyze
from sglm.errors import InputError


def test_without_scikit_learn_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InputError, match=r'pip install "sglm\[analyze\]"'):
        sglm.analyze.representations([tmp_path], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
