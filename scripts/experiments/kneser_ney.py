r"""Writes an n-gram model of a word-level token store's training text as an ARPA file.

    python -m scripts.experiments.kneser_ney data/ptb ptb.arpa --order 5

Interpolated modified Kneser–Ney smoothing (Chen & Goodman 1999, "An empirical study of smoothing
techniques for language modeling", sec. 3; Heafield et al. 2013 for n-grams at the beginning of a
sentence). For the tests, and for users without KenLM's `lmplz` and SRILM.

Shapes: N positions in the text, G distinct n-grams of one order, C distinct histories, V words.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sglm.errors import SglmError
from sglm.ngram.arpa import BEGIN, END, UNKNOWN
from sglm.scoring.ngram_predictor import check_no_tags
from sglm.storage.durable import replace_text
from sglm.text.store import TokenStore

Ids = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
# Discounts where the text is too small to estimate them (KenLM's --discount_fallback).
FALLBACK = (0.5, 1.0, 1.5)


@dataclass(kw_only=True)
class Grams:
    """The distinct n-grams of one order."""

    words_GN: Ids
    place_G: Ids
    """The position in the text where each occurs first."""
    gram_N: Ids
    """The index of the one that begins at each position; −1: it would go beyond the sentence."""
    count_G: Ids
    probability_G: Floats
    backoff_G: Floats
    """The back-off weight of each as a history; 1 if nothing follows it."""


def count_grams(text_N: Ids, begin_id: int, order: int) -> list[Grams]:
    """Counts all n-grams of a text in which each sentence begins with `begin_id`, by order."""
    found: list[Grams] = []
    base = int(text_N.max()) + 1
    for n in range(1, order + 1):
        places = np.arange(len(text_N) - n + 1)
        if n == 1:
            keys_N = text_N
        else:
            before_N = found[-1].gram_N[places]
            last_N = text_N[places + n - 1]
            inside = (before_N >= 0) & (last_N != begin_id)
            places = places[inside]
            keys_N = before_N[inside] * base + last_N[inside]
        _, first_G, gram, count_G = np.unique(
            keys_N, return_index=True, return_inverse=True, return_counts=True
        )
        gram_N = np.full(len(text_N), -1, dtype=np.int64)
        gram_N[places] = gram
        place_G = places[first_G]
        found.append(
            Grams(
                words_GN=text_N[place_G[:, None] + np.arange(n)],
                place_G=place_G,
                gram_N=gram_N,
                count_G=count_G,
                probability_G=np.zeros(len(place_G)),
                backoff_G=np.ones(len(place_G)),
            )
        )
    return found


def continue_counts(grams: Sequence[Grams], begin_id: int) -> None:
    """Replaces the counts below the highest order by numbers of distinct preceding words.

    At the beginning of a sentence, where no word can come before an n-gram, its count stays.
    """
    for lower, higher in pairwise(grams):
        suffix_G = lower.gram_N[higher.place_G + 1]
        distinct_G = np.bincount(suffix_G, minlength=len(lower.count_G))
        begins_G = lower.words_GN[:, 0] == begin_id
        lower.count_G = np.where(begins_G, lower.count_G, distinct_G)


def discounts(count_G: Ids) -> Floats:
    """Returns the discounts of counts of 0, 1, 2, and 3 or more (Chen & Goodman 1999, eq. 17)."""
    n1, n2, n3, n4 = (int((count_G == k).sum()) for k in range(1, 5))
    if not min(n1, n2, n3, n4):
        return np.array([0, *FALLBACK])
    y = n1 / (n1 + 2 * n2)
    found = np.array([0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    return found if (found[1:] > 0).all() else np.array([0, *FALLBACK])


def estimate(text_N: Ids, begin_id: int, *, vocab_size: int, order: int) -> list[Grams]:
    """Returns the n-grams of a text with their probabilities and back-off weights.

    Args:
        text_N: The sentences one after the other, each from `begin_id` to its end.
        begin_id: Id of `<s>`.
        vocab_size: V, the number of words that may follow; `<s>` is not one of them. Words that are
            not in the text have no n-gram in the result: see `unseen_probability`.
        order: The longest n.
    """
    grams = count_grams(text_N, begin_id, order)
    continue_counts(grams, begin_id)
    unigrams = grams[0]
    unigrams.count_G[unigrams.words_GN[:, 0] == begin_id] = 0
    for n, each in enumerate(grams):
        taken_G = discounts(each.count_G)[np.minimum(each.count_G, 3)]
        if n == 0:
            history_G, histories = np.zeros(len(each.count_G), dtype=np.int64), 1
            lower_G = np.full(len(each.count_G), 1 / vocab_size)
        else:
            history_G, histories = grams[n - 1].gram_N[each.place_G], len(grams[n - 1].count_G)
            lower_G = grams[n - 1].probability_G[grams[n - 1].gram_N[each.place_G + 1]]
        total_C = np.bincount(history_G, each.count_G, histories)
        left_C = np.bincount(history_G, taken_G, histories)
        weight_C = np.divide(left_C, total_C, out=np.ones(histories), where=total_C > 0)
        own_G = (each.count_G - taken_G) / total_C[history_G]
        each.probability_G = own_G + weight_C[history_G] * lower_G
        if n > 0:
            grams[n - 1].backoff_G = weight_C
    return grams


def unseen_probability(grams: Sequence[Grams], vocab_size: int) -> float:
    """Returns the probability of each word that the text lacks, from the unigrams' discounts."""
    count_G = grams[0].count_G
    taken = discounts(count_G)[np.minimum(count_G, 3)].sum()
    return float(taken / count_G.sum() / vocab_size)


def arpa_lines(grams: Sequence[Grams], words: Sequence[str], begin_id: int) -> Iterator[str]:
    """Yields the lines of an ARPA file; words that the text lacks are 1-grams too.

    Args:
        grams: The n-grams; see `estimate`.
        words: All words by id, `<s>` among them.
        begin_id: Id of `<s>`.
    """
    seen = set(grams[0].words_GN[:, 0].tolist())
    unseen = [word for word_id, word in enumerate(words) if word_id not in seen]
    yield "\\data\\"
    for n, each in enumerate(grams, start=1):
        yield f"ngram {n}={len(each.place_G) + (len(unseen) if n == 1 else 0)}"
    for n, each in enumerate(grams, start=1):
        yield f"\n\\{n}-grams:"
        with np.errstate(divide="ignore"):
            logprob_G = np.log10(each.probability_G)
            backoff_G = np.log10(each.backoff_G)
        for row, gram in enumerate(each.words_GN.tolist()):
            logprob = -99.0 if gram == [begin_id] else logprob_G[row]
            line = f"{logprob:.7g}\t{' '.join([words[word] for word in gram])}"
            yield line if n == len(grams) else f"{line}\t{backoff_G[row]:.7g}"
        if n == 1 and unseen:
            logprob = np.log10(unseen_probability(grams, len(words) - 1))
            yield from (f"{logprob:.7g}\t{word}" for word in unseen)
    yield "\n\\end\\"


def sentences(ids_N: Ids, eos_id: int, begin_id: int) -> Ids:
    """Returns a word-level stream with `<s>` inserted before each line."""
    ends = np.flatnonzero(ids_N == eos_id) + 1
    starts = np.concatenate(([0], ends))
    return np.insert(ids_N, starts[starts < len(ids_N)], begin_id)


def write_ngram_model(store: TokenStore, path: Path, order: int) -> None:
    """Writes the n-gram model of a word-level store's training text as an ARPA file."""
    tokenizer = store.tokenizer()
    assert tokenizer.kind == "word", "an n-gram model is of words"
    names = {tokenizer.eos_id: END, tokenizer.unk_id: UNKNOWN}
    tokens = [tokenizer.token(token_id) for token_id in range(tokenizer.vocab_size)]
    check_no_tags(tokens)
    words = [*(names.get(token_id, token) for token_id, token in enumerate(tokens)), BEGIN]
    begin_id = tokenizer.vocab_size
    text_N = sentences(store.ids("train").astype(np.int64), tokenizer.eos_id, begin_id)
    grams = estimate(text_N, begin_id, vocab_size=tokenizer.vocab_size, order=order)
    replace_text(path, "\n".join(arpa_lines(grams, words, begin_id)) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="A Kneser-Ney n-gram model of a token store.")
    parser.add_argument("store", type=Path, help="a word-level store of sglm prep")
    parser.add_argument("out", type=Path, help="the ARPA file")
    parser.add_argument("--order", type=int, default=5)
    arguments = parser.parse_args()
    try:
        write_ngram_model(TokenStore.open(arguments.store), arguments.out, arguments.order)
    except (SglmError, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(getattr(error, "exit_code", 1))


if __name__ == "__main__":
    main()
