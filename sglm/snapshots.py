"""Snapshots, the models at the ends of a run's cycles: as an ensemble, or averaged into one model.

With warm restarts, each cycle ends in a minimum of its own (Huang et al. 2017). `load_ensemble`
averages the probabilities of the snapshots. Where the minima lie in one basin, their weights can be
averaged too (`average_snapshots`; Izmailov et al. 2018).
"""

import os
import re
from pathlib import Path

import torch

from sglm.errors import InputError
from sglm.lm import LanguageModel
from sglm.loading import load
from sglm.model.folder import check_same_tokenizer, load_weights, read_card
from sglm.model.language_model import LSTMLanguageModel
from sglm.model.new_folder import write_new_folder
from sglm.scoring.arguments import whole_number
from sglm.scoring.mixture import Mixture
from sglm.storage.names import CYCLE, SNAPSHOTS
from sglm.storage.untrusted import given_path
from sglm.text.tokenizer import load_tokenizer

_CYCLE = re.compile(rf"{CYCLE}\d+")  # excludes copies of snapshots with other names
_ONE_RUN_MESSAGE = "the snapshots must be of one run: copy it again"


def snapshot_folders(run: str | os.PathLike[str], last: int | None = None) -> list[Path]:
    """Returns the model folders of a run's snapshots, the earliest first.

    Args:
        run: The folder that `sglm train` wrote.
        last: The number of snapshots, counted from the latest. None: all.

    Raises:
        InputError: There are no snapshots, or fewer than `last`.
    """
    path = given_path("a run", run)
    last = None if last is None else whole_number("last", last)
    found = (each for each in (path / SNAPSHOTS).glob(f"{CYCLE}*") if _CYCLE.fullmatch(each.name))
    folders = sorted(found, key=lambda each: (len(each.name), each.name))  # 1000 is after 999
    if not folders:
        problem = "has no snapshots" if path.exists() else "no such folder"
        raise InputError(
            f"{path}: {problem}; give the folder that `sglm train` wrote, once its first cycle has"
            " ended"
        )
    if last is not None and not 1 <= last <= len(folders):
        raise InputError(
            f"{path}: cannot take its last {last} snapshots; ask for 1 to {len(folders)}"
        )
    return folders if last is None else folders[-last:]


def load_ensemble(
    run: str | os.PathLike[str],
    device: str | torch.device = "auto",
    *,
    last: int | None = None,
) -> LanguageModel:
    """Loads the snapshots of a run as one model, whose probabilities are the mean of theirs.

    The ensemble takes as much time and memory as all snapshots together.

    Args:
        run: The folder that `sglm train` wrote.
        device: As for `load`.
        last: The number of snapshots, counted from the latest. None: all.

    Raises:
        InputError: There are no snapshots, or fewer than `last`; one is damaged; the device does
            not exist.
    """
    folders = snapshot_folders(run, last)
    check_same_tokenizer({each.name: each for each in folders}, _ONE_RUN_MESSAGE)
    members = [load(folder, device) for folder in folders]
    count = len(members)
    return LanguageModel(
        Mixture([member.predictor for member in members]),
        tokenizer=members[0].tokenizer,
        name=f"{os.fspath(run)} ({count} snapshot{'s' if count > 1 else ''})",
        training_lines=members[0].training_lines,
        bos_id=members[0].bos_id,
    )


def average_snapshots(
    run: str | os.PathLike[str], out: str | os.PathLike[str], *, last: int | None = None
) -> Path:
    """Writes one model whose weights are the mean of the weights of a run's snapshots.

    Args:
        run: The folder that `sglm train` wrote.
        out: The model folder to write; it must not exist.
        last: The number of snapshots, counted from the latest. None: all.

    Returns:
        The folder `out`, which `load` and every command accept as a model.

    Raises:
        InputError: There are no snapshots, or fewer than `last`; one is damaged, or their shapes
            differ; `out` exists.
    """
    folders, target = snapshot_folders(run, last), given_path("a folder", out)
    if target.exists():
        raise InputError(f"{target}: already exists; give another --out")
    check_same_tokenizer({each.name: each for each in folders}, _ONE_RUN_MESSAGE)
    write_new_folder(
        _mean_of_weights(folders),
        target,
        load_tokenizer(folders[0]),
        aside=target.with_name(f".{target.name}.{os.getpid()}.partial"),
        extra=read_card(folders[0]).extra | {"averaged": [folder.name for folder in folders]},
    )
    return target


def _mean_of_weights(folders: list[Path]) -> LSTMLanguageModel:
    """Returns the model with the mean weights, summed in float64, one model at a time."""
    first = read_card(folders[0])
    for folder in folders[1:]:
        if read_card(folder).shape != first.shape:
            raise InputError(
                f"{folder}: has another shape than {folders[0].name}; {_ONE_RUN_MESSAGE}"
            )
    model = load_weights(folders[0])
    sums = {name: weight.detach().double() for name, weight in model.named_parameters()}
    for folder in folders[1:]:
        other = load_weights(folder)
        for (name, order_V), own_V in zip(other.named_buffers(), model.buffers(), strict=True):
            if not torch.equal(order_V, own_V):
                raise InputError(
                    f"{folder}: has another {name} than {folders[0].name}; {_ONE_RUN_MESSAGE}"
                )
        for name, weight in other.named_parameters():
            sums[name] += weight.detach()
    means = {name: total / len(folders) for name, total in sums.items()}
    model.load_state_dict({**model.state_dict(), **means})
    return model
