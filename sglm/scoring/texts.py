"""Separate texts to scores: tokenize, read them all at once, cut the numbers up again."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from sglm.scoring.batch import packed_nlls
from sglm.scoring.distribution import expectations, packed_expectations
from sglm.scoring.predictor import Predictor
from sglm.scoring.results import Score, make_score
from sglm.text.tokenizer import Tokenizer
from sglm.text.user_text import checked_bytes


def score_texts(
    predictor: Predictor[Any],
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    sizes: Sequence[int],
    names: Sequence[str],
    bos: bool,
    eos: bool,
    distribution: bool,
    context: str,
) -> list[Score]:
    """See `LanguageModel.score`.

    Args:
        predictor, tokenizer: of one vocabulary.
        texts, sizes: what is scored, and its bytes in UTF-8.
        names: of all ids.
    """
    first, last = [tokenizer.eos_id] * bos, [tokenizer.eos_id] * eos
    ids: list[int] = []
    lengths: list[int] = []
    for encoded in tokenizer.encode_batch([context + text for text in texts] if context else texts):
        lengths.append(bos + len(encoded) + eos)
        ids += first
        ids += encoded
        ids += last
    ids_N = np.array(ids, dtype=np.int64)
    lengths_S = np.array(lengths, dtype=np.int64)
    recorded = None
    if distribution:
        begins = word_beginnings(tokenizer)
        recorded = packed_expectations(predictor, ids_N, lengths_S, begins_V=torch.tensor(begins))
        # After every token; what is wanted is before.
        logprobs = [0.0, *recorded.logprob.tolist()]
    else:
        logprobs = (-packed_nlls(predictor, ids_N, lengths_S)).tolist()
    # Of all texts at once, because there may be many short ones.
    tokens = list(map(names.__getitem__, ids))
    unk = (ids_N == tokenizer.unk_id).tolist()
    scores = []
    start = 0
    for text, size, length in zip(texts, sizes, lengths, strict=True):
        end = start + length
        own_ids = ids[start + bos : end - eos]
        offsets = tokenizer.offsets(context + text, own_ids)
        skipped = 0  # tokens of the context alone
        if context:
            skipped = sum(stop <= len(context) for _, stop in offsets)
            offsets = [
                (max(0, begin - len(context)), stop - len(context))
                for begin, stop in offsets[skipped:]
            ]
        if eos:
            offsets.append((len(text), len(text)))
        scored = slice(start + 1 + skipped, end)
        score = make_score(
            tokens[scored],
            logprobs[scored],
            unk[scored],
            n_words=len(text.split()),
            n_bytes=size,
            offsets=offsets if bos else offsets[1:],
            text=text,
            # Without the first token's nats the bytes do not have all of theirs.
            hides_bytes=not bos,
        )
        if recorded is not None:
            before = slice(end - 1 - score.n_tokens, end - 1)
            after_last = recorded.boundary[end - 1 : end].tolist()
            boundaries = recorded.boundary[before].tolist() + after_last if length else [0.0]
            # A word begins for sure, but where white space is still to come.
            if not (context and own_ids[skipped:] and begins[own_ids[skipped]]):
                boundaries[0] = 0.0
            score = replace(
                score,
                ranks=recorded.rank[before].tolist() if length else [],
                entropies=recorded.entropy[before].tolist() if length else [],
                boundaries=boundaries,
            )
        scores.append(score)
        start = end
    return scores


def running_scores(
    predictor: Predictor[Any],
    tokenizer: Tokenizer,
    lines: Iterable[str],
    *,
    names: Sequence[str],
) -> Iterator[Score]:
    """See `LanguageModel.score_running`."""
    begins_V = torch.tensor(word_beginnings(tokenizer))
    line_end = tokenizer.encode("\n")
    state, previous_id = predictor.start(1), tokenizer.eos_id
    for number, line in enumerate(lines, start=1):
        size = checked_bytes(line, number)
        ids = tokenizer.encode(line)
        read_N = np.array([previous_id, *ids, *line_end], dtype=np.int64)
        recorded, state = expectations(
            predictor, read_N[:-1, None], read_N[1:, None], state, begins_V=begins_V
        )
        logprob, rank, entropy, boundary = (field[:, 0].tolist() for field in recorded)
        count, previous_id = len(ids), line_end[-1]
        score = make_score(
            [names[i] for i in ids],
            logprob[:count],
            [i == tokenizer.unk_id for i in ids],
            n_words=len(line.split()),
            n_bytes=size,
            offsets=tokenizer.offsets(line, ids),
            text=line,
        )
        yield replace(
            score,
            ranks=rank[:count],
            entropies=entropy[:count],
            boundaries=[0.0, *boundary[1 : count + 1]],
        )


def word_beginnings(tokenizer: Tokenizer) -> list[bool]:
    """`Tokenizer.begins_word` of each id."""
    return [tokenizer.begins_word(i) for i in range(tokenizer.vocab_size)]
