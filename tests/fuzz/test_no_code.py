"""No code from files, no network unless asked for: read off the sources, and watched at work."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import make_text

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path for room in ("sglm", "cli", "scripts") for path in (ROOT / room).rglob("*.py")]

# Modules that make objects or code of bytes, and modules that speak to the network.
FORBIDDEN_MODULES = {
    *("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml"),
    *("socket", "ssl", "http", "urllib", "requests", "httpx", "ftplib", "smtplib", "asyncio"),
    *("huggingface_hub", "fsspec", "xmlrpc", "code", "codeop", "runpy"),
}
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__"),
    *("torch.load", "torch.jit.load", "torch.export.load", "torch.package", "torch.hub.load"),
    *("os.system", "os.popen", "numpy.load", "np.load", "pd.read_pickle"),
}


def offences(source: str) -> Iterator[str]:
    """What a module does that none may do."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            names = []
        yield from (name for name in names if name.split(".")[0] in FORBIDDEN_MODULES)
        if isinstance(node, ast.Call):
            if (called := ast.unparse(node.func)) in FORBIDDEN_CALLS:
                yield called
            for keyword in node.keywords:
                switch = keyword.arg in ("trust_remote_code", "allow_pickle", "shell")
                if switch and ast.unparse(keyword.value) != "False":
                    yield f"{keyword.arg}={ast.unparse(keyword.value)}"


def test_no_source_makes_code_or_objects_of_bytes_or_speaks_to_the_network() -> None:
    assert len(SOURCES) > 50
    found = {
        str(path.relative_to(ROOT)): list(offences(path.read_text(encoding="utf-8")))
        for path in SOURCES
    }
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from urllib.request import urlopen",
        "def f():\n    import yaml.loader",
        "eval(text)",
        "torch.load(path, weights_only=True)",
        "load_dataset(name, trust_remote_code=True)",
        "load_dataset(name, trust_remote_code=trusted)",
        "subprocess.run(command, shell=True)",
    ],
)
def test_an_offence_would_be_seen(source: str) -> None:
    assert len(list(offences(source))) == 1


def test_the_library_for_data_sets_is_told_to_run_no_code() -> None:
    source = (ROOT / "sglm" / "text" / "records.py").read_text(encoding="utf-8")
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    [call] = [node for node in calls if ast.unparse(node.func) == "datasets.load_dataset"]
    assert "trust_remote_code=False" in [ast.unparse(keyword) for keyword in call.keywords]


# Loaded by every Python process that has its folder on PYTHONPATH, the children's too. An audit
# hook cannot be gone around from Python: whoever opens a socket or looks up a name raises the
# event, and whoever unpickles raises another.
WATCH = """
import os, sys
log = os.environ["SGLM_TEST_WATCH"]

def note(text):
    with open(log, "a") as file:
        file.write(text.replace("\\n", " ") + "\\n")

def hook(event, arguments):
    # A host's own name is no secret to itself: TensorBoard puts it into names of files.
    if event == "socket.gethostname":
        return
    if event.startswith("socket.") or event == "pickle.find_class":
        note(f"{event} {arguments}")
        raise RuntimeError(f"forbidden here: {event}")

sys.addaudithook(hook)
note("watched " + " ".join(sys.orig_argv[1:])[:80])
"""

DRIVER = """
import json, sys
from sglm.cli.main import app
for command in json.load(sys.stdin):
    app(command, standalone_mode=False)
    print("done", command[0], flush=True)
"""


def watched(folder: Path, *command: str, stdin: str = "") -> tuple[str, list[str]]:
    """Runs Python under the hook; returns what it printed and what was noted."""
    (folder / "watch").mkdir(exist_ok=True)
    (folder / "watch" / "sitecustomize.py").write_text(WATCH)
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder / "watch"),
        "SGLM_TEST_WATCH": str(folder / "log"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, *command],
        input=stdin,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, (folder / "log").read_text().splitlines()


def test_the_main_path_opens_no_socket_and_unpickles_nothing(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(make_text(300))
    (tmp_path / "records.jsonl").write_text('{"text": "the cat sees the moon ."}\n' * 20)
    small = [
        *("--set", "model.hidden=8", "--set", "schedule.unit=steps"),
        *("--set", "train.batch=4", "--set", "train.window=5", "--device", "cpu"),
    ]
    one_run = ["--variants", "bptt", "--seeds", "0"]
    cycles = ["--set", "schedule.cycles=[3, 3]"]
    commands = [
        ["prep", "text.txt", "records.jsonl", "--out", "store"],
        ["prep", "text.txt", "--tokenizer", "word", "--out", "words"],
        ["train", "tiny", "--data", "store", "--out", "run", *small, *cycles],
        ["eval", "run", "--data", "store", "--json"],
        ["eval", "run", "--text", "text.txt", "--context", "reset"],
        ["score", "run", "text.txt", "--json"],
        ["generate", "run", "--prompt", "the", "--tokens", "5"],
        ["compare", "tiny", "--data", "words", "--out", "out", *one_run, *small, *cycles],
    ]
    printed, noted = watched(tmp_path, "-c", DRIVER, stdin=json.dumps(commands))
    assert printed.count("done ") == len(commands)
    assert [line for line in noted if not line.startswith("watched")] == []
    assert len([line for line in noted if "sglm.compare.worker" in line]) == 1


def test_the_watch_sees_what_it_should(tmp_path: Path) -> None:
    code = """
import pickle, socket
for forbidden in (socket.socket, lambda: socket.getaddrinfo("localhost", 1),
                  lambda: socket.create_connection(("127.0.0.1", 1)),
                  lambda: pickle.loads(pickle.dumps(print))):
    try:
        forbidden()
    except RuntimeError:
        print("seen")
"""
    printed, noted = watched(tmp_path, "-c", code)
    assert printed.split() == ["seen"] * 4
    assert len(noted) == 5
