"""Adaptation on the command line: `sglm eval --adapt`, and `sglm adapt-train`."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sglm.cli import next_step, options
from sglm.errors import InputError
from sglm.runtime.process import ended_by_interrupts

if TYPE_CHECKING:
    from sglm.adapt.build import Adaptation
    from sglm.adapt.synthetic_training import Progress
    from sglm.lm import LanguageModel
    from sglm.scoring.results import Evaluation
    from sglm.text.store import TokenStore

AdaptOption = Annotated[
    str,
    typer.Option(
        "--adapt",
        metavar="none|cache|dynamic|synthetic|cache,dynamic",
        help="Learn from the text while reading it, each token after it was predicted.",
    ),
]
SettingOption = Annotated[
    list[str] | None,
    typer.Option("--setting", metavar="NAME=VALUE", help="A setting of --adapt; repeatable."),
]
TuneOption = Annotated[
    bool,
    typer.Option(
        "--tune",
        help="Choose the settings of --adapt on the first half of the validation text; the second"
        " is evaluated, or --split test.",
    ),
]


def parse_settings(given: Sequence[str] | None, adapt: str) -> dict[str, float | str]:
    """`NAME=VALUE` of `--setting`.

    Raises:
        InputError: something else, or nothing adapts.
    """
    if given and adapt == "none":
        raise InputError("--setting is one of --adapt KIND; give that as well")
    settings: dict[str, float | str] = {}
    for each in given or ():
        name, equals, value = each.partition("=")
        if not (name and equals and value):
            raise InputError(f"--setting: {each!r} is not NAME=VALUE")
        settings[name] = _number(value)
    return settings


def _number(text: str) -> float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def adapted(
    lm: "LanguageModel",
    kind: str,
    settings: Mapping[str, float | str],
    *,
    store: "TokenStore | None",
    run: Path,
    tune: bool,
) -> "LanguageModel":
    """A loaded model as one that adapts.

    Args:
        lm: the model.
        kind, settings: as they were given.
        store: that is evaluated; None: a text is.
        run: the model's; without a store, the one that it was trained on is taken.
        tune: choose the other settings on the store's validation split.
    """
    from sglm.adapt.build import Adaptation
    from sglm.train.record import trained_on

    train = store
    if store is not None:
        store.check_made_by(lm.tokenizer, lm.name)
    elif "dynamic" in kind:
        with suppress(InputError):
            train = trained_on(run)
    train = train if train is not None and "train" in train.splits else None
    if train is None and "dynamic" in kind and "rule" not in settings:
        typer.echo("no training text is known, so the rule is sgd", err=True)
    adaptation = Adaptation(
        kind, network=lm.model, settings=settings, folder=lm.folder, train=train
    )
    if tune and store is not None:
        tune_on_valid(adaptation, store, settings)
    return lm.reading_by(adaptation)


def tune_on_valid(
    adaptation: "Adaptation", store: "TokenStore", fixed: Mapping[str, float | str]
) -> None:
    """Replaces the settings by those chosen on the first half of the validation split."""
    from sglm.adapt.tune import tune
    from sglm.scoring.evaluate import half_of

    def report(settings: dict[str, Any], ppl: float) -> None:
        changed = ", ".join(f"{name} {_shown(value)}" for name, value in settings.items())
        typer.echo(f"  {ppl:10,.2f}  {changed}", err=True)

    typer.echo(f"perplexity on the first half of {store.folder}'s valid:", err=True)
    adaptation.settings = tune(
        adaptation,
        half_of(store.ids("valid"), "first", store.tokenizer().eos_id),
        eos_id=store.tokenizer().eos_id,
        fixed=tuple(fixed),
        on_tried=report,
    )


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def with_cost(result: "Evaluation", lm: "LanguageModel") -> "Evaluation":
    """The same evaluation; if the model adapted, with what that cost."""
    from sglm.adapt.cost import in_static_evaluations

    if lm.adaptation is None:
        return result
    return replace(result, cost=in_static_evaluations(result, lm.adaptation.network))


def table_rows(result: "Evaluation") -> dict[str, str]:
    """What the table for people says of it."""
    if result.adapt == "none":
        return {}
    return {
        "adapting by": result.adapt,
        **{f"  {name}": _shown(value) for name, value in result.adapt_settings.items()},
        "static evaluations": f"{result.cost:.1f}",
    }


def adapt_train(
    *,
    run: options.RunArgument,
    data: options.OwnStoreOption = None,
    segments: Annotated[
        int | None,
        options.number(
            "--segments", int, "How many segments of each lane to read.", show_default=False
        ),
    ] = None,
    seed: Annotated[int, options.number("--seed", int, "Of the network's first weights.")] = 0,
    device: options.DeviceOption = options.Device.AUTO,
    as_json: options.JsonOption = False,
) -> None:
    """Train the network for `sglm eval --adapt synthetic`.

    On the first half of the validation text, which the model has not learned from; the model stays
    as it is. The network is written beside it, and replaces one that is there.
    """
    with ended_by_interrupts():
        from sglm.adapt.folder import save_gradients
        from sglm.adapt.synthetic import GradientsShape
        from sglm.adapt.synthetic_training import SEGMENTS, train_gradients
        from sglm.lm import load
        from sglm.scoring.evaluate import half_of
        from sglm.text.store import TokenStore
        from sglm.train.record import trained_on

    if segments is not None and segments < 1:
        raise InputError(f"--segments: must be 1 or more, but is {segments}")
    lm = load(run, device.value)
    store = TokenStore.open(data) if data is not None else trained_on(run)
    store.check_made_by(lm.tokenizer, lm.name)
    model = lm.model
    last: list[Progress] = []

    def report(progress: "Progress") -> None:
        last[:] = [progress]
        _print_progress(progress)

    gradients = train_gradients(
        model,
        half_of(store.ids("valid"), "first", store.tokenizer().eos_id),
        eos_id=lm.tokenizer.eos_id,
        shape=GradientsShape(vocab_size=model.shape.vocab_size, features=model.shape.widths[-1]),
        seed=seed,
        segments=segments or SEGMENTS,
        on_progress=report,
    )
    assert lm.folder is not None  # it was loaded from one
    save_gradients(gradients, lm.folder)
    if as_json:
        result = {"model": str(lm.folder), "static": last[0].static, "adapted": last[0].adapted}
        typer.echo(json.dumps(result))
    else:
        typer.echo(f"{lm.folder}: its network for synthetic gradients is there")
        typer.echo(f"next: {next_step.command('eval', run, '--adapt', 'synthetic')}")


def _print_progress(progress: "Progress") -> None:
    typer.echo(
        f"segment {progress.segment} of {progress.segments}: nats per token"
        f" {progress.adapted:.4f}, without adapting {progress.static:.4f}",
        err=True,
    )
