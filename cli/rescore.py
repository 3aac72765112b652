"""`sglm rescore`: chooses from n-best lists by the recogniser and a language model."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sglm.cli import options
from sglm.cli.mixing import MixOption, check_both, mixed
from sglm.cli.streams import announce_terminal
from sglm.errors import InputError
from sglm.runtime.process import ended_by_interrupts

if TYPE_CHECKING:
    from sglm.lm import LanguageModel
    from sglm.scoring.nbest import Floats, NBest, Rescored
    from sglm.scoring.word_errors import WordErrors

ReferencesOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="What was said, a line per utterance, or a manifest (.json): prints word error rates.",
    ),
]
AlphaOption = Annotated[
    float | None,
    options.number("--alpha", float, "Weight of the log-probability; left out: 1, or tuned."),
]
BetaOption = Annotated[
    float | None,
    options.number("--beta", float, "Weight of the length; left out: 0, or tuned."),
]
WeightOption = Annotated[
    float | None, options.number("--weight", float, "Weight of the n-gram model, from 0 to 1.")
]
EosOption = Annotated[
    bool | None,
    typer.Option(
        "--eos/--no-eos",
        help="Score the end of each text; left out: if each line of the training text was a text.",
        show_default=False,
    ),
]


def rescore(
    *,
    run: options.RunArgument,
    beams: Annotated[
        Path, typer.Argument(metavar="BEAMS", help="A file of lines text<TAB>score; - is stdin.")
    ],
    beam_size: Annotated[
        int, options.number("--beam-size", int, "Number of candidates (lines) of each utterance.")
    ],
    alpha: AlphaOption = None,
    beta: BetaOption = None,
    references: ReferencesOption = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Choose alpha and beta, if not given, by word errors.")
    ] = False,
    mix: MixOption = None,
    weight: WeightOption = None,
    eos: EosOption = None,
    device: options.DeviceOption = options.Device.AUTO,
    as_json: options.JsonOption = False,
) -> None:
    """Print the best candidate of each n-best list, one per line.

    As in NeMo, the best one has the largest score + alpha · log-probability + beta · length, that
    is the recogniser's score, the natural logarithm of the text's probability, and its length in
    characters. Equal candidates are scored once. --references prints the word error rates of the
    best by score alone, of those rescored, and of those with the fewest errors (oracle).
    """
    with ended_by_interrupts():
        from sglm.loading import load
        from sglm.scoring.nbest import Rescored
        from sglm.scoring.nbest import tune as tune_weights

    if beam_size < 1:
        raise InputError(f"--beam-size: a list of {beam_size} candidates; give 1 or more")
    if tune and (references is None or None not in (alpha, beta)):
        raise InputError(
            "--tune finds --alpha and --beta, or the one that is left out, by --references FILE"
        )
    check_both(mix, weight)
    lists, counted = _read(beams, beam_size, references)
    lm = mixed(load(run, device.value), mix, weight)
    logprobs_LK = _logprobs(lm, lists, eos)
    if tune and counted is not None:
        alpha, beta = tune_weights(lists, logprobs_LK, counted.errors_LK, alpha=alpha, beta=beta)
    rescored = Rescored(
        lists=lists,
        logprobs_LK=logprobs_LK,
        alpha=1.0 if alpha is None else alpha,
        beta=0.0 if beta is None else beta,
    )
    results = _results(rescored, counted, model=lm.name, tuned=tune)
    if counted is not None:
        _print_word_error_rates(results)
    if as_json:
        typer.echo(json.dumps(results))
    else:
        typer.echo("\n".join(candidate["text"] for candidate in results["best"]), color=True)


def _read(
    beams: Path, beam_size: int, references: Path | None
) -> "tuple[NBest, WordErrors | None]":
    """Returns the lists, and their word errors if there are references."""
    from sglm.scoring.nbest import read_nbest, read_references
    from sglm.scoring.word_errors import count_word_errors

    if str(beams) == "-":
        announce_terminal()
    lists = read_nbest(beams, beam_size)
    if references is None:
        return lists, None
    return lists, count_word_errors(lists, read_references(references, lists))


def _results(
    rescored: "Rescored", counted: "WordErrors | None", *, model: str, tuned: bool
) -> dict[str, Any]:
    """Returns the object that `--json` prints."""
    from sglm.scoring.nbest import best_of

    scores_LK = rescored.lists.scores_LK
    wer = counted and {
        "before": counted.rate(best_of(scores_LK)),
        "after": counted.rate(best_of(rescored.combined())),
        "oracle": counted.oracle,
        "words": counted.words,
    }
    return {
        "model": model,
        "lists": scores_LK.shape[0],
        "beam_size": scores_LK.shape[1],
        "alpha": rescored.alpha,
        "beta": rescored.beta,
        "tuned": tuned,
        "wer": wer,
        "best": rescored.best(),
    }


def _logprobs(lm: "LanguageModel", lists: "NBest", eos: bool | None) -> "Floats":
    import numpy as np

    from sglm.text.user_text import TextError

    ends = lm.lines_are_texts if eos is None else eos
    unknown = 0

    def measure(texts: list[str]) -> list[float]:
        nonlocal unknown
        try:
            scores = lm.score(texts, eos=ends)
        except TextError as error:
            raise InputError(f"{texts[error.number - 1]!r}: {error.problem}") from error
        unknown += sum(any(score.unk) for score in scores)
        return [score.logprob for score in scores]

    logprobs_LK = lists.measure(measure)
    impossible = np.flatnonzero(~np.isfinite(logprobs_LK))
    if len(impossible):
        raise InputError(
            f"{lists.texts[impossible[0]]!r} has probability 0: the n-gram model alone does not"
            " know all of its words; give a --weight below 1"
        )
    if unknown:
        typer.echo(
            f"warning: {unknown:,} candidates hold words that the vocabulary lacks; was the text"
            " tokenized like the training text?",
            err=True,
        )
    return logprobs_LK


def _print_word_error_rates(results: dict[str, Any]) -> None:
    wer, tuned = results["wer"], ", tuned on these very lists" if results["tuned"] else ""
    typer.echo(
        f"word error rate {100 * wer['before']:.2f} % by score alone, {100 * wer['after']:.2f} %"
        f" rescored, {100 * wer['oracle']:.2f} % at best (oracle), of {wer['words']:,} words;"
        f" alpha {results['alpha']:g}, beta {results['beta']:g}{tuned}",
        err=True,
    )
