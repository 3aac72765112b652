"""LSTM language models trained with alternating synthetic and real gradients.

>>> lm = sglm.load("runs/tiny")
>>> lm.score("the cat sat").ppl
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sglm.errors import ConfigError as ConfigError
    from sglm.errors import InputError as InputError
    from sglm.errors import SglmError as SglmError
    from sglm.lm import LanguageModel as LanguageModel
    from sglm.loading import load as load
    from sglm.scoring.incremental import ScoringState as ScoringState
    from sglm.scoring.results import Score as Score
    from sglm.snapshots import average_snapshots as average_snapshots
    from sglm.snapshots import load_ensemble as load_ensemble
    from sglm.train.fit import fit as fit

__version__ = "0.1.0"

# Imported on first use, so that `import sglm` and `sglm --help` do not wait for torch.
_HOMES = {
    "load": "sglm.loading",
    "LanguageModel": "sglm.lm",
    "average_snapshots": "sglm.snapshots",
    "fit": "sglm.train.fit",
    "load_ensemble": "sglm.snapshots",
    "Score": "sglm.scoring.results",
    "ScoringState": "sglm.scoring.incremental",
    "SglmError": "sglm.errors",
    "InputError": "sglm.errors",
    "ConfigError": "sglm.errors",
}
__all__ = [
    "ConfigError",
    "InputError",
    "LanguageModel",
    "Score",
    "ScoringState",
    "SglmError",
    "average_snapshots",
    "fit",
    "load",
    "load_ensemble",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sglm' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
