"""Training from Python: `sglm.fit`, what `sglm train` does."""

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from sglm.config import Config, load_config, parse_config
from sglm.config.load import ABOUT
from sglm.errors import InputError, short_repr
from sglm.optim.precision import make_precision
from sglm.runtime.device import own_gpu, pick_device, torch_of_a_fresh_process
from sglm.storage.untrusted import given_path
from sglm.text.store import TokenStore
from sglm.train.log.run_log import OnReport
from sglm.train.loop import Outcome, train
from sglm.train.starting_point import StartingPoint

_OF_A_STREAM = ("write", "flush", "isatty")


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
    """Trains a model, or continues a training that was interrupted, as `sglm train` does, whatever
    modes of torch the caller is in.

    >>> sglm.fit("tiny", "data/docs", "runs/docs", on_report=print)
    >>> lm = sglm.load("runs/docs")

    Args:
        config: the name of a recipe, a TOML file, a mapping of sections (`{"model": {"hidden":
            64}}`; what is left out has its default), or a `Config`.
        store: that `sglm prep` wrote.
        out: the run's folder; a run there is continued.
        overrides: `"section.key=value"`, as of `--set`; not with a mapping or a `Config`.
        start_from: a run or a model whose weights the training starts from; None: random ones.
        device: `"auto"`, `"cpu"`, `"cuda"`.
        precision: `"auto"`, `"fp32"`, `"bf16"`, `"fp16"`.
        on_report: called with a dictionary after every logged interval (`split` is `"train"`) and
            every validation (`"valid"`): `step`, `tokens_seen`, `split`, `nll_per_token` (nats),
            `token_ppl`, `lr`, `mode`, `cycle`, `seconds` (of training so far); the former also has
            `tokens_per_s`, the latter `norms`. An exception that it raises ends the training,
            which the same call continues from the last checkpoint.
        console: where lines of progress go; None: nowhere.

    Returns:
        How it ended: `steps`, `seconds`, `best_token_ppl`, ….

    Raises:
        ConfigError, InputError: a wrong setting, store, folder or starting point.
        SglmError: losses are not finite, also after going back to a checkpoint.
    """
    if console is not None and not all(hasattr(console, name) for name in _OF_A_STREAM):
        raise InputError(
            f"console is a text stream, as sys.stderr, with {', '.join(_OF_A_STREAM)}; this is"
            f" {short_repr(console)}"
        )
    if on_report is not None and not callable(on_report):
        raise InputError(f"on_report is called, but is {type(on_report).__name__}; give a function")
    settings = _settings(config, overrides)
    with torch_of_a_fresh_process():
        return train(
            settings,
            store if isinstance(store, TokenStore) else TokenStore.open(store),
            given_path("a run's folder", out),
            precision=make_precision(precision, own_gpu(pick_device(device))),
            console=console or io.StringIO(),
            start=None if start_from is None else StartingPoint.open(start_from),
            on_report=on_report,
        )


def _settings(config: Any, overrides: Any) -> Config:
    """The configuration, from what a caller gave for it.

    Raises:
        ConfigError, InputError: that is none.
    """
    if isinstance(overrides, str):
        raise InputError(f"overrides are a list, but this is one str: [{overrides!r}]")
    if not isinstance(overrides, Sequence) or not all(isinstance(each, str) for each in overrides):
        raise InputError(f"overrides are a list of str, but this is {short_repr(overrides)}")
    if isinstance(config, Config | Mapping):
        if overrides:
            raise InputError("overrides change a recipe or a file; change the values themselves")
        if isinstance(config, Config):
            return config
        return parse_config({key: config[key] for key in config if key != ABOUT}, "config")
    return load_config(os.fspath(given_path("a configuration", config)), list(overrides))
