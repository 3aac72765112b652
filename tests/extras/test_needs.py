"""A missing package is a skip in the ordinary suite and a failure in scripts/test-extras."""

import pytest

from tests.extras.conftest import INSTALL, needs


def test_a_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(INSTALL, "no_such_package", "pip install it")
    monkeypatch.delenv("SGLM_EXTRAS", raising=False)
    with pytest.raises(pytest.skip.Exception, match="needs no_such_package: pip install it"):
        needs("no_such_package")
    monkeypatch.setenv("SGLM_EXTRAS", "required")
    with pytest.raises(ModuleNotFoundError):
        needs("no_such_package")
