"""The commands of the tutorial and the how-tos work as they are printed, on a small text and with
small settings: those in the blocks below `<!-- runs in the suite -->`."""

import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sglm.cli.main import app
from tests.conftest import make_text

DOCS = Path(__file__).resolve().parents[1] / "docs"
BLOCK = re.compile(r"^<!-- runs in the suite -->\n```\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# Later values of an option win, whatever the page gives before.
SMALL = (
    "--set model.hidden=8 --set model.layers=1 --set train.batch=2 --set schedule.unit=steps"
    " --set schedule.cycles=[3.0,3.0]"
)
# A comparison makes each run in a process of its own, which takes seconds to start: one is enough.
ADDED = {
    "train": SMALL,
    "compare": f"{SMALL} --variants bptt --seeds 0",
    "generate": "--tokens 2",
}


def commands(page: Path) -> list[str]:
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    return [line for block in blocks for line in block.splitlines()]


def run(line: str) -> None:
    """One `sglm …`, or `something | sglm …`, or `… > file`; in this process, which has loaded
    torch."""
    whole, _, written = line.partition(" > ")
    before, _, command = whole.rpartition(" | ")
    given = subprocess.run(["bash", "-c", before], capture_output=True, check=True).stdout
    program, name, *arguments = shlex.split(command)
    assert program == "sglm", line
    result = CliRunner().invoke(app, [name, *arguments, *ADDED.get(name, "").split()], input=given)
    assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"
    assert result.stdout, line
    if written:
        Path(written).write_text(result.stdout)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where a reader of the pages is, with the files that these speak of and the tutorial done."""
    folder, before = tmp_path_factory.mktemp("tutorial"), Path.cwd()
    text = make_text(600)
    for name, content in {
        "book.txt": text,
        "train.txt": text,
        "valid.txt": make_text(50, seed=1),
        "lines.txt": make_text(5, seed=2),
        "pairs.jsonl": json.dumps(
            {"sentence_good": "the cat sees the moon .", "sentence_bad": "the cat see the moon ."}
        )
        + "\n",
        "ids.txt": "".join(f"{n % 7 + 1} {n % 11 + 8} {n % 13 + 19}\n" for n in range(600)),
        "beams.tsv": make_text(8, seed=3).replace("\n", "\t-1.5\n"),
        "reviews.jsonl": "".join(
            json.dumps({"body": line}) + "\n" for line in text.splitlines()[:300]
        ),
    }.items():
        (folder / name).write_text(content, encoding="utf-8")
    os.chdir(folder)
    for line in commands(DOCS / "tutorial.md"):
        run(line)
    yield folder
    os.chdir(before)


def test_the_tutorial_leads_to_a_model_and_a_comparison(workplace: Path) -> None:
    assert (workplace / "runs/book/model/config.json").exists()
    assert (workplace / "runs/cmp/results.json").exists()


@pytest.mark.parametrize("page", sorted(page.stem for page in DOCS.glob("how-to/*.md")))
def test_the_commands_of_a_how_to_work(page: str, workplace: Path) -> None:
    for line in commands(DOCS / "how-to" / f"{page}.md"):
        run(line)
