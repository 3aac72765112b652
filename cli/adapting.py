"""Adaptation on the command line: the options of `sglm eval`, and `sglm adapt-train`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sglm.cli import next_step, options
from sglm.errors import InputError
from sglm.runtime.process import ended_by_interrupts

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from sglm.adapt.build import Adaptation
    from sglm.adapt.synthetic_training import Progress
    from sglm.lm import LanguageModel
    from sglm.scoring.predictor import Predictor
    from sglm.scoring.results import Context, Evaluation
    from sglm.text.store import TokenStore

    Sample = npt.NDArray[np.integer[Any]] | None

AdaptOption = Annotated[
    str,
    typer.Option(
        "--adapt",
        metavar="none|cache|dynamic|synthetic|cache,dynamic",
        help="Learn from each token of the text after predicting it; synthetic needs `sglm"
        " adapt-train` first.",
    ),
]
SettingOption = Annotated[
    list[str] | None,
    typer.Option(
        "--setting",
        metavar="NAME=VALUE",
        help="Setting of --adapt, repeatable. cache: size, weight, sharpness; dynamic: rule,"
        " segment, decay, learning_rate; synthetic: steps.",
    ),
]
TuneOption = Annotated[
    bool,
    typer.Option(
        "--tune",
        help="Choose the settings of --adapt on the first half of the validation text; the second"
        " half, or --split test, is then evaluated.",
    ),
]


def parse_settings(given: Sequence[str] | None, adapt: str) -> dict[str, float | str]:
    """Parses the `NAME=VALUE` of each `--setting`.

    Raises:
        InputError: One has another form, or there is no `--adapt`.
    """
    if given and adapt == "none":
        raise InputError("--setting belongs to --adapt KIND; give that as well")
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
    data: Path | None,
    tune: bool,
    context: "Context",
) -> "LanguageModel":
    """Returns a model that adapts, made from a loaded one.

    Args:
        lm: The model.
        kind, settings: The values of `--adapt` and `--setting`.
        store: The store to evaluate. None: a text is evaluated.
        run: The model's run.
        data: The value of `--data`. If a text is evaluated, dynamic evaluation takes its training
            text from this store. None: from the store that the run was trained on.
        tune: Whether to choose the settings that were not given on the validation split.
        context: The context in which the text is read.

    Raises:
        InputError: The kind or a setting is unknown, or something that it needs is missing.
    """
    from sglm.adapt.build import Adaptation
    from sglm.text.store import TokenStore
    from sglm.train.record import training_store

    train = store
    if store is None and "dynamic" in kind:
        try:
            train = training_store(run) if data is None else TokenStore.open(data)
        except InputError as error:
            if data is not None:
                raise
            if settings.get("rule") == "rms":
                raise InputError(f"--setting rule=rms needs the training text. {error}") from None
            typer.echo(f"using rule=sgd, because the training text is missing ({error})", err=True)
    if train is not None:
        train.check_made_by(lm.tokenizer, lm.name)
    train = train if train is not None and "train" in train.splits else None
    adaptation = Adaptation(
        kind, network=lm.model, settings=settings, folder=lm.folder, train=train
    )
    if tune and store is not None:
        tune_on_valid(adaptation, store, settings, context=context, bos_id=lm.bos_id)
    if context == "reset" and kind != "cache":
        typer.echo(
            "note: weights change from segment to segment, so with --context reset a line shorter"
            f" than {adaptation.segment} tokens is read to its end before anything is learned",
            err=True,
        )
    return lm.with_adaptation(adaptation)


def tune_on_valid(
    adaptation: "Adaptation",
    store: "TokenStore",
    fixed: Mapping[str, float | str],
    *,
    context: "Context",
    bos_id: int,
) -> None:
    """Replaces the settings by the best ones on the first half of the validation split."""
    from sglm.adapt.tune import tune
    from sglm.scoring.evaluate import evaluate_split

    def perplexity_of(predictor: "Predictor[Any]") -> float:
        evaluation = evaluate_split(
            predictor, store, "valid", context=context, half="first", bos_id=bos_id
        )
        return evaluation.token_ppl

    def report(settings: dict[str, Any], ppl: float) -> None:
        changed = ", ".join(f"{name} {_shown(value)}" for name, value in settings.items())
        typer.echo(f"  {ppl:10,.2f}  {changed}", err=True)

    typer.echo(f"perplexity on the first half of the validation text of {store.folder}:", err=True)
    adaptation.settings = tune(
        adaptation,
        perplexity_of,
        fixed=tuple(fixed),
        on_tried=report,
    )


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def sample_of_split(lm: "LanguageModel", store: "TokenStore", split: str) -> "Sample":
    """Returns the first ids of a split, to time a static evaluation on; None for a static model."""
    import numpy as np

    from sglm.adapt.cost import SAMPLE_TOKENS

    if lm.adaptation is None:
        return None
    return _after_warm_up(lm, np.asarray(store.ids(split)[:SAMPLE_TOKENS]))


def sample_of_text(lm: "LanguageModel", text: Path, text_field: str) -> "Sample":
    """Likewise returns the first ids of a file; None also for stdin, which is read only once."""
    import numpy as np

    from sglm.adapt.cost import SAMPLE_TOKENS
    from sglm.text.user_text import pieces_of

    if lm.adaptation is None or str(text) == "-":
        return None
    ids: list[int] = []
    for piece in pieces_of(text, text_field)[0]:
        ids += lm.tokenizer.encode_piece(piece)
        if len(ids) >= SAMPLE_TOKENS:
            break
    return _after_warm_up(lm, np.array(ids[:SAMPLE_TOKENS], dtype=np.int64)) if ids else None


def _after_warm_up(lm: "LanguageModel", sample_N: "npt.NDArray[np.integer[Any]]") -> "Sample":
    """Returns the sample after reading its beginning, so that one-time work is not timed."""
    from sglm.scoring.stream import stream_nll

    stream_nll(lm.predictor, sample_N[:200], lm.bos_id)
    return sample_N


def with_cost(result: "Evaluation", lm: "LanguageModel", sample_N: "Sample") -> "Evaluation":
    """Returns the evaluation, with the cost of adapting added if the model adapted."""
    from sglm.adapt.cost import relative_time

    if lm.adaptation is None or sample_N is None:
        return result
    cost = relative_time(result, lm.adaptation.network, sample_N, bos_id=lm.bos_id)
    return replace(result, cost=cost)


def table_rows(result: "Evaluation") -> dict[str, str]:
    """Returns the table rows about adaptation; none if the model is static."""
    if result.adapt == "none":
        return {}
    return {
        "adapting by": result.adapt,
        **{f"  {name}": _shown(value) for name, value in result.adapt_settings.items()},
        "static evaluations": "not timed" if result.cost is None else f"{result.cost:.1f}",
    }


def adapt_train(
    *,
    run: options.RunArgument,
    data: options.OwnStoreOption = None,
    segments: Annotated[
        int | None,
        options.number(
            "--segments",
            int,
            "Number of segments of 64 tokens to read, from several places at once; left out: 120.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, options.number("--seed", int, "Seed of the initial weights.")] = 0,
    device: options.DeviceOption = options.Device.AUTO,
    as_json: options.JsonOption = False,
) -> None:
    """Train the network for `sglm eval --adapt synthetic`.

    The network learns from the first half of the validation text, which the model was not trained
    on. It is written beside the model, which does not change, and replaces an older network.
    """
    with ended_by_interrupts():
        from sglm.adapt.folder import save_gradients
        from sglm.adapt.synthetic import GradientsShape
        from sglm.adapt.synthetic_training import SEGMENTS, train_gradients
        from sglm.loading import load
        from sglm.scoring.evaluate import half_of
        from sglm.text.store import TokenStore
        from sglm.train.record import training_store

    if segments is not None and segments < 1:
        raise InputError(f"--segments: must be 1 or more, but is {segments}")
    lm = load(run, device.value)
    store = TokenStore.open(data) if data is not None else training_store(run)
    store.check_made_by(lm.tokenizer, lm.name)
    model = lm.model
    last: list[Progress] = []

    def report(progress: "Progress") -> None:
        last[:] = [progress]
        _print_progress(progress)

    gradients = train_gradients(
        model,
        half_of(store.ids("valid"), "first", eos_id=lm.tokenizer.eos_id, bos_id=lm.bos_id),
        bos_id=lm.bos_id,
        shape=GradientsShape(vocab_size=model.shape.vocab_size, features=model.shape.widths[-1]),
        seed=seed,
        segments=segments or SEGMENTS,
        on_progress=report,
    )
    assert lm.folder is not None  # the model was loaded from a folder
    save_gradients(gradients, lm.folder)
    if as_json:
        result = {"model": str(lm.folder), "static": last[0].static, "adapted": last[0].adapted}
        typer.echo(json.dumps(result))
    else:
        typer.echo(f"{lm.folder}: the network for synthetic gradients was written")
        typer.echo(f"next: {next_step.command('eval', run, '--adapt', 'synthetic')}")


def _print_progress(progress: "Progress") -> None:
    typer.echo(
        f"segment {progress.segment} of {progress.segments}: nats per token"
        f" {progress.adapted:.4f}, without adapting {progress.static:.4f}",
        err=True,
    )
