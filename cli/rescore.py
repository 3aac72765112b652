"""`sglm rescore`: the best candidate of each n-best list, by recogniser and language model."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sglm.cli import options
from sglm.cli.mixing import MixOption, mixed
from sglm.cli.streams import announce_terminal
from sglm.errors import InputError
from sglm.runtime.process import ended_by_interrupts

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from sglm.lm import LanguageModel
    from sglm.scoring.nbest import NBest

AlphaOption = Annotated[
    float | None,
    options.number("--alpha", float, "Weight of the log-probability; left out: 1, or tuned."),
]
BetaOption = Annotated[
    float | None,
    options.number("--beta", float, "Weight of the length; left out: 0, or tuned."),
]
WeightOption = Annotated[
    float | None, options.number("--weight", float, "Of the n-gram model, from 0 to 1.")
]
EosOption = Annotated[
    bool | None,
    typer.Option(
        "--eos/--no-eos",
        help="Score <eos> after each text; left out: where it ends a line (word level).",
        show_default=False,
    ),
]


def rescore(
    *,
    run: options.RunArgument,
    beams: Annotated[
        Path, typer.Argument(metavar="BEAMS", help="Lines text<TAB>score; - is stdin.")
    ],
    beam_size: Annotated[
        int, options.number("--beam-size", int, "How many lines belong to each utterance.")
    ],
    alpha: AlphaOption = None,
    beta: BetaOption = None,
    references: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="What was said, a line each, or a manifest (.json): word errors."
        ),
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="Choose what is left out of alpha and beta by them.")
    ] = False,
    mix: MixOption = None,
    weight: WeightOption = None,
    eos: EosOption = None,
    device: options.DeviceOption = options.Device.AUTO,
    as_json: options.JsonOption = False,
) -> None:
    """The best candidate of each n-best list, one a line.

    As in NeMo, the best has the largest score + alpha · log-probability + beta · length: the
    recogniser's score, the natural logarithm of the text's probability, and its length in
    characters. Equal candidates are scored once. With --references: the word error rates of the
    best by score alone, of the best by all, and of the candidates with the fewest errors (oracle).
    """
    with ended_by_interrupts():
        from sglm.lm import load
        from sglm.scoring.nbest import best_of, read_nbest
        from sglm.scoring.nbest import tune as tune_weights

    if beam_size < 1:
        raise InputError(f"--beam-size: a list of {beam_size} candidates; give 1 or more")
    if tune and references is None:
        raise InputError("--tune counts word errors: give --references FILE too")
    if tune and alpha is not None and beta is not None:
        raise InputError("--tune chooses --alpha, --beta or both; leave out what it shall choose")
    if str(beams) == "-":
        announce_terminal()
    lists = read_nbest(beams, beam_size)
    words, errors_LK = (0, None) if references is None else _word_errors(lists, references)
    lm = mixed(load(run, device.value), mix, weight)
    logprobs_LK = _logprobs(lm, lists, eos)
    if tune and errors_LK is not None:
        terms = (lists.scores_LK, logprobs_LK, lists.lengths())
        alpha, beta = tune_weights(terms, errors_LK, alpha=alpha, beta=beta)
    alpha, beta = 1.0 if alpha is None else alpha, 0.0 if beta is None else beta
    combined_LK = lists.scores_LK + alpha * logprobs_LK + beta * lists.lengths()
    results: dict[str, Any] = {
        "model": lm.name,
        "lists": len(combined_LK),
        "beam_size": beam_size,
        "alpha": alpha,
        "beta": beta,
        "tuned": tune,
        "wer": None,
    }
    if errors_LK is not None:
        results["wer"] = _rates(lists, combined_LK, errors_LK, words)
        _tell(results)
    _print(lists, combined_LK, logprobs_LK, best_of(combined_LK), results if as_json else None)


def _word_errors(lists: "NBest", references: Path) -> "tuple[int, npt.NDArray[np.int64]]":
    """The number of words in the references, and the errors of each candidate."""
    from sglm.scoring.nbest import read_references
    from sglm.scoring.word_errors import count_word_errors

    shape = lists.scores_LK.shape
    texts = read_references(references, lists)
    repeated = [text for text in texts for _ in range(shape[1])]
    counted = count_word_errors(lists.texts, repeated)
    return int(counted.words.reshape(shape)[:, 0].sum()), counted.errors.reshape(shape)


def _logprobs(lm: "LanguageModel", lists: "NBest", eos: bool | None) -> "npt.NDArray[np.float64]":
    import numpy as np

    ends = lm.tokenizer.kind == "word" if eos is None else eos
    unknown = 0

    def measure(texts: list[str]) -> list[float]:
        nonlocal unknown
        scores = lm.score(texts, eos=ends)
        unknown += sum(any(score.unk) for score in scores)
        return [score.logprob for score in scores]

    logprobs_LK = lists.measure(measure)
    if not np.isfinite(logprobs_LK).all():
        text = lists.texts[int(np.flatnonzero(~np.isfinite(logprobs_LK))[0])]
        raise InputError(
            f"{text!r} has no probability: an n-gram model without <unk> knows no other words; give"
            " a --weight below 1"
        )
    if unknown:
        typer.echo(
            f"warning: {unknown:,} candidates hold words that the vocabulary lacks; is the text"
            " written as the training text was?",
            err=True,
        )
    return logprobs_LK


def _rates(
    lists: "NBest",
    combined_LK: "npt.NDArray[np.float64]",
    errors_LK: "npt.NDArray[np.int64]",
    words: int,
) -> dict[str, float | int]:
    import numpy as np

    from sglm.scoring.nbest import best_of

    rows_L = np.arange(len(errors_LK))
    return {
        "before": float(errors_LK[rows_L, best_of(lists.scores_LK)].sum() / words),
        "after": float(errors_LK[rows_L, best_of(combined_LK)].sum() / words),
        "oracle": float(errors_LK.min(axis=1).sum() / words),
        "words": words,
    }


def _tell(results: dict[str, Any]) -> None:
    wer = results["wer"]
    tuned = ", tuned on these very lists" if results["tuned"] else ""
    typer.echo(
        f"word error rate {100 * wer['before']:.2f} % by score alone, {100 * wer['after']:.2f} %"
        f" rescored, {100 * wer['oracle']:.2f} % at best (oracle), of {wer['words']:,} words;"
        f" alpha {results['alpha']:g}, beta {results['beta']:g}{tuned}",
        err=True,
    )


def _print(
    lists: "NBest",
    combined_LK: "npt.NDArray[np.float64]",
    logprobs_LK: "npt.NDArray[np.float64]",
    best_L: "npt.NDArray[np.int64]",
    results: dict[str, Any] | None,
) -> None:
    beam_size = combined_LK.shape[1]
    texts = [lists.texts[row * beam_size + place] for row, place in enumerate(best_L.tolist())]
    if results is None:
        typer.echo("\n".join(texts))
        return
    results["best"] = [
        {
            "text": text,
            "candidate": place,
            "score": float(lists.scores_LK[row, place]),
            "logprob": float(logprobs_LK[row, place]),
            "combined": float(combined_LK[row, place]),
        }
        for row, (text, place) in enumerate(zip(texts, best_L.tolist(), strict=True))
    ]
    typer.echo(json.dumps(results))
