"""How fast is scoring, and how fast could it be?

    python -m scripts.benchmarks.scoring [--quick] [--json]

Text and weights are random (the frequencies of words follow Zipf's law). Everything is timed in
turn, in rounds, so that a busy moment of the machine affects all alike; medians count.

many short lines   all at once; one by one; the floor
one long text      as it is scored; its LSTM alone; its softmax alone; the floor
documents          of 20 to 2,000 tokens: a file of them through `sglm score --out`; their texts in
                   memory; the same in bfloat16, if the CPU has it; the floor

floor: the matrix products alone, each with as many rows as possible: for short lines one row for
every distinct prefix (a shared prefix is read only once); for the long text the recurrent products
have one row each, because every step needs the state of the step before.

Shapes: N rows, V vocabulary, H units.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from sglm.corpus_filter.job import Job, perform, scorer
from sglm.corpus_filter.plan import Settings, Shard, model_hash
from sglm.lm import LanguageModel
from sglm.model.folder import save_model
from sglm.model.language_model import LSTMLanguageModel, ModelShape
from sglm.model.linear import cpu_has_bfloat16, linear
from sglm.runtime.process import prepare_process
from sglm.scoring.predictor import LOGIT_ROWS, NetworkPredictor, evaluating, target_logprobs
from sglm.scoring.stream import CHUNK_STEPS, read_on
from sglm.scoring.totals import text_totals
from sglm.text.tokenizer import WordTokenizer

ROUNDS, QUICK_ROUNDS = 9, 3
Step = Callable[[], object]


@dataclass(frozen=True)
class Size:
    """The size of a model whose embedding is tied and as wide as its layers."""

    layers: int
    hidden: int
    vocab_size: int


SIZES = {"tiny": Size(1, 32, 500), "small": Size(2, 256, 7300)}
# The model of the documents: as many words as the Penn Treebank has.
DOCUMENTS = Size(2, 256, 10_000)
SHORTEST, LONGEST = 20, 2000


def make_lm(size: Size) -> LanguageModel:
    torch.manual_seed(0)
    tokenizer = WordTokenizer([f"w{rank}" for rank in range(2, size.vocab_size)])
    shape = ModelShape(
        vocab_size=size.vocab_size,
        layers=size.layers,
        hidden=size.hidden,
        embedding=size.hidden,
        tied=True,
    )
    network = LSTMLanguageModel(shape).eval()
    return LanguageModel(NetworkPredictor(network), tokenizer=tokenizer)


def zipf_words(size: Size, words: int) -> list[str]:
    weights = 1 / np.arange(1, size.vocab_size - 1)
    random = np.random.default_rng(0)
    ranks = random.choice(len(weights), size=words, p=weights / weights.sum())
    return [f"w{rank + 2}" for rank in ranks]


def products(
    size: Size, rows: int, recurrent_rows: int | None = None, logit_rows: int = LOGIT_ROWS
) -> Step:
    """Returns a function that computes the matrix products of reading and predicting `rows` tokens.

    Args:
        size: Size of the model.
        rows: Number of tokens.
        recurrent_rows: Rows of the products that depend on each other. None: as in the others.
        logit_rows: Rows whose logits are computed at once.
    """
    H, V = size.hidden, size.vocab_size
    most = max(CHUNK_STEPS, LOGIT_ROWS)
    values, table, bias = torch.randn(most, H), torch.randn(V, H), torch.zeros(V)
    gates, gates_bias = torch.randn(4 * H, H), torch.zeros(4 * H)

    def all_of(weight: torch.Tensor, bias: torch.Tensor, chunk: int) -> None:
        for start in range(0, rows, chunk):
            linear(values[: min(chunk, rows - start)], weight, bias)

    def step() -> None:
        with torch.inference_mode():
            all_of(table, bias, logit_rows)
            for _ in range(size.layers):
                all_of(gates, gates_bias, CHUNK_STEPS)
                all_of(gates, gates_bias, recurrent_rows or CHUNK_STEPS)

    return step


def medians(
    steps: dict[str, Step], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Returns the median seconds of each, timed in turn; the first round does not count."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 1):
        for name, step in steps.items():
            start = clock()
            step()
            if number > 0:
                taken[name].append(clock() - start)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def short_lines(size: Size, lines: int, words: int, rounds: int) -> dict[str, float]:
    lm, drawn = make_lm(size), zipf_words(size, lines * words)
    rows = [drawn[start : start + words] for start in range(0, len(drawn), words)]
    texts = [" ".join(row) for row in rows]
    prefixes = {tuple(row[:length]) for row in rows for length in range(words)}
    seconds = medians(
        {
            "many": lambda: lm.score(texts),
            "one_by_one": lambda: [lm.score(text) for text in texts],
            "floor": products(size, len(prefixes)),
        },
        rounds,
    )
    return {
        "lines": lines,
        "tokens": len(drawn),
        "distinct_prefixes": len(prefixes),
        **{f"{name}_s": value for name, value in seconds.items()},
        "times_faster": seconds["one_by_one"] / seconds["many"],
        # The upper limit of "times_faster": if "many" took only as long as its matrix products.
        "times_faster_of_floor": seconds["one_by_one"] / seconds["floor"],
        "share_of_floor": seconds["floor"] / seconds["many"],
    }


def long_text(size: Size, words: int, rounds: int) -> dict[str, float]:
    lm = make_lm(size)
    text = " ".join(zipf_words(size, words))
    model, predictor, eos = lm.model, lm.predictor, lm.tokenizer.eos_id
    ids = np.array([eos, *lm.tokenizer.encode(text)])
    inputs_NT = torch.split(torch.from_numpy(ids[:-1]), CHUNK_STEPS)
    targets_NT = torch.split(torch.from_numpy(ids[1:]), CHUNK_STEPS)
    features_TH = torch.randn(CHUNK_STEPS, size.hidden)

    def lstm() -> None:
        state = predictor.start(1)
        for inputs_T in inputs_NT:
            _, state = predictor.read(inputs_T[:, None], None, state)

    def softmax() -> None:
        with evaluating(model):
            for targets_T in targets_NT:
                target_logprobs(model, features_TH[: len(targets_T)], targets_T)

    seconds = medians(
        {
            "score": lambda: lm.score(text),
            "read": lambda: read_on(predictor, ids, predictor.start(1)),
            "lstm": lstm,
            "softmax": softmax,
            "floor": products(size, words, 1, min(LOGIT_ROWS, CHUNK_STEPS)),
        },
        rounds,
    )
    return {
        "tokens": words,
        **{f"{name}_tokens_per_s": words / value for name, value in seconds.items()},
        "lstm_share": seconds["lstm"] / seconds["score"],
        "softmax_share": seconds["softmax"] / seconds["score"],
        "rest_share": 1 - (seconds["lstm"] + seconds["softmax"]) / seconds["score"],
        "share_of_floor": seconds["floor"] / seconds["score"],
    }


def document_lengths(tokens: int) -> list[int]:
    """Draws lengths, uniform in their logarithm, until their sum is at least `tokens`."""
    random = np.random.default_rng(0)
    lengths: list[int] = []
    while sum(lengths) < tokens:
        lengths.append(round(math.exp(random.uniform(math.log(SHORTEST), math.log(LONGEST)))))
    return lengths


def documents(
    size: Size, tokens: int, rounds: int, *, folder: Path, clock: Callable[[], float]
) -> dict[str, float]:
    lm, lengths = make_lm(size), document_lengths(tokens)
    words = iter(zipf_words(size, sum(lengths)))
    texts = [" ".join(islice(words, length)) for length in lengths]
    source, run = folder / "documents.jsonl", folder / "run"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    save_model(lm.model, run, lm.tokenizer.fingerprint)
    lm.tokenizer.save(run)
    settings = Settings(
        model=model_hash(run),
        text_field="text",
        fields=("perplexity", "bits_per_byte"),
        prefix="",
        format=None,
        percentiles=None,
        bos=True,
        eos=False,
        precision="fp32",
    )
    shard = Shard(source=str(source), out=str(folder), name="scored.jsonl")
    job = Job(shard=shard, settings=settings, run=str(run), device="cpu")
    # Loads the model before the timing begins.
    scorer(job.run, model=settings.model, device=job.device, precision=settings.precision)
    half = NetworkPredictor(lm.model, compute_dtype=torch.bfloat16)
    steps: dict[str, Step] = {
        "file": lambda: perform(job),
        "texts": lambda: text_totals(lm.predictor, lm.tokenizer, texts),
        "bf16": lambda: text_totals(half, lm.tokenizer, texts),
        "floor": products(size, sum(lengths)),
    }
    if not cpu_has_bfloat16():
        del steps["bf16"]
    seconds = medians(steps, rounds, clock)
    return {
        "documents": len(lengths),
        "tokens": sum(lengths),
        **{f"{name}_tokens_per_s": sum(lengths) / value for name, value in seconds.items()},
        **{
            f"{name}_share_of_floor": seconds["floor"] / value
            for name, value in seconds.items()
            if name != "floor"
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.benchmarks.scoring", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    parser.add_argument("--lines", type=int, default=1000, help="short lines to score")
    parser.add_argument("--words", type=int, default=5, help="words of each short line")
    parser.add_argument("--long", type=int, default=20_000, help="words of the long text")
    parser.add_argument(
        "--documents", type=int, default=250_000, help="tokens of all documents together"
    )
    parser.add_argument("--threads", type=int, help="default: torch's choice")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="documents: measure processor time, which other work on the machine disturbs less",
    )
    parser.add_argument("--only", choices=["short_lines", "long_text", "documents"])
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    rounds = QUICK_ROUNDS if arguments.quick else ROUNDS
    lines, words, only = arguments.lines, arguments.words, arguments.only
    result: dict[str, dict[str, dict[str, float]]] = {}
    for name, size in SIZES.items():
        parts = result.setdefault(name, {})
        if only in (None, "short_lines"):
            parts["short_lines"] = short_lines(size, lines, words, rounds)
        if only in (None, "long_text"):
            parts["long_text"] = long_text(size, arguments.long, rounds)
    if only in (None, "documents"):
        with tempfile.TemporaryDirectory() as folder:
            clock = time.process_time if arguments.cpu_time else time.perf_counter
            tokens = arguments.documents
            found = documents(DOCUMENTS, tokens, rounds, folder=Path(folder), clock=clock)
        result["documents"] = {"documents": found}
    if arguments.json:
        print(json.dumps(result))
        return
    print(f"CPU, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name, parts in result.items():
        for part, numbers in parts.items():
            print(f"\n{part.replace('_', ' ')}, {name}: {SIZES.get(name, DOCUMENTS)}")
            for key, value in numbers.items():
                print(f"  {key:24}{value:14,.4g}")


if __name__ == "__main__":
    prepare_process()
    main()
