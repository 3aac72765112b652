"""Synthetic gradient descent: what it reads, where it begins, that it learns, and its files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sglm.adapt.folder import CARD_FILE, GRADIENTS_FILE, load_gradients, save_gradients
from sglm.adapt.reader import AdaptingPredictor
from sglm.adapt.synthetic import (
    GradientsShape,
    SyntheticGradients,
    SyntheticReader,
    _Known,
)
from sglm.adapt.synthetic_training import train_gradients
from sglm.errors import InputError
from sglm.model.folder import save_model
from sglm.model.language_model import LSTMLanguageModel
from sglm.scoring.predictor import NetworkPredictor
from sglm.scoring.stream import stream_nll
from tests.adapt.readers import EOS, VOCABULARY, make_gradients
from tests.tiny_models import make_network


def bursty(tokens: int, seed: int) -> np.ndarray:
    """For a hundred tokens at a time the same three words, others each time."""
    random = np.random.default_rng(seed)
    topics = [
        random.choice(VOCABULARY, 3)[random.integers(0, 3, 100)] for _ in range(tokens // 100)
    ]
    return np.concatenate(topics).astype(np.uint16)


def perplexity(network: LSTMLanguageModel, gradients: SyntheticGradients, ids: np.ndarray) -> float:
    reader = SyntheticReader(network, gradients=gradients)
    predictor = AdaptingPredictor(reader, network=network)
    return float(np.exp(stream_nll(predictor, ids, EOS) / len(ids)))


def test_learns_to_adapt_and_what_it_reads_matters() -> None:
    network = make_network(VOCABULARY)
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    shape = GradientsShape(
        vocab_size=VOCABULARY, features=8, segment=10, horizons=(30.0, 300.0), hidden=8
    )
    gradients = train_gradients(network, bursty(5000, 0), bos_id=EOS, shape=shape, segments=60)
    ids = bursty(2000, 1)
    static = np.exp(stream_nll(NetworkPredictor(network), ids, EOS) / len(ids))
    adapted = perplexity(network, gradients, ids)
    assert adapted < 0.8 * perplexity(network, gradients.with_steps(0), ids)
    assert adapted < 0.8 * static
    assert all(torch.equal(before[name], w) for name, w in network.state_dict().items())


def test_without_steps_or_a_learned_beginning_it_is_the_network_itself() -> None:
    network = make_network(VOCABULARY)
    ids = np.random.default_rng(6).integers(0, VOCABULARY, 300)
    shape = GradientsShape(vocab_size=VOCABULARY, features=8, steps=0)
    predictor = AdaptingPredictor(
        SyntheticReader(network, gradients=SyntheticGradients(shape)), network=network
    )
    static = stream_nll(NetworkPredictor(network), ids, EOS)
    # Another formula for the softmax's sum, in float32.
    assert stream_nll(predictor, ids, EOS) == pytest.approx(static, rel=1e-6)


def test_evidence_is_of_the_trained_biases_and_fades() -> None:
    """One step a segment: then taking the effect of other biases out again is exact."""
    trained_BV = torch.tensor([[0.5, 0.3, 0.2]])
    bias_BV = torch.tensor([[1.0, -2.0, 0.0]])
    predicted_BV = (trained_BV.log() + bias_BV).softmax(1)
    shape = GradientsShape(vocab_size=3, features=2, horizons=(2.0, 1e9))
    none = SyntheticGradients(shape).no_evidence(1)
    evidence = none
    for word, feature in ((2, 1.0), (0, 3.0)):
        evidence = evidence.after(
            torch.tensor([[word]]), predicted_BV, torch.full((1, 1, 2), feature), bias_BV=bias_BV
        )
    faded = np.exp(-1 / 2)
    expected = {
        "weight_R": [1 + faded, 2.0],
        "observed_BRV": [[[1, 0, faded], [1, 0, 1]]],
        "features_BRH": [[[3 + faded] * 2, [4.0] * 2]],
    }
    for name, values in expected.items():
        torch.testing.assert_close(getattr(evidence, name), torch.tensor(values).float())
    torch.testing.assert_close(evidence.expected_BRV[:, 1], 2 * trained_BV)


def test_a_segment_is_evidence_once_the_token_after_it_is_read() -> None:
    network = make_network(VOCABULARY)
    shape = GradientsShape(vocab_size=VOCABULARY, features=8, segment=7, horizons=(1e9,))
    reader = SyntheticReader(network, gradients=SyntheticGradients(shape))
    predictor = AdaptingPredictor(reader, network=network)
    ids = torch.arange(3, 11)[:, None]
    _, [before] = predictor.read(ids[:7], None, predictor.start(1))
    assert before.evidence.weight_R.tolist() == [0.0]
    _, [after] = predictor.read(ids[7:], None, (before,))
    assert after.evidence.observed_BRV[0, 0].nonzero()[:, 0].tolist() == list(range(4, 11))
    # Nothing is proposed yet, so that the trained network predicted.
    static = NetworkPredictor(network)
    blocks, _ = static.distributions(ids[:7], static.start(1))
    expected_V = torch.cat([logprobs_MV for _, logprobs_MV in blocks]).exp().sum(0)
    torch.testing.assert_close(after.evidence.expected_BRV[0, 0], expected_V)


def test_steps_go_down_what_is_proposed_for_the_words_that_were_read() -> None:
    network = make_network(VOCABULARY)
    shape = GradientsShape(vocab_size=VOCABULARY, features=8, steps=3)
    gradients = SyntheticGradients(shape).requires_grad_(False)
    gradients.of_words[-1].bias.fill_(0.5)  # whatever is known, of every word
    gradients.of_features[-1].bias.copy_(torch.tensor([0.1, -0.2]))
    evidence = gradients.no_evidence(1)
    features_11H = torch.zeros(1, 1, 8)
    predicted_1V = torch.full((1, VOCABULARY), 1 / VOCABULARY)
    evidence = evidence.after(
        torch.tensor([[4]]), predicted_1V, features_11H, bias_BV=torch.zeros(1, VOCABULARY)
    )
    proposal = gradients(evidence, network.target_rows)
    assert proposal.bias_BV[0].nonzero().tolist() == [[4]]
    assert proposal.bias_BV[0, 4].item() == pytest.approx(-1.5)
    assert proposal.scale_BH[0].tolist() == pytest.approx([-0.3] * 8)
    assert proposal.shift_BH[0].tolist() == pytest.approx([0.6] * 8)


def test_each_step_reads_what_the_steps_before_changed() -> None:
    """Two steps are not twice the first one."""
    network, ids = make_network(VOCABULARY), np.random.default_rng(7).integers(0, VOCABULARY, 40)
    found = [
        perplexity(network, make_gradients(network, steps=steps), ids) for steps in (0, 1, 2, 3)
    ]
    assert len(set(found)) == 4
    shapes = [make_gradients(network).with_steps(steps).shape.steps for steps in (0, 5)]
    assert shapes == [0, 5]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    network = make_network(VOCABULARY)
    save_model(network, tmp_path, "fingerprint")
    save_gradients(make_gradients(network), tmp_path)
    return tmp_path


class TestFolder:
    def test_comes_back_as_it_was(self, folder: Path) -> None:
        network = make_network(VOCABULARY)
        loaded, saved = load_gradients(folder, network), make_gradients(network)
        assert loaded.shape == saved.shape
        assert all(torch.equal(saved.state_dict()[n], w) for n, w in loaded.state_dict().items())

    def test_of_another_model(self, folder: Path) -> None:
        other = make_network(VOCABULARY, seed=1)
        save_model(other, folder, "fingerprint")
        with pytest.raises(InputError, match=r"does not belong to the model .*sglm adapt-train"):
            load_gradients(folder, other)

    @pytest.mark.parametrize("missing", [CARD_FILE, GRADIENTS_FILE])
    def test_none_there(self, folder: Path, missing: str) -> None:
        (folder / missing).unlink()
        with pytest.raises(InputError, match=r"no trained network .*`sglm adapt-train"):
            load_gradients(folder, make_network(VOCABULARY))

    @pytest.mark.parametrize(
        "change", [{"steps": -1}, {"horizons": []}, {"hidden": 10**9}, {"segment": "7"}, {"x": 1}]
    )
    def test_a_card_that_sglm_would_not_write(self, folder: Path, change: dict) -> None:
        path = folder / CARD_FILE
        card = json.loads(path.read_text())
        card["shape"] |= change
        path.write_text(json.dumps(card))
        with pytest.raises(InputError, match=r"adapt\.json is damaged"):
            load_gradients(folder, make_network(VOCABULARY))

    def test_weights_that_are_damaged(self, folder: Path) -> None:
        (folder / GRADIENTS_FILE).write_bytes(b"no tensors")
        with pytest.raises(InputError, match=r"adapt\.safetensors is .*damaged"):
            load_gradients(folder, make_network(VOCABULARY))


def test_what_the_networks_read_are_gradients_of_the_text_so_far() -> None:
    """Of what would have been predicted of it, on average, with the biases of the moment."""
    network, random = make_network(VOCABULARY), torch.Generator().manual_seed(3)
    shape = GradientsShape(vocab_size=VOCABULARY, features=8, horizons=(10.0, 50.0))
    none = SyntheticGradients(shape).no_evidence(1)
    predicted_1V = torch.rand(1, VOCABULARY, generator=random)
    words_T1 = torch.tensor([[3], [4], [3]])
    no_bias_1V = torch.zeros(1, VOCABULARY)
    evidence = none.after(words_T1, predicted_1V, torch.zeros(3, 1, 8), bias_BV=no_bias_1V)
    start_1V = torch.randn(1, VOCABULARY, generator=random)
    known = _Known.of(evidence, start_1V, network.target_rows)
    bias_1S = (start_1V[:, known.words_S] + 0.5).requires_grad_()

    def gradient(bias_1S: torch.Tensor) -> torch.Tensor:
        bias_1V = start_1V.index_copy(1, known.words_S, bias_1S)
        expected_V, observed_V = evidence.expected_BRV[0, 0] / 3, evidence.observed_BRV[0, 0] / 3
        nats = (expected_V * bias_1V[0].exp()).sum().log() - (observed_V * bias_1V[0]).sum()
        (found_1S,) = torch.autograd.grad(nats, bias_1S)
        return found_1S[0]

    assert known.words_S.tolist() == [3, 4]
    read_RS = known.word_inputs(bias_1S.detach())[0, 2 * len(shape.horizons) :]
    scaled_S = 1e4 * gradient(bias_1S)
    torch.testing.assert_close(read_RS[0], scaled_S.sign() * scaled_S.abs().log1p())
    at_start_1S = start_1V[:, known.words_S].requires_grad_()
    expected_H = gradient(at_start_1S) @ network.target_rows(known.words_S).detach()
    torch.testing.assert_close(known.errors_BRH[0, 0], expected_H)
