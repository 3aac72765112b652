"""Generated pages: they agree with what they are made from, and say when they cannot be made."""

import json
from pathlib import Path

import pytest

from scripts import ROOT
from scripts.benchmarks.training.case import Size
from scripts.benchmarks.training.parts import PARTS
from scripts.documentation import __main__ as documentation
from scripts.documentation import add, benchmarks, experiments, gpu
from scripts.documentation.pages import filled
from scripts.documentation.short_windows import corpus_rows, table
from scripts.experiments import usefulness
from sglm.errors import InputError
from sglm.kernels.choice import KERNELS, Kernel, Measured

PAGE = "# A page\n<!-- table: letters a b -->\nold\n<!-- end -->\nbelow\n"
# Two corpora's worth of one file: a gap of 2, of which x closes a half.
CORPUS = {
    "title": "text",
    "perplexities": {
        "bptt": {"0": 12.0, "1": 13.0},
        "x": {"1": 12.0, "0": 11.0},
        "bptt-long 20": {"0": 10.0, "1": 11.0},
    },
    "times": {"bptt": {"ratio": 1.0}, "x": {"ratio": 1.234}},
}


def letters(names: list[str], docs: Path) -> str:
    return "+".join(names)


def written(docs: Path, values: object) -> Path:
    path = docs / "data/short-windows/corpus.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def test_what_is_committed_is_what_the_script_makes() -> None:
    outdated = [str(path.relative_to(ROOT)) for path in documentation.outdated(ROOT / "docs")]
    assert outdated == [], "run python -m scripts.documentation"


def test_a_block_is_replaced_and_the_rest_of_the_page_stays(tmp_path: Path) -> None:
    new = filled(PAGE, {"letters": letters}, tmp_path)
    assert new == PAGE.replace("old", "a+b")
    assert filled(new, {"letters": letters}, tmp_path) == new


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (PAGE.replace("letters", "numbers"), "no table 'numbers'; there are letters"),
        (PAGE.replace("<!-- end -->", ""), "no end"),
        (PAGE.replace("<!-- end -->", "") + PAGE, "no end"),
    ],
)
def test_a_block_that_cannot_be_made_is_named(page: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        filled(page, {"letters": letters}, tmp_path)


def test_a_changed_number_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path, CORPUS)
    page = tmp_path / "page.md"
    page.write_text("<!-- table: short-windows corpus -->\n<!-- end -->\n")
    for name, content in documentation.outdated(tmp_path).items():
        name.parent.mkdir(exist_ok=True)
        name.write_text(content)
    assert documentation.outdated(tmp_path) == {}
    path.write_text(path.read_text().replace("13.0", "13.5"))
    assert list(documentation.outdated(tmp_path)) == [page]


def test_differences_are_paired_by_seed_and_shares_are_of_the_mean_gap(tmp_path: Path) -> None:
    written(tmp_path, CORPUS)
    rows = [line.strip("| ").split(" | ") for line in table(["corpus"], tmp_path).splitlines()[2:]]
    assert rows[0][:3] == ["text", "`bptt`", "12.00, 13.00"]
    # The points that the experiment knows come first; equal differences leave no interval.
    assert rows[1][:2] == ["`bptt-long 20`", "10.00, 11.00"]
    assert rows[2] == ["`x`", "11.00, 12.00", "**−1.00** (−1.00 … −1.00)", "50 %", "1.23"]
    some = table(["corpus", ":", "bptt;", "x"], tmp_path).splitlines()[2:]
    assert [row.split(" | ")[1] for row in some] == ["`bptt`", "`x`"]


def test_one_seed_has_no_interval_and_others_than_the_first_are_named() -> None:
    perplexities = {
        "bptt": {0: 12.0, 1: 12.0},
        "x": {1: 13.0},
        "bptt-long 20": {0: 10.0, 1: 10.0},
    }
    rows = corpus_rows(perplexities, {})
    assert rows[-1] == ["`x`", "13.00 (seed 1)", "+1.00 (one seed)", "−50 %", ""]


@pytest.mark.parametrize("missing", ["bptt", "bptt-long 20"])
def test_a_gap_without_one_of_its_ends_is_refused(missing: str, tmp_path: Path) -> None:
    perplexities = {k: v for k, v in CORPUS["perplexities"].items() if k != missing}  # type: ignore[attr-defined]
    written(tmp_path, CORPUS | {"perplexities": perplexities})
    with pytest.raises(InputError, match=missing):
        table(["corpus"], tmp_path)


def test_points_and_seeds_are_added_and_never_replaced() -> None:
    new = {
        "title": "",
        "perplexities": {"bptt": {"0": 12.0, "2": 14.0}, "fresh": {"0": 11.5}, "y": {"0": 1.0}},
        "times": {"y": {"ratio": 3.0}},
    }
    both = add.merged(CORPUS, new, {"bptt", "fresh"})
    assert both["perplexities"]["bptt"] == {"0": 12.0, "1": 13.0, "2": 14.0}
    assert both["perplexities"]["fresh"] == {"0": 11.5}
    assert "y" not in both["perplexities"]
    assert both["times"] == CORPUS["times"]
    assert both["title"] == "text"
    other = {**new, "perplexities": {"x": {"0": 11.001}}}
    with pytest.raises(InputError, match="x, seed 0: 11"):
        add.merged(CORPUS, other, None)


def test_results_of_a_comparison_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text('{"variants": {"dni": {"seeds": [0, 1], "token_ppl": [9.0, 9.5]}}}')
    assert add.measured(path)["perplexities"] == {"dni": {"0": 9.0, "1": 9.5}}
    path.write_text('{"variants": 1}')
    with pytest.raises(InputError, match="neither"):
        add.measured(path)


def test_tables_of_experiments_are_made_of_the_files_that_these_write(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for arm, perplexity, beta in (("bptt", 10.0, 0), ("bptt-long", 8.0, 0), ("noise", 9.0, 0.5)):
        run = {"corpus": "c", "arm": arm, "seed": 0, "perplexity": perplexity}
        run["gauges"] = {"explained": 0.1, "beta": beta, "cosine": 0.2, "share": 0.3, "effect": 0.4}
        save(data / f"usefulness/c-{arm}.json", run)
    cell = {"task": "copy", "arm": "bptt", "window": 2, "seed": 0, "updates": 9, "seconds": 0.9}
    save(data / "long-memory/copy-bptt-T2-seed0.json", cell | {"solved": []})
    names = ("bptt", "dni", "bptt-long")
    form = {
        "variants": {n: {"token_ppl_mean": p} for n, p in zip(names, (9.0, 8.0, 7.0), strict=True)},
        "parts": {name: [[0.5, 1.5]] for name in names},
    }
    save(data / "wrapping.json", {"joined": form})
    other = {"microseconds": 6e7, "points": [[4, 90.0], [29, 80.0]]}
    ours = {"microseconds": 6e7, "points": [[2, 85.0], [9, 75.0]]}
    save(data / "rivals.json", {"words": {"other": other, "sglm": ours}})
    made = {kind: make([], tmp_path) for kind, make in experiments.TABLES.items()}
    assert "| c | noise | 9.00 | 50 % | 0.1 | 0.5 |" in made["usefulness"]
    assert made["gauges"].count("\n") == 1 + len(usefulness.GAUGES)
    assert "| bptt | 0 (0) |" in made["long-memory"]
    assert "| joined | dni | 8.00 | 50 % |" in made["wrapping"]
    assert "|  | other | 90.0 | 90.0 | 90.0 | 80.0 | 9.0 min |" in made["rivals"]
    with pytest.raises(InputError, match="none"):
        experiments.TABLES["wrapping"](["none"], tmp_path)


def save(path: Path, values: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")


def test_tables_of_a_machine_are_made_of_what_the_benchmarks_write(tmp_path: Path) -> None:
    arm = {"tokens_per_s": 500.0, "tokens_per_s_quartiles": [400.0, 600.0], "of_floor": 0.5}
    arm |= {"over_real": 0.05, "over_real_quartiles": [-0.01, 0.1], "peak_memory_mb": 99.6}
    arm["shares"] = dict.fromkeys([*PARTS, "other"], 0.1)
    floor = {"tokens_per_s": 1000.0, "gflops_per_s": 200.0}
    case = {"size": vars(Size(window=5)), "floor": floor, "rounds": 3, "arms": {"real": arm}}
    save(tmp_path / "benchmarks/full.json", {"cases": [case, {"skipped": "no room"}]})
    rates = {f"{name}_tokens_per_s": 500.0 for name in benchmarks.QUICK}
    save(tmp_path / "benchmarks/quick.json", {"floor_tokens_per_s": 1000.0} | rates)
    short = {"many_s": 0.01, "one_by_one_s": 0.2, "times_faster": 20.0}
    short["times_faster_of_floor"] = 30.0
    scoring = {"tiny": {"short_lines": short, "long_text": {"score_tokens_per_s": 9000.0}}}
    save(tmp_path / "benchmarks/scoring.json", scoring)
    full = benchmarks.TABLES["bench"](["full"], tmp_path)
    assert "2 × 256, V = 7,300, B = 20, T = 5**: floor 1,000 tokens/s (200 GFLOP/s), 3 r" in full
    assert "| real | 500 (400–600) | 50 % | +5.0 % (−1.0 % to +10.0 %) | 100 | 10 |" in full
    quick = benchmarks.TABLES["quick"](["quick:T_=_5"], tmp_path)
    assert quick.startswith("| tokens/s | T = 5 |")
    assert "| sglm, real gradients | 500 (50 %) |" in quick
    lines = benchmarks.TABLES["scoring"](["scoring"], tmp_path)
    assert "| tiny | 10.0 | 200 | 20.0 | 30 | 9,000 |" in lines


def test_kernels_are_not_measured_until_a_machine_has_measured_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "sglm.kernels.lstm.lstm_layer"
    monkeypatch.setitem(KERNELS, name, Kernel(needed=1.2))
    before = gpu.TABLES["kernels"]([], tmp_path)
    assert f"| `{name}` | off | not measured | 1.2 |" in before
    measured = Measured(device="a GPU", capability=(9, 0), speedup=1.5)
    monkeypatch.setitem(KERNELS, name, Kernel(needed=1.2, measured=measured))
    estimated = gpu.TABLES["kernels"]([], tmp_path)
    assert f"| `{name}` | on | about 1.5 (an estimate; a GPU) | 1.2 |" in estimated
    monkeypatch.setitem(KERNELS, name, Kernel(needed=1.2))
    cells = {"lstm B=20": {"speedup": 0.5}, "lstm B=80": {"speedup": 1.75}}
    save(tmp_path / "benchmarks/x-gpu.json", {"kernels": cells})
    after = gpu.TABLES["kernels"]([], tmp_path)
    assert "| `sglm.kernels.lstm.lstm_layer` | off | 0.50 to 1.75 (x) | 1.2 |" in after


def test_tables_of_a_gpu_are_made_of_its_visits(tmp_path: Path) -> None:
    facts = {"size": vars(Size()), "precision": "bf16"}
    times = {"real_ms": 5.0, "learning_ms": 6.0, "synthetic_ms": 7.0, "real_peak_mb": 900.0}
    plain = {"plain_ms": 9.0, "plain_peak_mb": 1200.0}
    floor = {"ms_at_best": 2.0, "ms_moving": 1.5}
    visit = {
        "bench": {
            "large": facts | {"cuda_graph": False, "lstm": "own"} | times,
            "plain": facts | {"cuda_graph": True, "lstm": "cuDNN"} | plain,
        },
        "floor": {
            "other": {"size": vars(Size(batch=3)), "precision": "bf16"} | floor,
            "large": facts | {"ms_at_best": 3.0, "ms_moving": 0.25},
        },
        "learning": {
            "fit": {"size": "80 lanes"},
            "alternating": {
                "size": "80 lanes",
                "precision": "bf16",
                "token_ppl": [200.0, 150.0, 120.0, 110.0, 100.0, 105.0],
                "train_seconds": 90.0,
            },
        },
    }
    save(tmp_path / "benchmarks/x-gpu.json", visit)
    training = gpu.TABLES["gpu-training"](["x"], tmp_path)
    size = "2 × 256, V = 7,300, B = 20, T = 35"
    assert f"| large: {size} | bf16 | own |  | 5.00 | 6.00 | 7.00 | 3.00 + 0.25 | 900 |" in training
    assert "| cuDNN | yes | 9.00 |  |  | 3.00 + 0.25 | 1,200 |" in training
    learning = gpu.TABLES["gpu-learning"](["x"], tmp_path)
    assert (
        "| alternating | 80 lanes | bf16 | 100.0 | 200.0, 150.0, 120.0, 110.0, 100.0, 105.0 | 1.5 |"
        in learning
    )
    with pytest.raises(InputError, match="scripts/gpu summary"):
        gpu.TABLES["gpu-training"](["y"], tmp_path)
