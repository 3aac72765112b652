"""The models of a run's cycle ends: as an ensemble, and averaged into one."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

import sglm
from sglm.cli.main import app
from sglm.errors import InputError
from sglm.model import new_folder
from sglm.model.folder import load_weights, save_model
from sglm.scoring.mixture import Mixture
from sglm.scoring.predictor import NetworkPredictor
from sglm.snapshots import snapshot_folders
from sglm.text.overlap import LineHasher
from tests.tiny_models import make_network, make_tokenizer

TEXT = "the cat saw a dog and ran"


def make_run(folder: Path, *, kinds: tuple[str, ...] = ("word", "word", "word")) -> Path:
    for number, kind in enumerate(kinds):
        snapshot, tokenizer = folder / "snapshots" / f"cycle-{number:03d}", make_tokenizer(kind)
        network = make_network(tokenizer.vocab_size, seed=number)
        save_model(network, snapshot, tokenizer.fingerprint)
        tokenizer.save(snapshot)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("snapshots") / "run")


def sglm_command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.mark.parametrize("last", [None, 2])
def test_an_ensemble_s_probabilities_are_the_mean_of_its_members(
    run: Path, last: int | None
) -> None:
    """1e-6: members and their mean are rounded to float32."""
    members = [sglm.load(folder) for folder in snapshot_folders(run, last)]
    ensemble = sglm.load_ensemble(run, last=last)
    each = np.array([member.score(TEXT).token_logprobs for member in members])
    expected = np.log(np.exp(each).mean(axis=0))
    assert ensemble.score(TEXT).token_logprobs == pytest.approx(expected, rel=1e-6)
    _, state = ensemble.extend(ensemble.start(), TEXT)
    after = [member.next(member.extend(member.start(), TEXT)[1]) for member in members]
    mixed = np.log(np.exp(np.array(after, dtype=np.float64)).mean(axis=0))
    assert ensemble.next(state) == pytest.approx(mixed, rel=1e-6, abs=1e-6)


def test_many_texts_score_as_one_by_one(run: Path) -> None:
    """Through shared prefixes and lanes that end; 1e-5: the contract's."""
    ensemble = sglm.load_ensemble(run)
    texts = [f"{TEXT} {' '.join(['the cat'] * (n % 7))}" for n in range(80)]
    together = ensemble.score(texts)
    for text, score in zip(texts, together, strict=True):
        assert score.logprob == pytest.approx(ensemble.score(text).logprob, rel=1e-5)


def test_it_generates_and_is_never_worse_than_its_members_mean(run: Path) -> None:
    ensemble = sglm.load_ensemble(run)
    assert ensemble.generate("the", tokens=5, seed=0).startswith("the")
    members = [sglm.load(folder).score(TEXT).logprob for folder in snapshot_folders(run)]
    assert ensemble.score(TEXT).logprob > sum(members) / len(members)


def test_the_average_of_weights_is_a_model_like_any_other(run: Path, tmp_path: Path) -> None:
    folder = sglm.average_snapshots(run, tmp_path / "a" / "averaged", last=2)
    own = load_weights(folder).state_dict()
    first, second = (load_weights(each).state_dict() for each in snapshot_folders(run, 2))
    for name, tensor in own.items():
        expected = (first[name].double() + second[name].double()) / 2
        torch.testing.assert_close(tensor, expected.float(), rtol=0, atol=0)
    assert json.loads((folder / "config.json").read_text())["extra"] == {
        "averaged": ["cycle-001", "cycle-002"]
    }
    assert math.isfinite(sglm.load(folder).score(TEXT).logprob)
    assert [each.name for each in folder.parent.iterdir()] == ["averaged"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_average_that_is_interrupted_leaves_nothing(
    run: Path, tmp_path: Path, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path) -> None:
        raise error

    monkeypatch.setattr(new_folder, "sync", interrupted)
    with pytest.raises(error):
        sglm.average_snapshots(run, tmp_path / "a" / "averaged")
    assert list((tmp_path / "a").iterdir()) == []


def test_what_lies_beside_is_not_touched(run: Path, tmp_path: Path) -> None:
    (tmp_path / "one.partial").mkdir()
    (tmp_path / "one.partial" / "thesis.txt").write_text("years of work")
    sglm.average_snapshots(run, tmp_path / "one")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["one", "one.partial"]
    assert (tmp_path / "one.partial" / "thesis.txt").exists()


def test_by_command(run: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT + "\n")
    result = sglm_command("eval", run, "--ensemble", "--text", text, "--json")
    assert result.exit_code == 0, result.output
    expected = sglm.load_ensemble(run).perplexity(text)
    assert json.loads(result.stdout)["nll_nats"] == pytest.approx(expected.nll_nats, rel=1e-9)
    result = sglm_command("average", run, "--out", tmp_path / "one", "--last", 1)
    assert result.exit_code == 0, result.output
    alone = sglm.load(snapshot_folders(run)[-1]).score(TEXT).logprob
    assert sglm.load(tmp_path / "one").score(TEXT).logprob == alone
    assert "--data STORE --split valid" in result.stdout  # this run does not say what it read


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["average", "RUN/snapshots", "--out", "OUT"], "has no snapshots"),
        (["average", "RUN", "--out", "RUN"], "already exists; give another --out"),
        (
            ["average", "RUN", "--out", "OUT", "--last", "4"],
            "cannot take its last 4 snapshots; ask for 1 to 3",
        ),
        (["average", "RUN", "--out", "OUT", "--last", "0"], "ask for 1 to 3"),
        (["average", "MIXED", "--out", "OUT"], "has another tokenizer than cycle-000"),
        (["eval", "MIXED", "--ensemble", "--text", "-"], "has another tokenizer than cycle-000"),
        (["eval", "RUN", "--last", "1", "--text", "-"], "give --ensemble as well"),
        (["eval", "RUN/snapshots/cycle-000", "--ensemble", "--text", "-"], "has no snapshots"),
    ],
)
def test_what_cannot_be_taken_together_is_named(
    run: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    mixed = make_run(tmp_path / "mixed", kinds=("word", "char"))
    places = {"RUN": str(run), "MIXED": str(mixed), "OUT": str(tmp_path / "out")}
    for name, place in places.items():
        arguments = [each.replace(name, place) for each in arguments]
    result = sglm_command(*arguments)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


def test_snapshots_of_several_shapes_are_not_averaged(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", kinds=("word", "word"))
    tokenizer = make_tokenizer("word")
    other = make_network(tokenizer.vocab_size, layers=1)
    save_model(other, run / "snapshots" / "cycle-001", tokenizer.fingerprint)
    with pytest.raises(InputError, match="cycle-001: has another shape than cycle-000"):
        sglm.average_snapshots(run, tmp_path / "out")


def test_the_last_ones_of_a_thousand_are_the_latest(tmp_path: Path) -> None:
    for number in (998, 999, 1000, 1001):
        (tmp_path / "snapshots" / f"cycle-{number:03d}").mkdir(parents=True)
    folders = snapshot_folders(tmp_path, last=3)
    assert [each.name for each in folders] == ["cycle-999", "cycle-1000", "cycle-1001"]


def test_members_must_share_a_vocabulary() -> None:
    with pytest.raises(InputError, match="no common vocabulary"):
        Mixture([NetworkPredictor(make_network(size)) for size in (5, 6)])
    with pytest.raises(InputError, match="at least one"):
        Mixture([])


@pytest.mark.parametrize("last", ["2", 2.0, True])
def test_the_number_of_snapshots_is_a_whole_one(run: Path, last: Any) -> None:
    with pytest.raises(InputError, match="last must be a whole number"):
        snapshot_folders(run, last)


def test_a_copy_beside_a_snapshot_is_none(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", kinds=("word", "word"))
    before = snapshot_folders(run)
    shutil.copytree(before[1], run / "snapshots" / "cycle-001.bak")
    (run / "snapshots" / "cycle-002.txt").write_text("notes")
    assert snapshot_folders(run) == before


def test_an_ensemble_knows_which_lines_its_run_was_trained_on(tmp_path: Path) -> None:
    run, known = make_run(tmp_path / "run"), "the cat sat on the mat"
    hasher = LineHasher()
    hasher.add(known)
    hasher.finish().write(run / "train.lines")
    (run / "run.json").write_text("{}")
    found = sglm.load_ensemble(run).perplexity(f"{known}\na dog saw the cat and ran\n")
    assert (found.lines, found.lines_in_training) == (2, 1)


def test_an_average_is_on_the_disk_before_it_appears(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, synced = tmp_path / "out", list[str]()

    def note(path: Path) -> None:
        assert out.exists() == (path == tmp_path)  # which holds its name, once it is there
        synced.append(path.name)

    monkeypatch.setattr("sglm.model.new_folder.sync", note)
    sglm.average_snapshots(run, out)
    assert {each.name for each in out.iterdir()} < set(synced), "the folder's own list of names too"
    assert synced[-1] == tmp_path.name
