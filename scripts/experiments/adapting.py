r"""Perplexity and cost of one model, static and with each kind of adaptation.

    python -m scripts.experiments.adapting RUN --data STORE --out adapting.json

The kinds are cache, dynamic, synthetic, and cache with dynamic. Settings are chosen on the first
half of the validation text, on which `sglm adapt-train` trains too; results are of the second half,
and of the test text if there is one. Synthetic gradients have two controls: no steps from the
learned initialisation, and proposals made from another text. For cache and dynamic together only
the cache's weight is chosen anew. The cost is processor time as a multiple of that of a static
evaluation, made just before. Kinds that are already in the file `--out` are not evaluated again.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain, repeat
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sglm.adapt.build import Adaptation
from sglm.adapt.reader import AdaptingPredictor
from sglm.adapt.synthetic import Proposal, SyntheticReader, SyntheticState
from sglm.adapt.tune import tune
from sglm.errors import InputError
from sglm.lm import LanguageModel
from sglm.loading import load
from sglm.scoring.evaluate import evaluate_split, half_of
from sglm.scoring.predictor import Predictor
from sglm.scoring.stream import CHUNK_STEPS, stream_nll
from sglm.text.store import TokenStore

KINDS = ("cache", "dynamic", "synthetic", "cache,dynamic")


class Replayed(SyntheticReader):
    """A reader that learns nothing from its text, but takes proposals made elsewhere."""

    def __init__(self, reader: SyntheticReader, *, proposals: Iterator[Proposal]) -> None:
        super().__init__(reader.network, gradients=reader.gradients)
        self.proposals = proposals

    def learned(self, state: SyntheticState, next_1: Tensor) -> SyntheticState:
        return state._replace(
            proposal=next(self.proposals),
            ids_T=state.ids_T[:0],
            features_T1H=state.features_T1H[:0],
        )


def proposals_of(reader: SyntheticReader, ids: Any) -> list[Proposal]:
    """Returns the proposals that a reader makes after each segment of a text."""
    predictor = AdaptingPredictor(reader, network=reader.network)
    state, made = predictor.start(1), []
    for start in range(0, len(ids), reader.segment):
        ids_T1 = torch.from_numpy(ids[start : start + reader.segment].astype(np.int64))[:, None]
        _, state = predictor.read(ids_T1, None, state)
        made.append(state[0].proposal)
    return made[1:]


def measured(predictor: Predictor[Any], lm: LanguageModel, texts: dict[str, Any]) -> dict[str, Any]:
    """Measures the perplexity on each text, and the cost on all of them."""
    seconds, perplexities = [0.0, 0.0], {}
    for name, ids in texts.items():
        for place, each in enumerate((lm.predictor, predictor)):
            started = process_time()
            nll_nats = stream_nll(each, ids, lm.bos_id, chunk_steps=CHUNK_STEPS)
            seconds[place] += process_time() - started
        perplexities[name] = float(np.exp(nll_nats / len(ids)))
    return {"token_ppl": perplexities, "static_evaluations": seconds[1] / seconds[0]}


def controls(
    lm: LanguageModel, adaptation: Adaptation, texts: dict[str, Any], *, other: Any
) -> Iterator[tuple[str, Predictor[Any], dict[str, Any]]]:
    """Yields the name and predictor of each control, and the texts on which it is measured."""
    yield "synthetic, no steps", adaptation.predictor(steps=0), texts
    reader = adaptation.predictor().reader
    assert isinstance(reader, SyntheticReader)
    made = proposals_of(reader, other)
    for name, ids in texts.items():
        replayed = Replayed(reader, proposals=chain.from_iterable(repeat(made)))
        predictor = AdaptingPredictor(replayed, network=lm.model)
        yield f"synthetic, of another text ({name})", predictor, {name: ids}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.experiments.adapting", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    lm, store = load(arguments.run, "cpu"), TokenStore.open(arguments.data)
    valid, ends = store.ids("valid"), {"eos_id": lm.tokenizer.eos_id, "bos_id": lm.bos_id}
    texts = {"valid, second half": half_of(valid, "second", **ends)}
    if "test" in store.splits:
        texts["test"] = store.ids("test")
    out: Path = arguments.out
    rows: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}

    def record(name: str, row: dict[str, Any]) -> None:
        rows[name] = row
        print(name, row, flush=True)
        out.write_text(json.dumps(rows, indent=1) + "\n")

    def perplexity_of(predictor: Predictor[Any]) -> float:
        evaluation = evaluate_split(predictor, store, "valid", half="first", bos_id=lm.bos_id)
        return evaluation.token_ppl

    record("static", measured(lm.predictor, lm, texts))
    for kind in (each for each in KINDS if each not in rows):
        chosen: dict[str, Any] = {}
        for part in kind.split(","):
            chosen |= rows.get(part, {}).get("settings", {})
        adaptation = Adaptation(
            kind, network=lm.model, settings=chosen, folder=lm.folder, train=store
        )
        with suppress(InputError):  # synthetic gradients have no settings to choose
            adaptation.settings = tune(
                adaptation,
                perplexity_of,
                fixed=tuple(name for name in chosen if name != "weight"),
            )
        row = measured(adaptation.predictor(), lm, texts)
        record(kind, {**row, "settings": adaptation.settings})
        if kind == "synthetic":
            other = half_of(valid, "first", **ends)
            for name, predictor, measured_on in controls(lm, adaptation, texts, other=other):
                record(name, measured(predictor, lm, measured_on))


if __name__ == "__main__":
    main()
