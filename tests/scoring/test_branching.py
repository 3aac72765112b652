"""A text that may go on in many ways: each place is computed once, and kept while it is held."""

import gc
import weakref

import pytest
import torch

from sglm.scoring.branching import Branch
from sglm.scoring.predictor import Blocks, NetworkPredictor
from sglm.scoring.stream import read_on
from tests.tiny_models import make_lm, make_network, make_tokenizer

EOS = make_tokenizer("word").eos_id


class Counting(NetworkPredictor):
    """Counts the places at which it predicts."""

    places = 0

    def distributions(
        self, ids_TB: torch.Tensor, state: object, **options: object
    ) -> tuple[Blocks, object]:
        self.places += 1
        return super().distributions(ids_TB, state, **options)  # type: ignore[arg-type]


@pytest.fixture
def predictor() -> Counting:
    return Counting(make_network(make_lm("word").tokenizer.vocab_size))


def begin(predictor: Counting) -> Branch:
    return Branch(predictor, state=predictor.start(1), token_id=EOS)


def test_log_probabilities_are_those_of_the_text_read_on(predictor: Counting) -> None:
    first, after = begin(predictor).follow([3, 4])
    second, _ = after.follow([5])
    nll_T, _ = read_on(predictor, torch.tensor([EOS, 3, 4, 5]).numpy(), predictor.start(1))
    assert first == pytest.approx(-nll_T[:2].sum(), rel=1e-6)  # float32
    assert second == pytest.approx(-nll_T[2], rel=1e-6)


def test_what_follows_is_computed_once(predictor: Counting) -> None:
    start = begin(predictor)
    held = [start.follow([3, other])[1] for other in (4, 5, 4, 6)]
    assert predictor.places == 2  # after <eos>, and after 3
    assert held[0] is held[2]
    for branch in held:
        branch.follow([7])
        branch.follow([8])
    assert predictor.places == 2 + 3


def test_nobody_keeps_what_nobody_holds(predictor: Counting) -> None:
    start = begin(predictor)
    _, last = start.follow([3, 4])
    _, onward = last.follow([5])
    gone = weakref.ref(last)
    del last
    gc.collect()
    assert gone() is None
    assert onward.follow([6])[0] < 0  # which needs nothing of it
