"""`lm.adapting(…)`: as a model that scores, whose original never changes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sglm
from sglm.adapt.build import Adaptation
from sglm.adapt.folder import save_gradients
from sglm.adapt.synthetic import GradientsShape, SyntheticGradients
from sglm.adapt.tune import tune
from sglm.errors import InputError
from sglm.lm import LanguageModel
from sglm.model.folder import save_model
from sglm.scoring.predictor import Predictor
from sglm.scoring.stream import stream_nll
from sglm.text.store import TokenStore
from tests.scoring.test_ambient import AMBIENT
from tests.tiny_models import LINES, make_lm, make_network, make_store, save_lm

TEXT = ("\n".join(LINES) + "\n") * 3
WITHOUT_EFFECT = [
    ("cache", {"weight": 0.0}),
    ("dynamic", {"learning_rate": 0.0}),
    ("cache,dynamic", {"weight": 0.0, "learning_rate": 0}),
    ("synthetic", {"steps": 0}),
]


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory, store: Path) -> LanguageModel:
    """Loaded from a folder, with a network for synthetic gradients that proposes nothing yet."""
    folder = tmp_path_factory.mktemp("adapting") / "model"
    tokenizer = TokenStore.open(store).tokenizer()
    size = tokenizer.vocab_size
    save_model(make_network(size), folder, tokenizer.fingerprint)
    tokenizer.save(folder)
    save_gradients(SyntheticGradients(GradientsShape(vocab_size=size, features=8)), folder)
    return sglm.load(folder)


@pytest.mark.parametrize(("kind", "settings"), WITHOUT_EFFECT)
def test_without_effect_it_is_the_loaded_model(
    lm: LanguageModel, kind: str, settings: dict
) -> None:
    """1e-6: the softmax's sum is computed by another formula, in float32."""
    reader = lm.adapting(kind, **settings)
    adapted = reader.perplexity(TEXT)
    assert adapted.nll_nats == pytest.approx(lm.perplexity(TEXT).nll_nats, rel=1e-6)
    assert adapted.adapt == kind
    static = lm.score("the cat sat").token_logprobs
    assert reader.score("the cat sat").token_logprobs == pytest.approx(static, rel=1e-6)


@pytest.mark.parametrize("kind", ["cache", "dynamic", "cache,dynamic"])
def test_carried_or_reset(lm: LanguageModel, kind: str) -> None:
    reader = lm.adapting(kind, **({"segment": 3} if "dynamic" in kind else {}))
    lines = [line + "\n" for line in LINES]
    # Each line starts from the loaded model, and is read to its end.
    alone = [reader.perplexity([line]).nll_nats for line in lines]
    together = reader.perplexity(lines, context="reset")
    assert together.nll_nats == pytest.approx(sum(alone), rel=1e-5)
    carried = reader.perplexity(lines * 3).nll_nats
    assert abs(carried - lm.perplexity(lines * 3).nll_nats) > 0.1
    assert reader.perplexity(lines * 3).nll_nats == carried, "what was read leaves no trace"
    state = reader.start()
    first, state = reader.extend(state, "the cat sat on the mat the ")
    second, _ = reader.extend(state, "cat")
    whole = reader.score("the cat sat on the mat the cat")
    assert first.logprob + second.logprob == pytest.approx(whole.logprob, rel=1e-5)


def adapted_nats(folder: Path, store: Path) -> list[float]:
    """By every kind, from loading on."""
    lm = sglm.load(folder, "cpu")
    readers = [lm.adapting(kind, segment=3) for kind in ("dynamic", "cache,dynamic")]
    readers += [lm.adapting("cache"), lm.adapting("synthetic")]
    readers += [lm.adapting("dynamic", segment=3, train=store)]
    return [reader.perplexity(TEXT).nll_nats for reader in readers]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapting-store")
    (folder / "test.txt").write_text(TEXT)
    return make_store(folder, "word", folder / "test.txt").folder


def test_what_the_caller_has_set_changes_no_bit(lm: LanguageModel, store: Path) -> None:
    assert lm.folder is not None
    expected = adapted_nats(lm.folder, store)
    for name in ("autocast to bfloat16", "default float64", "default device meta", "inference"):
        with AMBIENT[name]():
            assert adapted_nats(lm.folder, store) == expected, name


def test_generates_and_expects(lm: LanguageModel) -> None:
    reader = lm.adapting("cache,dynamic", segment=2)
    assert reader.generate("the cat", tokens=5, seed=0)
    score = reader.score("the cat sat on the mat", distribution=True)
    plain = reader.score("the cat sat on the mat")
    np.testing.assert_allclose(score.token_logprobs, plain.token_logprobs, rtol=1e-5)


class TestRefused:
    @pytest.mark.parametrize(
        ("kind", "settings", "message"),
        [
            ("cashe", {}, "no adaptation 'cashe'; did you mean 'cache'"),
            ("cache,synthetic", {}, "there is no adaptation 'cache,synthetic'"),
            ("cache", {"wieght": 0.1}, "no setting 'wieght'; did you mean 'weight'"),
            ("cache", {"decay": 0.1}, "adaptation by cache has no setting 'decay'"),
            ("cache", {"weight": 1.5}, "weight must be from 0 to 1, but is 1.5"),
            ("cache", {"size": 2.5}, "size must be a whole number"),
            ("cache", {"size": 10**12}, "a cache of 1,000,000,000,000 tokens"),
            ("dynamic", {"learning_rate": float("nan")}, "learning_rate must be from 0"),
            ("dynamic", {"rule": "adam"}, "rule must be sgd or rms"),
            ("dynamic", {"rule": "rms"}, "needs the training text"),
        ],
    )
    def test_settings(self, lm: LanguageModel, kind: str, settings: dict, message: str) -> None:
        with pytest.raises(InputError, match=message):
            lm.adapting(kind, **settings)

    def test_synthetic_gradients_that_nobody_trained(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="sglm adapt-train"):
            sglm.load(save_lm("word", tmp_path / "model")).adapting("synthetic")
        with pytest.raises(InputError, match="sglm adapt-train"):
            make_lm("word").adapting("synthetic")

    def test_a_reader_that_adapts_already(self, lm: LanguageModel) -> None:
        with pytest.raises(InputError, match="only a single network can adapt"):
            lm.adapting("cache").adapting("dynamic")


def test_the_training_text_makes_the_rule_rms(lm: LanguageModel, store: Path) -> None:
    reader = lm.adapting("dynamic", train=store, segment=4)
    assert reader.adaptation.settings["rule"] == "rms"
    assert lm.adapting("dynamic").adaptation.settings["rule"] == "sgd"
    ppl = [each.perplexity(TEXT).token_ppl for each in (reader, lm.adapting("dynamic", segment=4))]
    assert np.isfinite(ppl).all()
    assert ppl[0] != ppl[1]


def test_tuning_takes_the_best_and_leaves_what_is_fixed() -> None:
    network = make_network(23)
    # The same eight words again and again: the more weight the better.
    ids = np.tile(np.arange(8), 12)
    adaptation = Adaptation("cache", network=network, settings={"sharpness": 0.3})
    tried: list[float] = []

    def perplexity_of(predictor: Predictor[Any]) -> float:
        return float(np.exp(stream_nll(predictor, ids, 0) / len(ids)))

    best = tune(
        adaptation,
        perplexity_of,
        fixed=("sharpness",),
        on_tried=lambda _, ppl: tried.append(ppl),
    )
    assert best == {"size": 200, "weight": 0.3, "sharpness": 0.3} | {"size": best["size"]}
    assert perplexity_of(adaptation.predictor(**best)) == pytest.approx(min(tried))
    assert len(tried) > 4
    with pytest.raises(InputError, match="nothing left to choose"):
        tune(adaptation, perplexity_of, fixed=("size", "weight", "sharpness"))


def test_a_training_text_of_another_tokenizer_is_refused(lm: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "test.txt").write_text(TEXT)
    other = make_store(tmp_path, "char", tmp_path / "test.txt")
    with pytest.raises(InputError, match="another tokenizer"):
        lm.adapting("dynamic", train=other)


def test_the_decay_that_is_set_draws_every_weight_back(lm: LanguageModel) -> None:
    adaptation = lm.adapting("dynamic", decay=0.25, learning_rate=0.5).adaptation
    assert adaptation is not None
    rule = adaptation.predictor().reader.rule  # type: ignore[attr-defined]
    assert (rule.learning_rate, {pull.item() for pull in rule.pull}) == (0.5, {0.25})


def test_each_setting_is_tuned_given_those_before_it() -> None:
    adaptation = Adaptation("cache", network=make_network(23), settings={})
    tried: list[dict[str, Any]] = []

    def perplexity_of(predictor: Predictor[Any]) -> float:
        reader = predictor.reader  # type: ignore[attr-defined]
        return 10 + 100 / reader.size + abs(reader.weight - 0.2) + reader.sharpness

    best = tune(adaptation, perplexity_of, on_tried=lambda settings, _: tried.append(settings))
    assert best["size"] != adaptation.settings["size"]
    with_others = [each for each in tried if each["weight"] != adaptation.settings["weight"]]
    assert {each["size"] for each in with_others} == {best["size"]}
    assert best in tried


def test_settings_without_a_perplexity_lose_to_any_with_one() -> None:
    """Also where they are the ones that the search begins with."""
    adaptation = Adaptation("cache", network=make_network(23), settings={})

    def perplexity_of(predictor: Predictor[Any]) -> float:
        found: float = predictor.reader.weight  # type: ignore[attr-defined]
        return float("nan") if found == adaptation.settings["weight"] else 10 + found

    best = tune(adaptation, perplexity_of, fixed=("size", "sharpness"))
    assert best["weight"] != adaptation.settings["weight"]
