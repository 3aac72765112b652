"""A model folder comes back as it was written, and nothing else comes back at all."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sglm.errors import InputError
from sglm.model.folder import find_model_folder, load_weights, read_card, save_model
from sglm.model.language_model import LSTMLanguageModel, ModelShape
from sglm.runtime.device import pick_device

SHAPES = [
    ModelShape(vocab_size=11, layers=1, hidden=6, embedding=6, tied=True),
    ModelShape(vocab_size=11, layers=3, hidden=7, embedding=5, tied=True),
    ModelShape(vocab_size=11, layers=2, hidden=7, embedding=5, tied=False),
    ModelShape(vocab_size=11, layers=1, hidden=6, embedding=5, tied=True, cutoffs=(2, 5)),
    ModelShape(vocab_size=11, layers=1, hidden=6, embedding=5, tied=False, cutoffs=(10,)),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tied model of two layers."""
    path = tmp_path / "model"
    save_model(
        LSTMLanguageModel(ModelShape(vocab_size=11, layers=2, hidden=7, embedding=5, tied=True)),
        path,
        "f" * 64,
        extra={"note": "ü"},
    )
    return path


class TestRoundTrip:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_bitwise(self, shape: ModelShape, tmp_path: Path) -> None:
        model = LSTMLanguageModel(shape)
        model.start_from_unigram(torch.arange(11))
        save_model(model, tmp_path / "new" / "model", "abc")
        loaded = load_weights(tmp_path / "new" / "model")
        assert loaded.shape == shape
        assert not loaded.training
        assert all(p.requires_grad and p.is_leaf for p in loaded.parameters())
        assert loaded.state_dict().keys() == model.state_dict().keys()
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name
        assert (loaded.output_weight is loaded.embedding) == shape.tied

    def test_with_a_full_softmax_it_is_what_older_versions_read(self, folder: Path) -> None:
        sizes = {"vocab_size": 11, "layers": 2, "hidden": 7, "embedding": 5, "tied": True}
        assert json.loads((folder / "config.json").read_text()) == {
            "format_version": 1,
            "shape": sizes,
            "tokenizer_fingerprint": "f" * 64,
            "extra": {"note": "ü"},
        }

    def test_what_else_is_remembered(self, folder: Path) -> None:
        card = read_card(folder)
        assert card.tokenizer_fingerprint == "f" * 64
        assert card.extra == {"note": "ü"}
        assert card.model_shape() == ModelShape(
            vocab_size=11, layers=2, hidden=7, embedding=5, tied=True
        )

    def test_always_float32(self, tmp_path: Path) -> None:
        model = LSTMLanguageModel(SHAPES[0]).double().train()
        save_model(model, tmp_path, "abc")
        assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {
            torch.float32
        }
        assert model.embedding.dtype == torch.float64
        assert model.training

    def test_draws_no_random_number(self, folder: Path) -> None:
        before = torch.get_rng_state()
        load_weights(folder)
        assert torch.equal(torch.get_rng_state(), before)

    def test_replacing_the_file_leaves_a_loaded_model_alone(self, folder: Path) -> None:
        model = load_weights(folder)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        path = folder / "model.safetensors"
        with path.open("r+b") as file:
            file.seek(-4 * sum(tensor.numel() for tensor in before.values()), os.SEEK_END)
            file.write(b"\0" * (path.stat().st_size - file.tell()))
        assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)

    def test_writing_again_replaces_and_leaves_nothing_aside(self, folder: Path) -> None:
        model = LSTMLanguageModel(
            ModelShape(vocab_size=11, layers=2, hidden=7, embedding=5, tied=True)
        )
        save_model(model, folder, "new")
        assert torch.equal(load_weights(folder).embedding, model.embedding)
        assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]

    def test_a_failed_write_leaves_the_old_model(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        old = load_weights(folder).embedding

        def fails(path: Path, tensors: object) -> None:
            path.write_bytes(b"half of it")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("sglm.model.folder.write_tensors", fails)
        with pytest.raises(OSError, match="No space"):
            save_model(
                LSTMLanguageModel(
                    ModelShape(vocab_size=11, layers=2, hidden=7, embedding=5, tied=True)
                ),
                folder,
                "new",
            )
        assert torch.equal(load_weights(folder).embedding, old)
        assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]


def with_config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Damages `config.json`."""

    def damage(folder: Path) -> None:
        path = folder / "config.json"
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return damage


def with_shape(**changes: object) -> Callable[[Path], object]:
    """Damages the sizes in `config.json`."""
    return with_config(lambda content: content["shape"].update(changes))


def with_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    """Damages `model.safetensors`, which stays a good file."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return damage


def cut_off(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


class Bomb:
    """What a pickle from elsewhere could do."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, ("exploded",))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "not a model folder"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"has no model\.safetensors"),
    "no JSON": (lambda f: (f / "config.json").write_text("{"), "not JSON"),
    "not UTF-8": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe{}"), "not JSON"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "no format_version"),
    "somebody else's": (with_config(lambda c: c.pop("format_version")), "no format_version"),
    "of the future": (with_config(lambda c: c.update(format_version=3)), "version 3, this sglm"),
    "without cutoffs": (with_config(lambda c: c.update(format_version=2)), "shape.cutoffs belong"),
    "with cutoffs": (with_shape(cutoffs=[3]), "shape.cutoffs belong"),
    "no shape": (with_config(lambda c: c.pop("shape")), "shape: Field required"),
    "unknown key": (with_shape(heads=8), r"shape\.heads: Extra"),
    "a string": (with_shape(hidden="7"), r"shape\.hidden"),
    "a fraction": (with_shape(hidden=7.5), r"shape\.hidden"),
    "negative": (with_shape(hidden=-7), r"shape\.hidden.*greater"),
    "zero layers": (with_shape(layers=0), r"shape\.layers.*greater"),
    "infinite": (with_shape(vocab_size=float("inf")), "not JSON.*Infinity"),
    "nan": (with_shape(vocab_size=float("nan")), "not JSON.*NaN"),
    "absurd": (with_shape(embedding=10**12), r"shape\.embedding.*less"),
    "absurdly deep": (with_shape(layers=10**9), r"shape\.layers.*less"),
    "large but possible": (with_shape(vocab_size=2**24, hidden=2**24), "different models"),
    "other size": (with_shape(vocab_size=12), r"'embedding' is F32 \(11, 5\).*\(12, 5\)"),
    "fewer layers": (with_shape(layers=1), r"holds 'layers\.1"),
    "more layers": (with_shape(layers=3), r"lacks 'layers\.2"),
    "untied": (with_shape(tied=False), "lacks 'softmax_weight'"),
    "cut off": (cut_off, "cut off or damaged"),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "cut off or damaged"),
    "garbage": (lambda f: (f / "model.safetensors").write_bytes(os.urandom(99)), "cut off or dam"),
    "a pickle": (
        lambda f: (f / "model.safetensors").write_bytes(pickle.dumps(Bomb())),
        "cut off or damaged",
    ),
    "missing tensor": (with_tensors(lambda t: t.pop("softmax_bias")), "lacks 'softmax_bias'"),
    "extra tensor": (with_tensors(lambda t: t.update(x=torch.ones(1))), "holds 'x'"),
    "integers": (
        with_tensors(lambda t: t.update(softmax_bias=torch.ones(11, dtype=torch.int32))),
        "'softmax_bias' is I32",
    ),
    "not finite": (
        with_tensors(lambda t: t["embedding"][3, 2].fill_(torch.nan)),
        "'embedding' is not finite",
    ),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_folder_is_refused_in_one_line(
    what: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, message = DAMAGES[what]
    damage(folder)
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=message) as caught:
        load_weights(folder)
    assert str(folder) in str(caught.value), "the message must name the folder"
    assert len(str(caught.value)) < 400
    assert not (folder / "exploded").exists()


ADAPTIVE_DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "of the past": (with_config(lambda c: c.update(format_version=1)), "shape.cutoffs belong"),
    "no cutoffs": (with_config(lambda c: c["shape"].pop("cutoffs")), "shape.cutoffs belong"),
    "none": (with_shape(cutoffs=[]), r"shape\.cutoffs: List should have at least 1"),
    "falling": (with_shape(cutoffs=[5, 2]), "must ascend and be below vocab_size"),
    "twice": (with_shape(cutoffs=[5, 5]), "must ascend and be below vocab_size"),
    "from zero": (with_shape(cutoffs=[0, 5]), r"shape\.cutoffs\.0: .*greater"),
    "past the end": (with_shape(cutoffs=[2, 11]), "must ascend and be below vocab_size"),
    "fractions": (with_shape(cutoffs=[2, 5.5]), r"shape\.cutoffs\.1"),
    "more tails": (with_shape(cutoffs=[2, 5, 7]), r"'adaptive\.weight' is F32 \(2, 5\).*\(3, 5\)"),
    "no order": (with_tensors(lambda t: t.pop("adaptive.word_rows")), "lacks 'adaptive.word_rows"),
    "a row twice": (with_tensors(lambda t: t["adaptive.word_rows"].fill_(3)), "not a permutation"),
    "a row too far": (
        with_tensors(lambda t: t["adaptive.word_rows"].add_(1)),
        "'adaptive.word_rows' is not a permutation of the 11 rows",
    ),
    "rows as fractions": (
        with_tensors(lambda t: t.update({"adaptive.word_rows": torch.arange(11.0)})),
        r"'adaptive\.word_rows' is F32 .* wants I64",
    ),
    "not finite": (
        with_tensors(lambda t: t["adaptive.weight"].fill_(torch.inf)),
        r"'adaptive\.weight' is not finite",
    ),
}


@pytest.mark.parametrize("what", ADAPTIVE_DAMAGES)
def test_a_damaged_adaptive_softmax_is_refused_in_one_line(what: str, tmp_path: Path) -> None:
    damage, message = ADAPTIVE_DAMAGES[what]
    save_model(LSTMLanguageModel(SHAPES[3]), tmp_path / "model", "abc")
    damage(tmp_path / "model")
    with pytest.raises(InputError, match=message) as caught:
        load_weights(tmp_path / "model")
    assert str(tmp_path) in str(caught.value), "the message must name the folder"
    assert len(str(caught.value)) < 400


class TestFind:
    def test_a_run_or_a_model(self, folder: Path) -> None:
        assert find_model_folder(folder) == folder
        assert find_model_folder(folder.parent) == folder

    def test_a_folder_with_both_is_the_run(self, folder: Path) -> None:
        (folder.parent / "config.json").write_text("{}")
        assert find_model_folder(folder.parent) == folder

    def test_messages_point_to_what_is_near(self, folder: Path) -> None:
        runs = folder.parent / "runs"
        (runs / "tiny" / "tensorboard").mkdir(parents=True)
        folder.rename(runs / "tiny" / "model")
        for path in (runs, runs / "tiny" / "tensorboard"):
            with pytest.raises(InputError, match=r"neither model/config\.json .*; use .*tiny$"):
                find_model_folder(path)
        with pytest.raises(InputError, match="no such folder; did you mean 'tiny'"):
            find_model_folder(runs / "tini")
        with pytest.raises(InputError, match="it is a file"):
            find_model_folder(runs / "tiny" / "model" / "config.json")

    def test_a_run_without_a_model_yet(self, tmp_path: Path) -> None:
        (tmp_path / "config.toml").touch()
        with pytest.raises(InputError, match="has not saved a model yet"):
            find_model_folder(tmp_path)

    def test_a_store_is_not_a_run(self, tmp_path: Path) -> None:
        (tmp_path / "meta.json").touch()
        with pytest.raises(InputError, match="give the run that was trained on it"):
            find_model_folder(tmp_path)

    def test_nothing_near(self, tmp_path: Path) -> None:
        (tmp_path / "a" / "b" / "c").mkdir(parents=True)
        with pytest.raises(InputError, match="not a run or a model folder"):
            find_model_folder(tmp_path / "a" / "b" / "c")


class TestDevice:
    def test_cuda_where_there_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert pick_device("auto") == pick_device("cpu") == torch.device("cpu")
        with pytest.raises(InputError, match=r"device 'cuda' was asked for.*use --device cpu"):
            pick_device("cuda")

    def test_cuda_where_there_is_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        assert pick_device("auto") == pick_device("cuda") == torch.device("cuda")
        assert pick_device("cpu") == torch.device("cpu")

    def test_another_word(self) -> None:
        with pytest.raises(InputError, match="unknown device 'gpu'"):
            pick_device("gpu")


def test_only_runs_and_models_are_proposed(tmp_path: Path) -> None:
    for name in (".git", "cli", "runs"):
        (tmp_path / name).mkdir()
    with pytest.raises(InputError) as refused:
        find_model_folder(tmp_path / "run")
    assert "'run" not in str(refused.value).replace(str(tmp_path), "")
    assert "sglm train --out" in str(refused.value)
    (tmp_path / "runs" / "model").mkdir()
    (tmp_path / "runs" / "model" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="did you mean 'runs'"):
        find_model_folder(tmp_path / "run")
