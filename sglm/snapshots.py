"""The models at the ends of a run's cycles: together as an ensemble, or averaged into one model.

A cycle with a warm restart ends in a minimum of its own (Huang et al. 2017): their probabilities
can be averaged (`load_ensemble`), or, where the minima lie in one basin, their weights
(`average_snapshots`; Izmailov et al. 2018).
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

_CYCLE = re.compile(rf"{CYCLE}\d+")  # and not a copy that somebody made beside it
_ONE_RUN = "the snapshots must be of one run: copy it again"


def snapshot_folders(run: str | os.PathLike[str], last: int | None = None) -> list[Path]:
    """The model folders of a run's cycle ends, the earliest first.

    Args:
        run: what `sglm train` wrote.
        last: only so many of the latest; None: all.

    Raises:
        InputError: there are none, or fewer than `last`.
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
    """The models of a run's cycle ends as one, whose probabilities are the mean of theirs.

    Costs as much time and memory as all of them together.

    Args:
        run: what `sglm train` wrote.
        device: as for `load`.
        last: only so many of the latest cycles; None: all.

    Raises:
        InputError: no snapshots, a damaged one, or no such device.
    """
    folders = snapshot_folders(run, last)
    check_same_tokenizer({each.name: each for each in folders}, _ONE_RUN)
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
    """Writes one model whose weights are the mean of those of a run's cycle ends.

    Args:
        run: what `sglm train` wrote.
        out: the model folder to be written; it must not exist.
        last: only so many of the latest cycles; None: all.

    Returns:
        The folder, which `load` and every command take as a model.

    Raises:
        InputError: no snapshots, damaged ones or of different shapes; something is at `out`.
    """
    folders, target = snapshot_folders(run, last), given_path("a folder", out)
    if target.exists():
        raise InputError(f"{target}: is there already; give another --out")
    check_same_tokenizer({each.name: each for each in folders}, _ONE_RUN)
    write_new_folder(
        _mean_of_weights(folders),
        target,
        load_tokenizer(folders[0]),
        aside=target.with_name(f".{target.name}.{os.getpid()}.partial"),
        extra=read_card(folders[0]).extra | {"averaged": [folder.name for folder in folders]},
    )
    return target


def _mean_of_weights(folders: list[Path]) -> LSTMLanguageModel:
    """Summed in float64, one model at a time."""
    first = read_card(folders[0])
    for folder in folders[1:]:
        if read_card(folder).shape != first.shape:
            raise InputError(f"{folder}: has another shape than {folders[0].name}; {_ONE_RUN}")
    model = load_weights(folders[0])
    sums = {name: weight.detach().double() for name, weight in model.named_parameters()}
    for folder in folders[1:]:
        other = load_weights(folder)
        for (name, order_V), own_V in zip(other.named_buffers(), model.buffers(), strict=True):
            if not torch.equal(order_V, own_V):
                raise InputError(f"{folder}: has another {name} than {folders[0].name}; {_ONE_RUN}")
        for name, weight in other.named_parameters():
            sums[name] += weight.detach()
    means = {name: total / len(folders) for name, total in sums.items()}
    model.load_state_dict({**model.state_dict(), **means})
    return model
