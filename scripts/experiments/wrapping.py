r"""Is a gain due to the text, or to its layout? One book wrapped, joined and folded.

    python -m scripts.experiments.wrapping war_and_peace.txt --out runs/wrapping --seeds 0,1

Where lines are wrapped at a width and line breaks are tokens, a model that counts columns can
predict the breaks, and counting needs more context than a short window has. So the same text is
compared in three forms: as it is, with the lines of its paragraphs joined, and wrapped anew. Each
difference from plain truncation on the validation text is split by the chain rule,
−log p(y) = −log p(break or not) − log p(y | break or not). Interrupted runs are continued.
"""

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from sglm.compare import comparison
from sglm.compare.grid import Grid
from sglm.compare.process import Execution
from sglm.config import load_config
from sglm.errors import InputError, SglmError
from sglm.loading import load
from sglm.optim.precision import unchecked_precision
from sglm.scoring.predictor import Predictor
from sglm.scoring.stream import CHUNK_STEPS
from sglm.storage.durable import replace_text
from sglm.text.prepare import StoreSettings, prepare
from sglm.text.store import TokenStore

VARIANTS = ("bptt", "dni", "bptt-long")
FOLDED_AT = 70  # columns


class Parts(NamedTuple):
    """Mean nats per token of a text, for whether a line break comes, and which token given that."""

    break_or_not: float
    which_token: float


def joined(text: str) -> str:
    """Returns the text with the lines of each paragraph joined; blank lines stay."""
    return re.sub(r"(?<=\S)\n(?=\S)", " ", text)


def folded(text: str) -> str:
    """Returns the joined text with every line wrapped at `FOLDED_AT` columns."""
    lines = joined(text).split("\n")
    return "\n".join(
        textwrap.fill(line, FOLDED_AT, break_long_words=False, break_on_hyphens=False)
        for line in lines
    )


FORMS: dict[str, Callable[[str], str]] = {"as it is": str, "joined": joined, "folded": folded}


def parts_of(predictor: Predictor[Any], store: TokenStore) -> Parts:
    """Splits the loss on the validation text.

    Raises:
        InputError: No token of the vocabulary contains a line break.
    """
    tokenizer, ids_N = store.tokenizer(), store.ids("valid")
    is_break_V = np.array(
        ["\n" in tokenizer.decode([number]) for number in range(tokenizer.vocab_size)]
    )
    if not is_break_V.any():
        raise InputError(f"{store.folder}: no token of its vocabulary contains a line break")
    nats = np.zeros(2)
    for targets_M, logprobs_MV in _predictions(predictor, ids_N, tokenizer.eos_id):
        break_M1 = torch.from_numpy(is_break_V)[targets_M][:, None]
        # Where the target is a break, sums over all breaks; elsewhere over all other tokens.
        kind_MV = torch.from_numpy(is_break_V) == break_M1
        of_kind_M = logprobs_MV.masked_fill(~kind_MV, -torch.inf).logsumexp(1)
        of_token_M = logprobs_MV.gather(1, targets_M[:, None])[:, 0]
        nats -= float(of_kind_M.sum()), float((of_token_M - of_kind_M).sum())
    return Parts(*(nats / len(ids_N)).tolist())


def _predictions(
    predictor: Predictor[Any], ids_N: npt.NDArray[Any], eos_id: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields targets `(M,)` and log-probabilities `(M, V)`, float64, through the whole text."""
    state, previous = predictor.start(1), eos_id
    for start in range(0, len(ids_N), CHUNK_STEPS):
        chunk = ids_N[start : start + CHUNK_STEPS].astype(np.int64)
        inputs_T1 = torch.from_numpy(np.concatenate(([previous], chunk[:-1]))[:, None])
        targets_T = torch.from_numpy(chunk)
        blocks, state = predictor.distributions(inputs_T1, state)
        for rows, logprobs_MV in blocks:
            yield targets_T[rows], logprobs_MV.double().cpu()
        previous = int(chunk[-1])


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Makes the missing runs; returns the comparison and the parts of the loss for each form."""
    text = arguments.text.read_text(encoding="utf-8")
    seeds = tuple(int(seed) for seed in arguments.seeds.split(","))
    grid = Grid(variants=VARIANTS, seeds=seeds)
    config = load_config("short-window", arguments.set)
    results: dict[str, Any] = {}
    for form, change in FORMS.items():
        folder = arguments.out / form.replace(" ", "-")
        store = _store(folder, change(text), arguments.vocab_size)
        shared = comparison.prepare(
            config, store, folder / "runs", variants=VARIANTS, horizon=arguments.horizon
        )
        compared = comparison.compare(
            shared,
            grid=grid,
            execution=Execution(precision=unchecked_precision("fp32", torch.device("cpu"))),
            console=sys.stderr,
        )
        parts = {
            variant: [
                parts_of(
                    load(folder / "runs/runs" / f"{variant}-seed{seed}" / "last").predictor, store
                )
                for seed in seeds
            ]
            for variant in VARIANTS
        }
        results[form] = {"variants": compared["variants"], "parts": parts}
    return results


def _store(folder: Path, text: str, vocab_size: int) -> TokenStore:
    if not (folder / "data/meta.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(folder / "text.txt", text)
        settings = StoreSettings(vocab_size=vocab_size, test=0.0)
        return prepare([str(folder / "text.txt")], folder / "data", settings)
    return TokenStore.open(folder / "data")


def table(results: dict[str, Any]) -> str:
    """Returns a table of perplexities, shares of the horizon gap, and differences by part."""
    lines = [
        "| text | variant | perplexity | gap closed | millinats per token: break or not"
        " | which token |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for form, result in results.items():
        means = {name: facts["token_ppl_mean"] for name, facts in result["variants"].items()}
        base = [fmean(column) for column in zip(*result["parts"]["bptt"], strict=True)]
        for variant, parts in result["parts"].items():
            mean = [fmean(column) for column in zip(*parts, strict=True)]
            gap = (means["bptt"] - means[variant]) / (means["bptt"] - means["bptt-long"])
            change = [f"{1000 * (m - b):+.1f}" for m, b in zip(mean, base, strict=True)]
            cells = [form, variant, f"{means[variant]:.2f}", f"{100 * gap:.0f} %", *change]
            if variant == "bptt":
                cells[3:] = ["", "", ""]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.experiments.wrapping", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("text", type=Path, help="A book whose lines are wrapped.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--vocab-size", type=int, default=4000)
    parser.add_argument("--horizon", type=int, default=20)
    parser.add_argument("--set", action="append", default=[], help="As in sglm compare.")
    arguments = parser.parse_args()
    try:
        results = run(arguments)
    except (SglmError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))
    replace_text(arguments.out / "wrapping.json", json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
