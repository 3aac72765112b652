r"""Reads ARPA files, the format in which KenLM, SRILM and others write n-gram models.

    \data\
    ngram 1=4
    ngram 2=2

    \1-grams:
    -0.7    the    -0.2

    …
    \end\

A line has the log10 probability, the words, and the log10 back-off weight, which may be omitted.
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
MOST_DIGITS = 18  # the most digits of a count in the header
KENLM_BINARY = b"mmap lm"  # the beginning of a file that KenLM's build_binary has written
# The largest compression ratio: deflate makes nothing smaller than 1/1032 of its size.
MOST_PACKED = 1032


def read_arpa(path: Path) -> NgramModel:
    """Reads the model in an ARPA file (`.gz`: compressed).

    Raises:
        InputError: The file is missing, is not an ARPA file, is cut off or differs from the counts
            in its header; or an n-gram occurs twice, or its history or a word of it is missing.
    """
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(KENLM_BINARY)) == KENLM_BINARY:
                raise InputError(
                    f"{path}: a binary file, which only KenLM reads; give the ARPA file that it"
                    " was made from"
                )
    return _Reader(path).read()


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
            line = f"\\{order + 1}-grams:" if order < len(counts) else "\\end\\"
            self._expect(line, f"more than the {count:,} {order}-grams that the header announces")
        return model

    def _section(self, order: int, count: int) -> tuple["array[int]", "array[float]"]:
        """Reads all n-grams of one order.

        Returns:
            The ids of their words, `order` per n-gram; log10 probability and log10 back-off weight
            of each n-gram.
        """
        words, numbers = array("q"), array("d")
        for row in range(count):
            fields = self._next(f"{count:,} {order}-grams announced, {row:,} found")
            if len(fields) != order + 2:
                if len(fields) != order + 1 or fields[0].startswith("\\"):
                    self._fail_at(fields, order, f"{count:,} announced, {row:,} found")
                fields.append("0")
            try:
                logprob, backoff = float(fields[0]), float(fields[-1])
            except ValueError:
                self._fail(f"{short_repr(fields[0])} or {short_repr(fields[-1])} is not a number")
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
                    self._fail(f"{short_repr(error.args[0])} is not a 1-gram")
        return words, numbers

    def _fail_at(self, fields: list[str], order: int, counted: str) -> NoReturn:
        """Raises the error about a line that is not an n-gram of this order."""
        if fields[0].startswith("\\"):
            self._fail(f"too few {order}-grams: {counted}")
        words = "a word" if order == 1 else f"{order} words"
        self._fail(f"expected a log10 probability, {words}, and perhaps a back-off weight")

    def _head(self) -> list[int]:
        """Reads the header, up to the first n-gram; returns the number of n-grams of each order."""
        for fields in self._lines:  # anything may precede the header
            if fields == ["\\data\\"]:
                break
        else:
            raise InputError(
                f"{self._path}: not an ARPA file: it has no line \\data\\; give a file that KenLM's"
                " lmplz or SRILM has written"
            )
        counts: list[int] = []
        while (fields := self._next("its header is incomplete"))[0] == "ngram":
            order, _, count = "".join(fields[1:]).partition("=")
            is_count = count.isascii() and count.isdigit() and len(count) <= MOST_DIGITS
            if order != str(len(counts) + 1) or not is_count:
                self._fail(f"expected ngram {len(counts) + 1}=COUNT")
            counts.append(int(count))
        if not counts or counts[0] == 0:
            self._fail("the header announces no 1-grams")
        # Checked before memory is allocated for the n-grams.
        size = self._path.stat().st_size
        if sum(counts) > size * (MOST_PACKED if self._path.suffix == ".gz" else 1):
            self._fail(f"the header announces {sum(counts):,} n-grams, in a file of {size:,} bytes")
        if fields != ["\\1-grams:"]:
            self._fail("expected \\1-grams:")
        return counts

    def _check_boundaries(self) -> None:
        for word in (BEGIN, END):
            if word not in self._ids:
                raise InputError(
                    f"{self._path}: has no {word}; estimate it on sentences, one per line"
                )

    def _next(self, problem: str) -> list[str]:
        """Returns the fields of the next line that is not empty; there must be one."""
        fields = next(self._lines, None)
        if fields is None:
            self._fail(f"cut off: {problem}, and the line \\end\\ is missing")
        return fields

    def _expect(self, line: str, otherwise: str) -> None:
        fields = self._next(f"expected {line}")
        if fields != [line]:
            looks_like_gram = not fields[0].startswith("\\")
            self._fail(otherwise if looks_like_gram else f"expected {line}")

    def _read_lines(self) -> Iterator[list[str]]:
        """Yields the fields of each line that has any. Only spaces and tabs separate fields: a word
        may contain other white space."""
        for piece in read_text_lines(self._path):
            self._number += 1
            text = piece.text.replace("\t", " ").strip(" \r\n")
            if text:
                yield [field for field in text.split(" ") if field]

    def _fail(self, problem: str) -> NoReturn:
        raise InputError(f"{self._path}, line {self._number}: {problem}{MAKE_AGAIN}")
