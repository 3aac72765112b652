"""The model of a run's newest checkpoint is the one that was trained."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sglm.analyze.subjects import find_subjects
from sglm.analyze.trained import load_trained
from sglm.config import Config
from sglm.text.store import TokenStore
from sglm.train.fit import fit


@pytest.mark.parametrize("averaging", [0.0, 0.5])
def test_it_is_the_trained_one_with_its_own_cutoffs(
    tiny_config: Callable[..., Config], word_store: TokenStore, tmp_path: Path, averaging: float
) -> None:
    """The last weights, to which the synthesizer belongs; `model/` is a mean where they average."""
    sections: dict[str, Any] = {
        "model": {"softmax": "adaptive"},  # cutoffs are chosen from the counts of the text
        "optimizer": {"averaging": averaging, "learning_rate": 0.01},
        "schedule": {"cycles": [40.0], "mode": "synthetic", "final_rate": 1.0},
        "train": {"evaluate_every_steps": 40},
    }
    fit(tiny_config(**sections), word_store, tmp_path / "run")
    (subject,) = find_subjects([tmp_path / "run"])
    saved, trained = subject.load(), load_trained(subject)
    assert trained.model.shape == saved.shape
    assert trained.estimator is not None
    ids_TB = torch.arange(12).view(6, 2)
    with torch.no_grad():
        one, other = (
            model.logits(model.features(ids_TB, model.start_state(2))[0])
            for model in (saved, trained.model)
        )
    assert torch.equal(one, other) == (not averaging)
