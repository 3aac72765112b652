"""What is in scripts/ is the checkout's: it uses sglm, and sglm does not know of it."""

import ast
from collections.abc import Iterator
from pathlib import Path

from scripts import ROOT


def imported_packages(path: Path) -> Iterator[str]:
    """The first part of each absolute import."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0]


def test_sglm_imports_nothing_that_is_not_installed_with_it() -> None:
    """Where the tests run it could: the checkout is on the path."""
    sources = [path for folder in ("sglm", "cli") for path in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 50
    found = [path for path in sources if {"scripts", "tests"} & set(imported_packages(path))]
    assert found == []


def test_scripts_import_each_other_by_their_full_names() -> None:
    """A bare name would only be found if a folder in here were put on the path."""
    sources = list((ROOT / "scripts").rglob("*.py"))
    modules = {path.stem for path in sources} - {"__init__"}
    found = [path for path in sources if modules & set(imported_packages(path))]
    assert found == []
