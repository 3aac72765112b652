"""The network for synthetic gradients, of any content, adapts or is refused."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglm.adapt.folder import CARD_FILE, GRADIENTS_FILE, save_gradients
from sglm.adapt.synthetic import GradientsShape, SyntheticGradients
from sglm.loading import load
from tests.fuzz.examples import damage, examples, may_be_refused, spoilt
from tests.tiny_models import make_lm

ModelFolders = Callable[[str], Path]


@pytest.fixture
def folder_copy(model_folders: ModelFolders, copies: Callable[[Path], Path]) -> Callable[[], Path]:
    """A copy of a model folder with such a network."""

    def copy() -> Path:
        folder = copies(model_folders("char"))
        size = make_lm("char").tokenizer.vocab_size
        shape = GradientsShape(vocab_size=size, features=8, segment=4)
        save_gradients(SyntheticGradients(shape), folder)
        return folder

    return copy


def use_or_refuse(folder: Path) -> None:
    lm = load(folder, "cpu")
    with may_be_refused(folder):
        score = lm.adapting("synthetic").score("the cat sat on the mat")
        assert not math.isnan(score.logprob)


@given(data=st.data())
@examples(15)
def test_any_card_is_read_or_refused(folder_copy: Callable[[], Path], data: st.DataObject) -> None:
    folder = folder_copy()
    damage(folder / CARD_FILE, data)
    use_or_refuse(folder)


@given(data=st.data())
@examples(10)
def test_any_bytes_are_weights_or_refused(
    folder_copy: Callable[[], Path], data: st.DataObject
) -> None:
    folder = folder_copy()
    whole = (folder / GRADIENTS_FILE).read_bytes()
    (folder / GRADIENTS_FILE).write_bytes(data.draw(spoilt(whole)))
    use_or_refuse(folder)
