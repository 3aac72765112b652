"""What the documentation names is there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# `file.py: name` or `file.py: Class.method`, of a file below sglm/.
NAMED = re.compile(r"`([a-z_]+/[a-z_/]+\.py)(?:: ([A-Za-z_.]+))?`")


def definitions(path: Path) -> set[str]:
    """Names of a module's functions and classes, and `Class.member` of what is in these."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, ast.FunctionDef):
                    names.add(f"{node.name}.{member.name}")
                elif isinstance(member, ast.AnnAssign):
                    names.add(f"{node.name}.{ast.unparse(member.target)}")
    return names


@pytest.mark.parametrize("page", ["docs/algorithm.md"])
def test_files_and_functions_that_a_page_names_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = NAMED.findall(text)
    assert len(found) > 15
    for file, name in found:
        path = ROOT / file if file.startswith("tests/") else ROOT / "sglm" / file
        assert path.is_file(), f"{page} names {file}"
        if name:
            assert name in definitions(path), f"{page} names {file}: {name}"
