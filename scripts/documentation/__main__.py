"""Writes the generated parts of the documentation, or checks that they are up to date.

    python -m scripts.documentation            writes the tables in docs/ and docs/reference/
    python -m scripts.documentation --check    lists pages that differ, with exit code 1

Tables are made from committed numbers (docs/data/, docs/benchmarks/), the reference from the code.
"""

import argparse
import sys
from pathlib import Path

from scripts import ROOT
from scripts.documentation import benchmarks, experiments, gpu
from scripts.documentation.pages import Maker, filled
from scripts.documentation.reference import commands_page, configuration_page
from scripts.documentation.short_windows import table as short_windows_table
from sglm.errors import SglmError
from sglm.storage.durable import replace_text

MAKERS: dict[str, Maker] = {
    "short-windows": short_windows_table,
    **benchmarks.TABLES,
    **experiments.TABLES,
    **gpu.TABLES,
}


def generated(docs: Path) -> dict[Path, str]:
    """Returns every page that is generated or has a generated block, with the text it should have.

    Raises:
        InputError: A block cannot be made.
    """
    pages = {
        docs / "reference/commands.md": commands_page(),
        docs / "reference/configuration.md": configuration_page(),
    }
    for path in sorted(docs.rglob("*.md")):
        if path not in pages:
            pages[path] = filled(path.read_text(encoding="utf-8"), MAKERS, docs)
    return pages


def outdated(docs: Path) -> dict[Path, str]:
    """Returns those pages whose files do not exist or have another text."""
    return {
        path: page
        for path, page in generated(docs).items()
        if not path.exists() or path.read_text(encoding="utf-8") != page
    }


def main() -> int:
    """Returns the exit code: 1 if a check finds a difference, 2 if a block cannot be made."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.documentation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="Write nothing.")
    arguments = parser.parse_args()
    try:
        pages = outdated(ROOT / "docs")
    except SglmError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for path, page in pages.items():
        if not arguments.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(path, page)
        print(path.relative_to(ROOT))
    return 1 if arguments.check and pages else 0


if __name__ == "__main__":
    sys.exit(main())
