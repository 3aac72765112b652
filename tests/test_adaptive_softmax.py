"""Whatever reads text by a model, one with an adaptive softmax gives it its numbers by token id."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import sglm
from sglm.adapt.folder import save_gradients
from sglm.adapt.synthetic import GradientsShape
from sglm.adapt.synthetic_training import train_gradients
from sglm.errors import InputError
from sglm.kenlm import Model
from sglm.lm import LanguageModel
from sglm.model.folder import load_weights, save_model
from tests.tiny_models import make_network, make_tokenizer, plain_logprobs

TEXT = "the cat saw a dog and ran on"
LONG = " ".join([TEXT, "the naïve cafés sat"] * 8)


def save_adaptive(folder: Path, *, seed: int = 0) -> Path:
    tokenizer = make_tokenizer("word")
    network = make_network(tokenizer.vocab_size, seed=seed, cutoffs=(4, 9))
    save_model(network, folder, tokenizer.fingerprint)
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return sglm.load(save_adaptive(tmp_path_factory.mktemp("adaptive") / "model"))


def by_definition(lm: LanguageModel, text: str = TEXT) -> tuple[np.ndarray, list[int]]:
    """Log-probabilities of every token id at each token, and the tokens' ids."""
    ids = lm.tokenizer.encode(text)
    return plain_logprobs(lm.model, [lm.tokenizer.eos_id, *ids]).detach().numpy(), ids


def test_scores_ranks_and_entropies(lm: LanguageModel) -> None:
    every_TV, ids = by_definition(lm)
    rows = lm.model.rows_of(torch.tensor(ids))
    assert rows.min() < 4 <= rows.median() < 9 <= rows.max()  # head and tails
    score = lm.score(TEXT, distribution=True)
    own = every_TV[range(len(ids)), ids]
    # float32 rounding, here and below
    assert score.token_logprobs == pytest.approx(own, rel=1e-5)
    likelier_T = (every_TV > own[:, None]).sum(1)
    assert score.ranks == (1 + likelier_T).tolist()
    assert score.entropies == pytest.approx(-(np.exp(every_TV) * every_TV).sum(1), rel=1e-5)
    assert lm.perplexity(LONG).token_ppl == pytest.approx(
        math.exp(-lm.score(LONG, eos=True).logprob / (1 + lm.score(LONG).n_tokens)), rel=1e-5
    )


def test_step_by_step_and_in_generated_text(lm: LanguageModel) -> None:
    every_TV, _ = by_definition(lm)
    state = lm.start()
    for logprobs_V, piece in zip(every_TV, TEXT.replace(" ", "| ").split("|"), strict=True):
        assert lm.next(state) == pytest.approx(logprobs_V, rel=1e-5)
        _, state = lm.extend(state, piece)
    likeliest = int(every_TV[-1].argmax())
    prompt = " ".join(TEXT.split()[:-1])
    continued = lm.generate(prompt, tokens=1, temperature=1e-4, seed=0)
    assert continued.split()[-1] == lm.tokenizer.token(likeliest)


def test_by_the_methods_of_kenlm(lm: LanguageModel) -> None:
    assert lm.folder is not None
    found = Model(str(lm.folder)).score(TEXT, eos=False)
    assert found == pytest.approx(lm.score(TEXT).logprob / math.log(10), rel=1e-5)


def test_a_model_that_adapts_by_nothing_is_the_model(lm: LanguageModel, tmp_path: Path) -> None:
    folder = save_adaptive(tmp_path / "model")
    ids_N = np.arange(600, dtype=np.uint16) % lm.tokenizer.vocab_size
    shape = GradientsShape(vocab_size=lm.tokenizer.vocab_size, features=8, segment=8)
    network = load_weights(folder)
    gradients = train_gradients(network, ids_N, bos_id=0, shape=shape, segments=2)
    assert all(weight.grad is None and weight.requires_grad for weight in network.parameters())
    save_gradients(gradients, folder)
    own = sglm.load(folder)
    static = own.score(LONG).logprob
    for kind, nothing in {
        "cache": {"weight": 0.0},
        "dynamic": {"learning_rate": 1e-12},
        "synthetic": {"steps": 0},
    }.items():
        assert own.adapting(kind, **nothing).score(LONG).logprob == pytest.approx(static, rel=1e-3)
    # And learns from what it reads, at the ids that it reads.
    repeated = " ".join([TEXT] * 30)
    for kind, settings in {"cache": {"weight": 0.3}, "dynamic": {"learning_rate": 0.05}}.items():
        adapted = own.adapting(kind, **settings).score(repeated).logprob
        assert adapted > 0.97 * own.score(repeated).logprob
    assert math.isfinite(own.adapting("synthetic").score(LONG).logprob)


class TestSnapshots:
    def make(self, folder: Path, seeds: tuple[int, ...] = (0, 1)) -> Path:
        for number, seed in enumerate(seeds):
            save_adaptive(folder / "snapshots" / f"cycle-{number:03d}", seed=seed)
        return folder

    def test_ensemble_and_average(self, tmp_path: Path) -> None:
        run = self.make(tmp_path / "run")
        members = [sglm.load(run / "snapshots" / f"cycle-00{n}") for n in range(2)]
        mean = np.mean([np.exp(member.score(TEXT).token_logprobs) for member in members], axis=0)
        ensemble = sglm.load_ensemble(run).score(TEXT)
        assert ensemble.token_logprobs == pytest.approx(np.log(mean), rel=1e-5)
        averaged = load_weights(sglm.average_snapshots(run, tmp_path / "out"))
        assert averaged.shape == members[0].model.shape
        networks = [*(member.model for member in members), averaged]
        for (name, mean_weight), *weights in zip(
            averaged.named_parameters(), *(each.parameters() for each in networks[:2]), strict=True
        ):
            torch.testing.assert_close(mean_weight, sum(weights) / 2, msg=name)
        orders = [network.rows_of(torch.arange(12)).tolist() for network in networks]
        assert orders[0] == orders[1] == orders[2]

    def test_of_words_in_another_order_none_is_averaged(self, tmp_path: Path) -> None:
        run = self.make(tmp_path / "run")
        other = run / "snapshots" / "cycle-001"
        network = load_weights(other)
        network.start_from_unigram(torch.arange(network.shape.vocab_size))
        save_model(network, other, make_tokenizer("word").fingerprint)
        with pytest.raises(InputError, match=r"cycle-001: has another adaptive\.word_rows"):
            sglm.average_snapshots(run, tmp_path / "out")
