"""A small n-gram model of the words that the tiny models know."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from scripts.experiments.kneser_ney import arpa_lines, estimate, sentences
from tests.tiny_models import LINES, make_tokenizer


def write_toy_arpa(path: Path, *, order: int = 3, more: Sequence[str] = ()) -> Path:
    """Of the lines that the tiny models' vocabularies are made of.

    Args:
        path: of the ARPA file.
        order: the longest n.
        more: words that the vocabulary has besides.
    """
    tokenizer = make_tokenizer("word")
    ids = np.array(tokenizer.encode("\n".join(LINES) + "\n"), dtype=np.int64)
    known = [tokenizer.token(token_id) for token_id in range(2, tokenizer.vocab_size)]
    words = ["</s>", "<unk>", *known, *more, "<s>"]
    begin_id = len(words) - 1
    text_N = sentences(ids, tokenizer.eos_id, begin_id)
    grams = estimate(text_N, begin_id, vocab_size=begin_id, order=order)
    path.write_text("\n".join(arpa_lines(grams, words, begin_id)), encoding="utf-8")
    return path
