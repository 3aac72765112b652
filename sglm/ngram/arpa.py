r"""Reads ARPA files, in which KenLM, SRILM and others write n-gram models.

    \data\
    ngram 1=4
    ngram 2=2

    \1-grams:
    -0.7    the    -0.2

    …
    \end\

A line has the log10 probability, the words, and the log10 back-off weight, which may be left out.
"""

import math
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np

from sglm.errors import InputError, short_repr
from sglm.ngram.model import NgramModel
from sglm.text.lines import read_text_lines

BEGIN, END, UNKNOWN = "<s>", "</s>", "<unk>"
MAKE_AGAIN = "; copy or estimate it again"
# Estimators round: a probability of 1 may come out a little larger.
LARGEST_LOG10 = 1e-4
_KENLM_BINARY = b"mmap lm http://kheafield.com/code"  # what a binary file of KenLM begins with
# deflate makes nothing smaller than 1/1032 of its size.
MOST_PACKED = 1032


def read_arpa(path: Path) -> NgramModel:
    """The model in an ARPA file (`.gz`: compressed).

    Raises:
        InputError: no such file, no ARPA file, cut, of other counts than its head says, with
            n-grams that stand there twice or lack what they are made of.
    """
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(_KENLM_BINARY)) == _KENLM_BINARY:
                raise _no_arpa_file(path)
    return _Reader(path).read()


def _no_arpa_file(path: Path) -> InputError:
    return InputError(
        f"{path}: no ARPA file: it has no line \\data\\ (KenLM's lmplz writes one, also SRILM; a"
        " binary file is read by KenLM alone)"
    )


class _Reader:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._number = 0
        self._lines = self._read_lines()
        self._ids: dict[str, int] = {}

    def read(self) -> NgramModel:
        counts = self._head()
        model = NgramModel([])
        for order, count in enumerate(counts, start=1):
            words, numbers = self._section(order, count)
            if order == 1:
                model.words += self._ids
                self._check_boundaries()
            words_GN = np.array(words, dtype=np.int64).reshape(count, order)
            nats_G2 = np.array(numbers).reshape(count, 2) * math.log(10)
            try:
                model.add(words_GN, nats_G2[:, 0], nats_G2[:, 1])
            except InputError as error:
                raise InputError(f"{self._path}: {error}{MAKE_AGAIN}") from None
            wanted = f"\\{order + 1}-grams:" if order < len(counts) else "\\end\\"
            self._expect(wanted, f"more than the {count:,} {order}-grams that are announced")
        return model

    def _section(self, order: int, count: int) -> tuple["array[int]", "array[float]"]:
        """All n-grams of one order: their words; log10 probability and back-off weight of each."""
        words, numbers = array("q"), array("d")
        for row in range(count):
            fields = self._next(f"{count:,} {order}-grams are announced, here are {row:,}")
            if len(fields) != order + 2:
                if len(fields) != order + 1 or fields[0].startswith("\\"):
                    self._fail_at(fields, order, f"{count:,} are announced, here are {row:,}")
                fields.append("0")
            try:
                logprob, backoff = float(fields[0]), float(fields[-1])
            except ValueError:
                self._fail(f"{short_repr(fields[0])} or {short_repr(fields[-1])} is no number")
            if not (logprob <= LARGEST_LOG10 and -math.inf < backoff < math.inf):
                self._fail(f"log10 probability {logprob:g} with back-off weight {backoff:g}")
            numbers.append(logprob)
            numbers.append(backoff)
            if order == 1:
                words.append(self._ids.setdefault(fields[1], len(self._ids)))
            else:
                try:
                    words.extend([self._ids[word] for word in fields[1:-1]])
                except KeyError as error:
                    self._fail(f"{short_repr(error.args[0])} is no 1-gram")
        return words, numbers

    def _fail_at(self, fields: list[str], order: int, counted: str) -> NoReturn:
        """The line is no n-gram of this order."""
        if fields[0].startswith("\\"):
            self._fail(f"too few {order}-grams: {counted}")
        words = "a word" if order == 1 else f"{order} words"
        self._fail(f"expected a log10 probability, {words}, and perhaps a back-off weight")

    def _head(self) -> list[int]:
        """The number of n-grams of each order; reads up to the first n-gram."""
        for fields in self._lines:  # anything may precede
            if fields == ["\\data\\"]:
                break
        else:
            raise _no_arpa_file(self._path)
        counts: list[int] = []
        while (fields := self._next("its head is cut"))[0] == "ngram":
            order, _, count = "".join(fields[1:]).partition("=")
            if order != str(len(counts) + 1) or not (count.isascii() and count.isdigit()):
                self._fail(f"expected ngram {len(counts) + 1}=COUNT")
            counts.append(int(count))
        if not counts or counts[0] == 0:
            self._fail("the head announces no 1-grams")
        # Before memory is taken for them.
        size = self._path.stat().st_size
        if sum(counts) > size * (MOST_PACKED if self._path.suffix == ".gz" else 1):
            self._fail(f"{sum(counts):,} n-grams are announced, in a file of {size:,} bytes")
        if fields != ["\\1-grams:"]:
            self._fail("expected \\1-grams:")
        return counts

    def _check_boundaries(self) -> None:
        for word in (BEGIN, END):
            if word not in self._ids:
                raise InputError(
                    f"{self._path}: has no {word}; estimate it on sentences, one a line"
                )

    def _next(self, problem: str) -> list[str]:
        """The fields of the next line that is not empty; there must be one."""
        fields = next(self._lines, None)
        if fields is None:
            self._fail(f"cut off: {problem}, and the line \\end\\ is missing")
        return fields

    def _expect(self, wanted: str, otherwise: str) -> None:
        fields = self._next(f"expected {wanted}")
        if fields != [wanted]:
            looks_like_gram = not fields[0].startswith("\\")
            self._fail(otherwise if looks_like_gram else f"expected {wanted}")

    def _read_lines(self) -> Iterator[list[str]]:
        """The fields of each line that has any. Spaces and tabs alone separate: a word may hold
        other white space."""
        for piece in read_text_lines(self._path):
            self._number += 1
            text = piece.text.replace("\t", " ").strip(" \r\n")
            if text:
                yield [field for field in text.split(" ") if field]

    def _fail(self, problem: str) -> NoReturn:
        raise InputError(f"{self._path}, line {self._number}: {problem}{MAKE_AGAIN}")
