"""What is read from the folder of a comparison, and what is refused."""

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sglm.compare.grid import Cell
from sglm.compare.runs import Comparison, Record
from sglm.errors import ConfigError, InputError
from sglm.text.prepare import StoreSettings, prepare
from sglm.train.run_folder import RunFolder
from tests.compare.conftest import write_run

MakeComparison = Callable[..., Comparison]
BPTT, DNI = Cell("bptt", 0), Cell("dni", 0)


def test_only_finished_runs_are_collected(make_comparison: MakeComparison) -> None:
    comparison = make_comparison()
    assert comparison.collect() == {}
    write_run(comparison, BPTT, 30.0, 20.0, seconds=12.5, memory=None)
    write_run(comparison, DNI, 25.0)
    Record(finished=False, seconds=0.0, peak_memory_mb=99.0, device="cpu", precision="fp32").write(
        comparison.record_path(DNI)
    )
    assert not comparison.folder(Cell("noise", 1)).exists()
    comparison.folder(Cell("noise", 1)).mkdir()
    (run,) = comparison.collect().values()
    assert (run.variant, run.seed, run.steps) == ("bptt", 0, [20, 40])
    assert (run.token_ppl, run.seconds, run.peak_memory_mb) == ([30.0, 20.0], 12.5, None)


def test_runs_that_are_known_are_not_read_again(make_comparison: MakeComparison) -> None:
    comparison = make_comparison()
    write_run(comparison, DNI, 25.0)
    known = comparison.collect()
    RunFolder(comparison.folder(DNI)).metrics.write_text("damaged")
    write_run(comparison, BPTT, 20.0)
    again = comparison.collect(known)
    assert again[DNI] is known[DNI]
    assert list(again) == [BPTT, DNI], "in the order of their folders, as if all were read"
    with pytest.raises(InputError, match="damaged"):
        comparison.collect()
    shutil.rmtree(comparison.folder(DNI))
    assert list(comparison.collect(known)) == [BPTT], "what has gone is not finished"


def test_folders_from_elsewhere_can_be_copied_together(make_comparison: MakeComparison) -> None:
    here, there = make_comparison("here"), make_comparison("there")
    write_run(here, BPTT, 20.0)
    write_run(there, DNI, 19.0)
    shutil.copytree(there.out / "runs", here.out / "runs", dirs_exist_ok=True)
    assert set(here.collect()) == {BPTT, DNI}


def test_runs_of_another_configuration_horizon_or_corpus_are_refused(
    make_comparison: MakeComparison, tmp_path: Path
) -> None:
    comparison = make_comparison()
    long = Cell("bptt-long", 3)
    write_run(comparison, long, 20.0)
    other = make_comparison(model={"hidden": 9})
    with pytest.raises(ConfigError, match=r"bptt-long-seed3: holds .*model\.hidden: 8 → 9"):
        other.collect()
    with pytest.raises(ConfigError, match=r"train\.horizon: 20 → 35"):
        replace(comparison, horizon=35).collect()
    text = tmp_path / "other.txt"
    text.write_text("one two three four five six\n" * 200)
    store = prepare([str(text)], tmp_path / "other", StoreSettings(tokenizer="word"))
    with pytest.raises(InputError, match="another corpus"):
        replace(comparison, store=store).collect()
    assert set(comparison.collect()) == {long}


@pytest.mark.parametrize("name", ["thesis.tex", "runs/book", "runs/bptt-seed", "runs/bppt-seed0"])
def test_what_is_no_comparison_is_left_alone(name: str, make_comparison: MakeComparison) -> None:
    comparison = make_comparison()
    (comparison.out / name).mkdir(parents=True)
    with pytest.raises(InputError, match=rf"not a comparison \({name}\); give another --out"):
        comparison.collect()


def test_a_file_is_no_folder(make_comparison: MakeComparison) -> None:
    comparison = make_comparison()
    comparison.out.write_text("years of work")
    with pytest.raises(InputError, match="is a file; give --out a folder"):
        comparison.collect()


@pytest.mark.parametrize("text", ['{"step": 39, "token_ppl": 2, "nll_per_token": 1}', "{", ""])
def test_a_damaged_or_shortened_run_is_named(text: str, make_comparison: MakeComparison) -> None:
    comparison = make_comparison()
    write_run(comparison, BPTT, 20.0)
    (comparison.folder(BPTT) / "metrics.jsonl").write_text(text)
    with pytest.raises(InputError, match=r"metrics\.jsonl: damaged .*remove .*bptt-seed0, then"):
        comparison.collect()


def test_a_damaged_record_is_named(make_comparison: MakeComparison) -> None:
    comparison = make_comparison()
    write_run(comparison, BPTT, 20.0)
    comparison.record_path(BPTT).write_text('{"seconds": 3}')
    with pytest.raises(InputError, match=r"bptt-seed0\.json: damaged .*remove it, then"):
        comparison.collect()


def test_a_perplexity_beyond_all_use_counts_as_infinite(make_comparison: MakeComparison) -> None:
    """It would pass for a number, and decide every mean."""
    comparison = make_comparison()
    write_run(comparison, BPTT, 30.0, 1e16)
    (run,) = comparison.collect().values()
    assert run.token_ppl == [30.0, math.inf]
