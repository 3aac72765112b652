r"""Adds measurements to the numbers behind a table of short windows.

    python -m scripts.documentation.add words runs/words/frontier.json
    python -m scripts.documentation.add words runs/cmp/results.json --points fresh,noise \
        --title 'Penn Treebank, 10,000 words'

The file is `frontier.json` of scripts.experiments.frontier or `results.json` of `sglm compare`.
New points and seeds are added to docs/data/short-windows/NAME.json, which is made if it does not
exist. A known point and seed with another perplexity is an error, because one of them is outdated.
Then `python -m scripts.documentation` rewrites the tables.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from scripts import ROOT
from scripts.documentation.short_windows import FOLDER
from sglm.errors import InputError, SglmError
from sglm.storage.durable import replace_text

_SAME = 1e-9  # relative; JSON keeps every digit, so only another run differs by more


def measured(path: Path) -> dict[str, Any]:
    """Reads `title`, `perplexities` and `times` from either kind of file.

    Raises:
        InputError: The file is of neither kind.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if "variants" in values:
            perplexities = {
                variant: {
                    str(seed): ppl
                    for seed, ppl in zip(facts["seeds"], facts["token_ppl"], strict=True)
                }
                for variant, facts in values["variants"].items()
            }
            return {"title": "", "perplexities": perplexities, "times": {}}
        return {key: values[key] for key in ("title", "perplexities", "times")}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is neither frontier.json nor results.json of sglm compare: {error!r}"
        ) from None


def merged(old: dict[str, Any], new: dict[str, Any], points: set[str] | None) -> dict[str, Any]:
    """Adds some points of `new` (None: all) to `old`. Replaces times, but never perplexities.

    Raises:
        InputError: A point and seed has two perplexities.
    """
    perplexities = {point: dict(of_seed) for point, of_seed in old["perplexities"].items()}
    for point, of_seed in new["perplexities"].items():
        if points is not None and point not in points:
            continue
        own = perplexities.setdefault(point, {})
        for seed, ppl in of_seed.items():
            if not math.isclose(own.setdefault(seed, ppl), ppl, rel_tol=_SAME):
                raise InputError(
                    f"{point}, seed {seed}: {own[seed]:.4f} is known, and {ppl:.4f} is to be"
                    " added; if the known value is outdated, remove it from the file first"
                )
    times = {p: t for p, t in new["times"].items() if points is None or p in points}
    return {
        "title": new["title"] or old["title"],
        "perplexities": perplexities,
        "times": {**old["times"], **times},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.documentation.add",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", help="Name of the corpus's file, without .json.")
    parser.add_argument("measured", type=Path, nargs="+")
    parser.add_argument("--points", help="Only these points, separated by commas.")
    parser.add_argument("--title", help="The corpus in the table's first column.")
    arguments = parser.parse_args()
    path = ROOT / "docs" / FOLDER / f"{arguments.name}.json"
    corpus: dict[str, Any] = {"title": arguments.name, "perplexities": {}, "times": {}}
    points = set(arguments.points.split(",")) if arguments.points else None
    try:
        if path.exists():
            corpus = json.loads(path.read_text(encoding="utf-8"))
        for each in arguments.measured:
            # A title that the file already has is kept: it was written for the table.
            new = measured(each) | ({"title": ""} if path.exists() else {})
            corpus = merged(corpus, new, points)
    except (SglmError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))
    corpus["title"] = arguments.title or corpus["title"]
    replace_text(path, json.dumps(corpus, indent=1, ensure_ascii=False) + "\n")
    print(f"{path}: written; next: python -m scripts.documentation")


if __name__ == "__main__":
    main()
