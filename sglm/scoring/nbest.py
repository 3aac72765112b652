"""N-best lists of a speech or text recogniser, rescored by a language model.

The convention is NeMo's (its `eval_neural_rescorer.py`): a file of lines `text<TAB>score`, as many
for every utterance as the beam is wide, and a candidate is as good as

    score + alpha · (log-probability of the text, in nats) + beta · (its length in characters).

Shapes: L lists, K candidates in each, P and Q values of the two weights.
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
# The weights that are tried, as multiples of the one with which the term's differences inside the
# lists are as large as those of the scores: see `tune`.
ALPHAS = np.linspace(0, 4, 81)
BETAS = np.linspace(-2, 2, 41)
_CHUNK = 20_000  # candidates that are scored together


@dataclass(frozen=True, kw_only=True)
class NBest:
    """Lists of candidates, one after the other."""

    texts: list[str]
    """L·K of them."""
    scores_LK: Floats
    """The recogniser's, larger is better."""

    def lengths(self) -> Floats:
        """Of each candidate in characters, `(L, K)`."""
        return np.array([len(text) for text in self.texts], float).reshape(self.scores_LK.shape)

    def measure(self, measure: Callable[[list[str]], Sequence[float]]) -> Floats:
        """A number for each candidate; candidates with equal texts are measured once.

        Args:
            measure: of some texts.
        """
        distinct = list(dict.fromkeys(self.texts))
        values: list[float] = []
        for start in range(0, len(distinct), _CHUNK):
            values += measure(distinct[start : start + _CHUNK])
        known = dict(zip(distinct, values, strict=True))
        return np.array([known[text] for text in self.texts]).reshape(self.scores_LK.shape)


def read_nbest(file: Path, beam_size: int) -> NBest:
    """The lists in a file.

    Args:
        file: `-` is stdin.
        beam_size: K.

    Raises:
        InputError: no such file; a line of other columns, an empty text or a score that is no
            finite number; an incomplete list.
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
        raise InputError(f"{name}: no candidates in there")
    if len(texts) % beam_size:
        raise InputError(
            f"{name}: {len(texts):,} lines are no multiple of the {beam_size:,} candidates of a"
            " list; --beam-size is how many lines belong to an utterance, the same for all"
        )
    return NBest(texts=texts, scores_LK=np.array(scores).reshape(-1, beam_size))


def _score(column: str, where: str) -> float:
    try:
        score = float(column)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise InputError(
            f"{where}: the score {short_repr(column)} is no finite number; the columns are"
            " text<TAB>score"
        )
    return score


def read_references(file: Path, lists: NBest) -> list[str]:
    """What was said: a text a line, or the field `text` of a manifest's JSON lines.

    Raises:
        InputError: no such file, or another number of texts than of lists; no words at all.
    """
    if file.name.lower().removesuffix(".gz").endswith((".json", ".jsonl")):
        texts = [_said(record, where) for where, record in read_json_lines(file)]
    else:
        texts = [piece.text.rstrip("\r\n") for piece in read_text_lines(file)]
    count, beam_size = lists.scores_LK.shape
    if len(texts) != count:
        raise InputError(
            f"{file}: {len(texts):,} references for {count:,} lists of {beam_size:,} candidates;"
            " give one a list, in the same order"
        )
    if not any(text.split() for text in texts):
        raise InputError(f"{file}: no words in there; a word error rate needs some")
    return texts


def _said(record: object, where: str) -> str:
    """What was said, by a manifest's record."""
    if not isinstance(record, dict) or "text" not in record:
        raise InputError(f"{where}: no field 'text'; a manifest has the reference in it")
    return checked_text(record["text"], "text", where)


@dataclass(frozen=True, kw_only=True)
class Rescored:
    """Lists and what decides in them."""

    lists: NBest
    logprobs_LK: Floats
    """Of the texts, in nats."""
    alpha: float
    beta: float

    def combined(self) -> Floats:
        """score + alpha · log-probability + beta · length, `(L, K)`."""
        weighted_LK = self.alpha * self.logprobs_LK + self.beta * self.lists.lengths()
        return self.lists.scores_LK + weighted_LK

    def best(self) -> list[dict[str, Any]]:
        """The best candidate of each list: its text, its place in the list from 0, its numbers."""
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
    """The place of each list's best candidate, the first of equally good ones, `(L,)`."""
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
    """The weights with the fewest word errors, of a grid; of equally good ones, the smallest.

    The grid is finite, hence the result is only the best of it. What decides within a list are the
    differences between its candidates: a weight of 1 in `ALPHAS` and `BETAS` is the one with which
    those of the term have the standard deviation of those of the scores.

    Args:
        lists: what to choose from.
        logprobs_LK: of the texts.
        errors_LK: word errors of each candidate.
        alpha, beta: a weight that is not to be tuned.
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
    """Smallest first; of three digits, so that what is printed is what was tried. No −0."""
    spread = _spread(term_LK)
    unit = _spread(scores_LK) / spread if spread > 0 else 0.0
    return sorted({float(f"{value:.3g}") + 0.0 for value in multiples * unit}, key=abs)


def _spread(values_LK: Floats) -> float:
    """The standard deviation inside the lists."""
    return float(np.sqrt(values_LK.var(axis=1).mean()))
