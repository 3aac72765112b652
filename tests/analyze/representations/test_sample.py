"""What is read, what the text says of it, and what the layers hold there."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sglm.analyze.representations.layers import read_layers
from sglm.analyze.representations.sample import (
    LANES,
    WARM_STEPS,
    brackets_open,
    choose_sample,
    frequency_classes,
    line_positions,
)
from sglm.errors import InputError
from sglm.text.prepare import StoreSettings, prepare
from sglm.text.store import TokenStore
from tests.tiny_models import make_network


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """Characters of lines of length 7 that open brackets and close them at last, three times."""
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text("f(a)=[\nx, y, \n) {} ]\n" * 200, encoding="utf-8")
    text = str(folder / "text.txt")
    return prepare([text], folder / "store", StoreSettings(tokenizer="char", valid=text, test=0))


def test_positions_are_spread_over_the_text_and_halved(store: TokenStore) -> None:
    sample = choose_sample(store, 512)
    ids = np.asarray(store.ids("valid"), np.int64)
    assert len(np.unique(sample.index_N)) == 512
    assert np.array_equal(sample.next_N, ids[sample.index_N + 1])
    first, second = sample.index_N[sample.is_first_half], sample.index_N[~sample.is_first_half]
    assert len(first) == len(second)
    assert first.max() < second.min()
    assert sample.index_N.min() == WARM_STEPS + sample.stride - 1
    assert sample.index_N.max() == len(ids) - 2
    tokens = LANES * (WARM_STEPS + 8192 // LANES) + 1
    with pytest.raises(InputError, match=f"8,192 positions in 32 lanes take {tokens:,}; give"):
        choose_sample(store, 8192)


def test_layers_are_the_states_after_the_positions_tokens(store: TokenStore) -> None:
    sample = choose_sample(store, 512)
    model = make_network(store.tokenizer().vocab_size).double()
    layers = read_layers(model, sample)
    assert list(layers.by_name) == [
        *("embedding", "cell 1", "hidden 1", "cell 2", "hidden 2", "logits"),
    ]
    # Read again, one lane as one text, up to some of its positions.
    lane = 3
    for number in (0, 5):
        position = lane * (512 // LANES) + number
        end = WARM_STEPS + (number + 1) * sample.stride
        ids_T1 = torch.from_numpy(sample.ids_TB[:end, lane : lane + 1])
        with torch.no_grad():
            features_T1H, state = model.features(ids_T1, model.start_state(1))
        for n in range(2):
            for name, part in (("cell", state.cell), ("hidden", state.hidden)):
                row = layers.by_name[f"{name} {n + 1}"][position]
                torch.testing.assert_close(row, part[n][0])
        torch.testing.assert_close(layers.features_NH[position], features_T1H[-1, 0])
        torch.testing.assert_close(
            layers.by_name["embedding"][position], model.embedding[ids_T1[-1, 0]]
        )
    # Logits are the same up to a rotation and what the softmax does not see.
    logits_NV = model.logits(layers.features_NH)
    right_NV = logits_NV - logits_NV.mean(1, keepdim=True)
    right_NN = torch.cdist(right_NV, right_NV)
    found_NN = torch.cdist(layers.by_name["logits"], layers.by_name["logits"])
    # A distance is a root: it has half of the digits where it is zero.
    torch.testing.assert_close(found_NN, right_NN, rtol=1e-7, atol=1e-6)


def test_logits_of_an_adaptive_softmax_take_in_the_rows_of_its_tails(store: TokenStore) -> None:
    vocab_size = store.tokenizer().vocab_size
    model = make_network(vocab_size, cutoffs=(3, 8)).double()
    layers = read_layers(model, choose_sample(store, 512))
    logits_NV = layers.features_NH @ model.target_rows(torch.arange(vocab_size)).T
    right_NV = logits_NV - logits_NV.mean(1, keepdim=True)
    found = layers.by_name["logits"]
    # As above.
    torch.testing.assert_close(
        torch.cdist(found, found), torch.cdist(right_NV, right_NV), rtol=1e-7, atol=1e-6
    )


def test_classes_have_about_equal_shares_of_the_text() -> None:
    counts_V = np.array([1, 40, 0, 10, 10, 10, 10, 10, 9])
    # One token has the share of three classes, so that fewer are left.
    assert frequency_classes(counts_V).tolist() == [5, 0, 5, 1, 2, 2, 3, 4, 5]


def test_line_positions_and_open_brackets_are_those_of_the_text(store: TokenStore) -> None:
    sample = choose_sample(store, 1024)
    text = store.tokenizer().decode(store.ids("valid").tolist())
    line, open_ = [], []
    for index in sample.index_N:
        before = text[: index + 1]
        line.append(len(before) - (before.rfind("\n") + 1) if before[-1] != "\n" else 0)
        # `)` in the third line fits nothing, as the last one opened is square.
        since = before[before.rfind("f") :]
        open_.append(("(" in since and ")" not in since) or ("[" in since and "]" not in since))
    found = line_positions(store, sample)
    assert found is not None
    np.testing.assert_allclose(2**found - 1, line, atol=1e-9)
    assert brackets_open(store, sample).tolist() == open_  # type: ignore[union-attr]


def test_what_a_text_lacks_is_not_asked(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("abc" * 2000, encoding="utf-8")
    text = str(tmp_path / "text.txt")
    store = prepare([text], tmp_path / "store", StoreSettings(tokenizer="char", valid=text, test=0))
    sample = choose_sample(store, 512)
    assert brackets_open(store, sample) is None
    assert line_positions(store, sample) is None
