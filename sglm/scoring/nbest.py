"""Rescoring of the n-best lists of a speech or text recogniser with a language model.

The conventions are NeMo's (`eval_neural_rescorer.py`). A file has a line `text<TAB>score` for each
candidate, and as many candidates for each utterance as the beam is wide. The combined score is

    score + alpha · (log-probability of the text, in nats) + beta · (its length in characters).

Shapes: L lists, K candidates in each.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sglm.errors import InputError, short_repr
from sglm.text.lines import read_text_lines
from sglm.text.records import checked_text, read_json_lines

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
# The weights that `tune` tries, in a unit with which a term varies inside the lists as much as the
# recogniser's scores do.
ALPHAS = np.linspace(0, 4, 81)
BETAS = np.linspace(-2, 2, 41)
_CHUNK = 20_000  # the number of candidates that are scored together


@dataclass(frozen=True, kw_only=True)
class NBest:
    """N-best lists, each with K candidates."""

    texts: list[str]
    """The L·K candidates, list after list."""
    scores_LK: Floats
    """The recogniser's scores; larger is better."""

    def lengths(self) -> Floats:
        """Returns the length of each candidate in characters, `(L, K)`."""
        return np.array([len(text) for text in self.texts], float).reshape(self.scores_LK.shape)

    def measure(self, measure: Callable[[list[str]], Sequence[float]]) -> Floats:
        """Computes a number for each candidate, `(L, K)`, once for candidates with equal texts.

        Args:
            measure: Returns a number for each of a list of texts.
        """
        distinct = list(dict.fromkeys(self.texts))
        values: list[float] = []
        for start in range(0, len(distinct), _CHUNK):
            values += measure(distinct[start : start + _CHUNK])
        known = dict(zip(distinct, values, strict=True))
        return np.array([known[text] for text in self.texts]).reshape(self.scores_LK.shape)


def read_nbest(file: Path, beam_size: int) -> NBest:
    """Reads the n-best lists in a file.

    Args:
        file: The file; `-` is stdin.
        beam_size: The number of candidates in each list, K.

    Raises:
        InputError: The file does not exist or is empty; a line does not have two columns, its text
            is empty or its score is not a finite number; the last list is incomplete.
    """
    texts: list[str] = []
    scores: list[float] = []
    name = "stdin" if str(file) == "-" else str(file)
    for number, line in enumerate(read_text_lines(file), start=1):
        columns = line.text.rstrip("\r\n").split("\t")
        where = f"{name}, line {number}"
        if len(columns) != 2:
            raise InputError(
                f"{where}: {len(columns)} columns where there should be text<TAB>score"
                f" ({short_repr(line.text)})"
            )
        if not columns[0].strip():
            raise InputError(
                f"{where}: an empty candidate; leave it out and repeat another one of its list"
            )
        texts.append(columns[0])
        scores.append(_score(columns[1], where))
    if not texts:
        raise InputError(f"{name}: has no candidates")
    if len(texts) % beam_size:
        raise InputError(
            f"{name}: {len(texts):,} lines are not a multiple of the {beam_size:,} candidates of a"
            " list; --beam-size is the number of lines for each utterance, the same for all"
        )
    return NBest(texts=texts, scores_LK=np.array(scores).reshape(-1, beam_size))


def _score(column: str, where: str) -> float:
    try:
        score = float(column)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise InputError(
            f"{where}: the score {short_repr(column)} is not a finite number; the columns are"
            " text<TAB>score"
        )
    return score


def read_references(file: Path, lists: NBest) -> list[str]:
    """Reads the references: one text in each line, or in the field `text` of each JSON line.

    Raises:
        InputError: The file does not exist; the number of texts differs from the number of lists;
            there are no words at all.
    """
    if file.name.lower().removesuffix(".gz").endswith((".json", ".jsonl")):
        texts = [_reference_of(record, where) for where, record in read_json_lines(file)]
    else:
        texts = [piece.text.rstrip("\r\n") for piece in read_text_lines(file)]
    count, beam_size = lists.scores_LK.shape
    if len(texts) != count:
        raise InputError(
            f"{file}: {len(texts):,} references for {count:,} lists of {beam_size:,} candidates;"
            " give one for each list, in the same order"
        )
    if not any(text.split() for text in texts):
        raise InputError(f"{file}: has no words; a word error rate needs some")
    return texts


def _reference_of(record: object, where: str) -> str:
    """Returns the reference in a manifest's record."""
    if not isinstance(record, dict) or "text" not in record:
        raise InputError(f"{where}: no field 'text', which holds the reference in a manifest")
    return checked_text(record["text"], "text", where)


@dataclass(frozen=True, kw_only=True)
class Rescored:
    """N-best lists with the log-probabilities and weights that rank their candidates anew."""

    lists: NBest
    """The lists."""
    logprobs_LK: Floats
    """The log-probability of each candidate's text, in nats."""
    alpha: float
    """The weight of the log-probabilities."""
    beta: float
    """The weight of the lengths."""

    def combined(self) -> Floats:
        """Computes score + alpha · log-probability + beta · length, `(L, K)`."""
        weighted_LK = self.alpha * self.logprobs_LK + self.beta * self.lists.lengths()
        return self.lists.scores_LK + weighted_LK

    def best(self) -> list[dict[str, Any]]:
        """Returns the best candidate of each list: text, index in the list (from 0), and scores."""
        combined_LK, size = self.combined(), self.logprobs_LK.shape[1]
        return [
            {
                "text": self.lists.texts[row * size + place],
                "candidate": place,
                "score": float(self.lists.scores_LK[row, place]),
                "logprob": float(self.logprobs_LK[row, place]),
                "combined": float(combined_LK[row, place]),
            }
            for row, place in enumerate(best_of(combined_LK).tolist())
        ]


def best_of(scores_LK: Floats) -> Counts:
    """Returns the index of each list's best candidate, the first among equals, `(L,)`."""
    places_L: Counts = scores_LK.argmax(axis=1)
    return places_L


def tune(
    lists: NBest,
    logprobs_LK: Floats,
    errors_LK: Counts,
    *,
    alpha: float | None = None,
    beta: float | None = None,
) -> tuple[float, float]:
    """Searches a grid for the weights with the fewest word errors; among equals, the smallest.

    Only differences between the candidates of a list matter. So the unit of `ALPHAS` and `BETAS` is
    the weight with which a term has the same standard deviation inside the lists as the scores.

    Args:
        lists: The n-best lists.
        logprobs_LK: The log-probability of each candidate's text, in nats.
        errors_LK: The number of word errors of each candidate.
        alpha, beta: A fixed weight. None: to be tuned.

    Returns:
        alpha and beta.
    """
    scores_LK, lengths_LK = lists.scores_LK, lists.lengths()
    alphas = _grid(ALPHAS, scores_LK, logprobs_LK) if alpha is None else [alpha]
    betas = _grid(BETAS, scores_LK, lengths_LK) if beta is None else [beta]
    rows_L = np.arange(len(scores_LK))
    fewest, best = math.inf, (0.0, 0.0)
    for one in alphas:
        partly_LK = scores_LK + one * logprobs_LK
        for other in betas:
            errors = errors_LK[rows_L, best_of(partly_LK + other * lengths_LK)].sum()
            if errors < fewest:
                fewest, best = errors, (one, other)
    return best


def _grid(multiples: Floats, scores_LK: Floats, term_LK: Floats) -> list[float]:
    """Returns the weights to try, the smallest first. They are rounded to three digits, so that a
    printed weight is the one that was tried; −0 becomes 0."""
    spread = _spread(term_LK)
    unit = _spread(scores_LK) / spread if spread > 0 else 0.0
    return sorted({float(f"{value:.3g}") + 0.0 for value in multiples * unit}, key=abs)


def _spread(values_LK: Floats) -> float:
    """Returns the standard deviation inside the lists."""
    return float(np.sqrt(values_LK.var(axis=1).mean()))
