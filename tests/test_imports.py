"""The order of the house: who may import whom, held for every import statement there is.

Imports inside functions and under TYPE_CHECKING count too: they are dependencies of thought.
"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# From the ground up. Rooms of one storey do not know each other; a room may import any lower one.
STOREYS: list[set[str]] = [
    {"errors"},
    {"storage", "runtime"},
    {"config", "configs"},
    {"kernels"},
    {"text", "model"},
    {"optim", "ngram"},
    {"dni"},
    {"scoring"},
    {"adapt"},
    {"lm"},
    {"loading"},
    {"kenlm", "mix", "snapshots"},
    {"pyctcdecode"},
    {"train"},
    {"compare", "analyze", "corpus_filter"},
    {"cli"},
]
STOREY = {room: height for height, rooms in enumerate(STOREYS) for room in rooms}


def find_modules(root: Path) -> dict[str, Path]:
    """Every module of a checkout under its installed name: `cli/` is `sglm.cli`."""
    modules = {}
    for folder, prefix in (("sglm", ()), ("cli", ("sglm",)), ("configs", ("sglm",))):
        for path in sorted((root / folder).rglob("*.py")):
            parts = [*prefix, *path.relative_to(root).with_suffix("").parts]
            modules[".".join(parts).removesuffix(".__init__")] = path
    return modules


def imported_names(name: str, path: Path) -> Iterator[str]:
    """Everything inside sglm that the module imports, as written: modules, and names in modules."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        found: list[str] = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base]).rstrip(".")
            found = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
            ("import_module", "__import__")
        ):
            found = [a.value for a in node.args if isinstance(a, ast.Constant)]
        yield from (target for target in found if target.split(".")[0] == "sglm")


def dependencies(root: Path) -> dict[str, set[str]]:
    """module → the modules of sglm that it imports; a name inside a module counts as the module."""
    modules = find_modules(root)
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        graph[name] = set()
        for target in imported_names(name, path):
            if target == "sglm.__version__":
                continue  # a constant, for everyone
            while target not in modules and "." in target:
                target = target.rpartition(".")[0]
            graph[name].add(target)
    return graph


def may_import(importer: str, imported: str) -> bool:
    """Between rooms. The package itself, `sglm`, is the front door: it shows what `lm` has."""
    if importer == "sglm":
        return True
    imported = "lm" if imported == "sglm" else imported
    return importer == imported or STOREY[imported] < STOREY[importer]


def room(module: str) -> str:
    """`sglm.text.store` → `text`; `sglm` itself → `sglm`."""
    return module.split(".")[1] if "." in module else module


def find_cycle(graph: dict[str, set[str]]) -> list[str] | None:
    """Some circle of imports, first module repeated at the end; None where there is none."""
    finished: set[str] = set()

    def walk(module: str, trail: list[str]) -> list[str] | None:
        if module in trail:
            return [*trail[trail.index(module) :], module]
        if module in finished:
            return None
        for target in sorted(graph[module] - {module}):
            if cycle := walk(target, [*trail, module]):
                return cycle
        finished.add(module)
        return None

    for module in sorted(graph):
        if cycle := walk(module, []):
            return cycle
    return None


def violations(root: Path) -> list[str]:
    """What breaks the order in this checkout, one sentence each."""
    graph = dependencies(root)
    strangers = [m for m in graph if room(m) != "sglm" and room(m) not in STOREY]
    if strangers:
        return [f"{module} is in no known room" for module in strangers]
    found = [
        f"{module} imports {target}"
        for module, targets in graph.items()
        for target in sorted(targets)
        if not may_import(room(module), room(target))
    ]
    cycle = find_cycle(graph)
    return [*found, f"circle: {' → '.join(cycle)}"] if cycle else found


def test_the_order_of_the_house() -> None:
    assert len(find_modules(ROOT)) > 10
    assert violations(ROOT) == []


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"sglm/model/net.py": "from sglm.errors import SglmError"}, []),
        ({"sglm/errors.py": "import sglm.model.state"}, ["sglm.errors imports sglm.model.state"]),
        ({"sglm/text/a.py": "from sglm import model"}, ["sglm.text.a imports sglm.model"]),
        ({"sglm/model/a.py": "from ..text import store"}, ["sglm.model.a imports sglm.text.store"]),
        (
            {"sglm/lm.py": "def f():\n    from sglm.train.loop import run"},
            ["sglm.lm imports sglm.train.loop"],
        ),
        (
            {
                "sglm/dni/a.py": "from typing import TYPE_CHECKING\n"
                "if TYPE_CHECKING:\n    from sglm.train import step"
            },
            ["sglm.dni.a imports sglm.train"],
        ),
        (
            {"sglm/train/loop.py": "import importlib\nimportlib.import_module('sglm.cli.main')"},
            ["sglm.train.loop imports sglm.cli.main"],
        ),
        ({"sglm/optim/a.py": "from sglm import load"}, ["sglm.optim.a imports sglm"]),
        ({"sglm/optim/a.py": "from sglm import __version__"}, []),
        ({"sglm/lm.py": "import sglm.scoring.batch"}, []),
        ({"sglm/scoring/batch.py": "import sglm.lm"}, ["sglm.scoring.batch imports sglm.lm"]),
        ({"sglm/utils.py": ""}, ["sglm.utils is in no known room"]),
        (
            {"sglm/text/a.py": "from . import b", "sglm/text/b.py": "from .a import x"},
            ["circle: sglm.text.a → sglm.text.b → sglm.text.a"],
        ),
    ],
)
def test_the_check_sees_what_it_should(
    tmp_path: Path, files: dict[str, str], expected: list[str]
) -> None:
    skeleton = [f"sglm/{room}/__init__.py" for room in ("text", "model", "dni", "optim", "train")]
    skeleton += [f"sglm/{name}.py" for name in ("__init__", "errors", "lm", "scoring/batch")]
    skeleton += ["sglm/model/state.py", "sglm/text/store.py", "sglm/train/loop.py", "cli/main.py"]
    for name, content in {**dict.fromkeys(skeleton, ""), **files}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    assert violations(tmp_path) == expected


# What importing a library must leave as it was. Torch and the packages underneath are there before,
# so that what they do is not held against sglm.
WATCH = """
import importlib.util, json, logging, os, random, signal, sys, warnings
import datasets, numpy, pydantic, safetensors.torch, sentencepiece, torch, typer
import torch.utils.tensorboard
if importlib.util.find_spec("triton"):
    import triton

def look():
    return {
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "threads": [torch.get_num_threads(), torch.get_num_interop_threads()],
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "cudnn": [torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic,
                  torch.backends.cudnn.enabled],
        "matmul precision": torch.get_float32_matmul_precision(),
        "torch's dice": torch.get_rng_state().sum().item(),
        "python's dice": hash(random.getstate()),
        "numpy's dice": hash(str(numpy.random.get_state())),
        "logging": [str(logging.getLogger().handlers), logging.getLogger().level],
        "datasets' bars": datasets.are_progress_bars_disabled(),
        "signals": [str(signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM)],
        "hooks": [str(sys.excepthook), str(sys.displayhook)],
        "warnings": len(warnings.filters),
        "environment": hash(str(sorted(os.environ.items()))),
        "folder": os.getcwd(),
    }

before = look()
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
after = look()
print(json.dumps({key: [before[key], after[key]] for key in before if before[key] != after[key]}))
"""


def test_importing_changes_nothing_but_the_module_table() -> None:
    names = [name for name in find_modules(ROOT) if not name.endswith("__main__")]
    if find_spec("triton") is None:  # it only exists for Linux
        names = [name for name in names if not name.endswith("_triton")]
    result = subprocess.run(
        [sys.executable, "-c", WATCH, json.dumps(names)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == {}
    assert result.stdout.count("\n") == 1, "an import printed something"
