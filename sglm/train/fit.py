"""Training from Python: `sglm.fit` does what `sglm train` does."""

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from sglm.config import Config, load_config, parse_config
from sglm.config.load import ABOUT
from sglm.errors import InputError, short_repr
from sglm.optim.precision import make_precision
from sglm.runtime.device import claim_gpu, default_torch_modes, pick_device
from sglm.storage.untrusted import given_path
from sglm.text.store import TokenStore
from sglm.train.log.run_log import OnReport
from sglm.train.loop import Outcome, train
from sglm.train.starting_point import StartingPoint

_STREAM_METHODS = ("write", "flush", "isatty")


def fit(
    config: Config | Mapping[str, Any] | str | os.PathLike[str],
    store: TokenStore | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    overrides: Sequence[str] = (),
    start_from: str | os.PathLike[str] | None = None,
    device: str = "auto",
    precision: str = "auto",
    on_report: OnReport | None = None,
    console: TextIO | None = None,
) -> Outcome:
    """Trains a model as `sglm train` does, or continues an interrupted training. The caller's torch
    modes (autocast, inference mode, default dtype and device) have no influence.

    >>> sglm.fit("tiny", "data/docs", "runs/docs", on_report=print)
    >>> lm = sglm.load("runs/docs")

    Args:
        config: The name of a recipe, the path of a TOML file, a mapping of sections (`{"model":
            {"hidden": 64}}`; settings left out have their defaults), or a `Config`.
        store: The token store that `sglm prep` wrote: its folder, or an open one.
        out: The run's folder; a run there is continued.
        overrides: Settings `"section.key=value"`, as for `--set`; not with a mapping or a `Config`.
        start_from: A run or a model whose weights the training starts from. None: random weights.
        device: `"auto"`, `"cpu"` or `"cuda"`.
        precision: `"auto"`, `"fp32"`, `"bf16"` or `"fp16"`.
        on_report: Called with a dictionary after every logged interval (`split` is `"train"`) and
            every validation (`"valid"`): `step`, `tokens_seen`, `split`, `nll_per_token` (nats),
            `token_ppl`, `lr`, `mode`, `cycle`, `seconds` (of training so far); an interval also has
            `tokens_per_s`, a validation `norms`. An exception from it ends the training; the same
            call then continues from the last checkpoint.
        console: A text stream for progress lines. None: they are not shown.

    Returns:
        The outcome of the run: `steps`, `seconds`, `best_token_ppl`, ….

    Raises:
        ConfigError, InputError: A setting, the store, a folder or the starting point is wrong.
        SglmError: Losses or gradients are not finite, even after going back to a checkpoint.
    """
    if console is not None and not all(hasattr(console, name) for name in _STREAM_METHODS):
        raise InputError(
            f"console must be a text stream such as sys.stderr, with {', '.join(_STREAM_METHODS)},"
            f" not {short_repr(console)}"
        )
    if on_report is not None and not callable(on_report):
        raise InputError(f"on_report must be a function, not {type(on_report).__name__}")
    settings = _settings(config, overrides)
    with default_torch_modes():
        return train(
            settings,
            store if isinstance(store, TokenStore) else TokenStore.open(store),
            given_path("a run's folder", out),
            precision=make_precision(precision, claim_gpu(pick_device(device))),
            console=console or io.StringIO(),
            start=None if start_from is None else StartingPoint.open(start_from),
            on_report=on_report,
        )


def _settings(config: Any, overrides: Any) -> Config:
    """Returns the configuration that the caller's arguments describe.

    Raises:
        ConfigError, InputError: They do not describe a valid one.
    """
    if isinstance(overrides, str):
        raise InputError(f"overrides must be a list, not one str; give [{overrides!r}]")
    if not isinstance(overrides, Sequence) or not all(isinstance(each, str) for each in overrides):
        raise InputError(f"overrides must be a list of str, not {short_repr(overrides)}")
    if isinstance(config, Config | Mapping):
        if overrides:
            raise InputError(
                "overrides apply to a recipe or a file only; change the values in config itself"
            )
        if isinstance(config, Config):
            return config
        return parse_config({key: config[key] for key in config if key != ABOUT}, "config")
    return load_config(os.fspath(given_path("a configuration", config)), list(overrides))
