"""How code is cut: files, functions and calls that a reader can take in.

Excepted where somebody else decides on a signature: torch calls an autograd function's `forward`
and `backward` by position and builds its modules so, a Triton kernel's parameters are its launch,
and `sglm/kenlm.py` has KenLM's signatures.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
LONGEST_FILE, LONGEST_FUNCTION, MOST_POSITIONAL = 350, 60, 3
Function = ast.FunctionDef | ast.AsyncFunctionDef


class Place(NamedTuple):
    """A function and the class that it is a method of."""

    function: Function
    owner: ast.ClassDef | None


def decorators(node: ast.ClassDef | Function) -> list[str]:
    return [ast.unparse(each) for each in node.decorator_list]


def bases(owner: ast.ClassDef | None) -> list[str]:
    return [] if owner is None else [ast.unparse(each) for each in owner.bases]


def places(tree: ast.AST, owner: ast.ClassDef | None = None) -> Iterator[Place]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function):
            yield Place(node, owner)
            yield from places(node)
        else:
            yield from places(node, node if isinstance(node, ast.ClassDef) else owner)


def positional(place: Place) -> list[str]:
    """Parameters that may be given by position, `self` aside."""
    arguments = place.function.args
    names = [each.arg for each in (*arguments.posonlyargs, *arguments.args)]
    bound = place.owner is not None and "staticmethod" not in decorators(place.function)
    return names[1:] if bound else names


def problems(name: str, text: str) -> Iterator[str]:
    """What is wrong with a file, one sentence each."""
    lines = text.count("\n")
    if lines > LONGEST_FILE:
        yield f"{name} has {lines} lines"
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            made = [each for each in decorators(node) if each.startswith("dataclass")]
            if made and not any("kw_only=True" in each for each in made):
                yield f"{name}:{node.lineno} {node.name} is a dataclass without kw_only"
    for place in places(tree):
        function, owner = place
        where = f"{name}:{function.lineno} {function.name}"
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        if length > LONGEST_FUNCTION:
            yield f"{where} has {length} lines"
        if "torch.autograd.Function" in bases(owner) or "triton.jit" in decorators(function):
            continue
        if name == "sglm/kenlm.py":
            continue
        is_constructor = function.name == "__init__"
        is_module = any(base.endswith(("Module", "Synthesizer")) for base in bases(owner))
        most = 1 if is_constructor and not is_module else MOST_POSITIONAL
        if len(positional(place)) > most:
            yield f"{where} takes {', '.join(positional(place))} by position"


def test_files_functions_and_calls_can_be_taken_in() -> None:
    files = [path for folder in ("sglm", "cli") for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 50
    found = [
        problem
        for path in files
        for problem in problems(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x = 1\n" * 351, "has 351 lines"),
        ("def f():\n" + "    x = 1\n" * 60, "f has 61 lines"),
        ("def f(a, b, c, d): ...", "takes a, b, c, d by position"),
        ("class C:\n    def __init__(self, a, b): ...", "takes a, b by position"),
        ("@dataclass(frozen=True)\nclass C:\n    a: int", "without kw_only"),
        ("def f(a, b, c, *, d): ...", None),
        ("class C:\n    def __init__(self, a, *, b): ...", None),
        ("class C(nn.Module):\n    def __init__(self, a, b, c): ...", None),
        (
            "class C(torch.autograd.Function):\n    @staticmethod\n    def forward(a,b,c,d): ...",
            None,
        ),
        ("@triton.jit\ndef f(a, b, c, d): ...", None),
        ("@dataclass(kw_only=True)\nclass C:\n    a: int", None),
        ("class C(NamedTuple):\n    a: int", None),
    ],
)
def test_the_check_sees_what_it_should(text: str, problem: str | None) -> None:
    found = list(problems("file.py", text))
    assert len(found) == (problem is not None)
    assert problem is None or problem in found[0]
