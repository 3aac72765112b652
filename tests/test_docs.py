"""What the documentation names is there: functions, files, pages, headings."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
# `file.py: name` or `file.py: Class.method`, of a file below sglm/.
NAMED = re.compile(r"`([a-z_]+/[a-z_/]+\.py)(?:: ([A-Za-z_.]+))?`")
LINK = re.compile(r"\]\(([^()\s]+)\)")
CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.DOTALL | re.MULTILINE)
# What other files than pages call them.
DOCUMENT = re.compile(r"\bdocs/[\w/-]+\.(?:md|png)")


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


def anchors(page: str) -> set[str]:
    """Of its headings, as GitHub makes them: small letters, no punctuation, hyphens for spaces."""
    fenced = re.sub(r"^```.*?^```$", "", page, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", fenced, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> Iterator[str]:
    """Relative links to what is not there, or to a heading that is not."""
    for target in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        if not path.exists() or (
            anchor and anchor not in anchors(path.read_text(encoding="utf-8"))
        ):
            yield target


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_lead_somewhere(page: Path) -> None:
    assert list(broken_links(page)) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# One, two: 3 × 4\n```\n# no heading\n```\n")
    page = tmp_path / "b.md"
    page.write_text(
        "[x](a.md) [x](a.md#one-two-3--4) [x](https://a.b/c) `[x](code.md)`"
        " [x](c.md) [x](a.md#no-heading) [x](#nor-here)\n"
    )
    assert list(broken_links(page)) == ["c.md", "a.md#no-heading", "#nor-here"]


def test_documents_that_code_and_recipes_name_exist() -> None:
    files = [ROOT / "Makefile", ROOT / "pyproject.toml", *ROOT.glob("scripts/*")]
    for folder in ("sglm", "cli", "configs", "scripts", "tests"):
        files += [path for path in (ROOT / folder).rglob("*.*") if path.suffix in {".py", ".toml"}]
    missing = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in files
        if path.is_file() and path != Path(__file__)
        for name in DOCUMENT.findall(path.read_text(encoding="utf-8"))
        if not (ROOT / name).exists()
    ]
    assert missing == []


def test_the_index_leads_to_every_page() -> None:
    seen, ahead = set(), [DOCS / "README.md"]
    while ahead:
        page = ahead.pop()
        if page in seen or page.suffix != ".md" or not page.is_file():
            continue
        seen.add(page)
        links = LINK.findall(CODE.sub("", page.read_text(encoding="utf-8")))
        # The index of a folder leads on; what other pages happen to mention is no way in.
        if page.name == "README.md":
            ahead += [(page.parent / link.partition("#")[0]).resolve() for link in links]
    assert sorted(set(DOCS.rglob("*.md")) - seen) == []


def test_results_can_be_read_at_one_sitting() -> None:
    assert len((DOCS / "results.md").read_text(encoding="utf-8").splitlines()) <= 150
