"""Text that comes with CPython: two corpora that need neither a network nor the user's files."""

import re
import sys
import sysconfig
import tokenize
from collections.abc import Callable, Iterator
from pathlib import Path

from sglm.errors import InputError, did_you_mean
from sglm.text.lines import Piece

_TEST_FOLDERS = {"test", "tests", "idle_test"}
# Tables rather than code.
_DATA = {"encodings", "pydoc_data", "html/entities.py", "stringprep.py"}
# Modules that some installations lack: distributions split them off, or newer versions dropped
# them.
_OPTIONAL = {
    "distutils",
    "ensurepip",
    "idlelib",
    "lib2to3",
    "msilib",
    "tkinter",
    "turtledemo",
    "venv",
}


def builtin_documents(source: str) -> Iterator[Piece]:
    """Returns the documents of `builtin:NAME`, in alphabetical order of their names.

    Raises:
        InputError: The name is unknown, or this Python comes without that text.
    """
    name = source.removeprefix("builtin:")
    if name not in _READERS:
        raise InputError(f"{source}: unknown builtin text{did_you_mean(name, _READERS)}")
    return _READERS[name](source)


def _topics(source: str) -> Iterator[Piece]:
    """Returns the reference topics of `help()`: English about Python, with examples.

    Topics repeat paragraphs of other topics. Each paragraph is kept once, in the first topic that
    has it: otherwise much of the held-out text would also be in the training text.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise InputError(f"{source}: this Python comes without pydoc_data") from error
    known: set[str] = set()
    texts = (_new_paragraphs(topics[topic], known) for topic in sorted(topics))
    return (Piece(text, True) for text in texts if text)


def _new_paragraphs(text: str, known: set[str]) -> str:
    """Returns the paragraphs of a text that are not in `known`, and adds them to it; "" if none is
    new."""
    new = []
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        words = " ".join(paragraph.split())  # ignores the indentation
        if words not in known:
            known.add(words)
            new.append(paragraph)
    return "\n\n".join(new) + "\n" if new else ""


def _standard_library(source: str) -> Iterator[Piece]:
    """Returns the standard library's modules, each as a document, without tests and tables.

    Modules that some installations lack are left out, so that the text depends only on the version
    of Python.
    """
    root = Path(sysconfig.get_path("stdlib"))
    paths = [path for path in root.rglob("*.py") if _is_code(path.relative_to(root))]
    if not paths:
        raise InputError(f"{source}: this Python comes without its modules' source text")
    return (Piece(text, True) for path in sorted(paths) if (text := _source_text(path)))


def _is_code(path: Path) -> bool:
    """Returns whether a path in the library's folder is a module that every installation has."""
    first = path.parts[0].removesuffix(".py")
    left_out = {first, path.as_posix()} & (_DATA | _OPTIONAL)
    return (
        first in sys.stdlib_module_names
        and not left_out
        and _TEST_FOLDERS.isdisjoint(path.parts[:-1])
    )


def _source_text(path: Path) -> str:
    with tokenize.open(path) as file:
        return file.read()


_READERS: dict[str, Callable[[str], Iterator[Piece]]] = {
    "python-docs": _topics,
    "python-code": _standard_library,
}
