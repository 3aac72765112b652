"""A new model folder is there whole, or not at all; by its digests it is known again."""

import hashlib
from pathlib import Path

import pytest

import sglm
from sglm.analyze.subjects import find_subjects
from sglm.corpus_filter.plan import model_hash
from sglm.model import new_folder
from sglm.model.folder import weights_sha256
from tests.tiny_models import make_network, make_tokenizer


def write(folder: Path) -> None:
    tokenizer = make_tokenizer("word")
    new_folder.write_new_folder(
        make_network(tokenizer.vocab_size),
        folder,
        tokenizer,
        aside=folder.with_name("aside"),
        extra={"note": "ü"},
    )


def test_what_a_killed_process_left_does_not_get_into_it(tmp_path: Path) -> None:
    (tmp_path / "run" / "aside").mkdir(parents=True)
    (tmp_path / "run" / "aside" / "half.of.it").touch()
    write(tmp_path / "run" / "model")
    assert [each.name for each in (tmp_path / "run").iterdir()] == ["model"]
    assert not (tmp_path / "run" / "model" / "half.of.it").exists()
    assert sglm.load(tmp_path / "run").generate("the", tokens=2, seed=0)


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, ValueError])
def test_whatever_interrupts_it_nothing_is_left(
    tmp_path: Path, error: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(path: Path) -> None:
        raise error

    monkeypatch.setattr(new_folder, "sync", interrupted)
    with pytest.raises(error):
        write(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_digests_are_those_that_earlier_versions_kept(tmp_path: Path) -> None:
    """In `run.json`, `adapt.json`, `score.json` and in kept analyses."""
    folder = tmp_path / "model"
    write(folder)
    (folder / "adapt.json").touch()  # scores do not depend on it
    content = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}
    sums = {name: hashlib.sha256(raw).hexdigest() for name, raw in content.items()}
    assert weights_sha256(folder) == sums["model.safetensors"]
    together = content["config.json"] + content["model.safetensors"]
    assert find_subjects([folder])[0].fingerprint() == hashlib.sha256(together).hexdigest()
    listed = "".join(f"{name}\0{sums[name]}\0" for name in sums if name != "adapt.json")
    assert model_hash(folder) == hashlib.sha256(listed.encode()).hexdigest()
