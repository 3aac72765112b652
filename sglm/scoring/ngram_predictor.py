"""An n-gram model as a predictor, for models whose tokens are its words.

Shapes: T time, B lanes, V vocabulary, K words of history, N = T·B tokens in time-major order.
"""

import hashlib
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from sglm.errors import InputError
from sglm.ngram.arpa import BEGIN, END, UNKNOWN
from sglm.ngram.model import NgramModel, Words
from sglm.scoring.predictor import IGNORED, Blocks, block_rows
from sglm.text.tokenizer import Tokenizer

_WORDS_LISTED = 3  # the most words that a message lists


class NgramPredictor:
    """An n-gram model as a `Predictor[Tensor]`; `<eos>` is predicted as `</s>` and read as `<s>`.

    The state is the history, `(B, K)`, as word ids of the n-gram model; −1 before the text.
    """

    def __init__(self, ngram: NgramModel, *, tokenizer: Tokenizer, name: str) -> None:
        """
        Args:
            ngram: The n-gram model.
            tokenizer: The tokenizer, at word level.
            name: The name of the n-gram model in messages.

        Raises:
            InputError: The tokens are not words; the vocabularies differ; `<s>` or `</s>` is a word
                of the text.
        """
        if tokenizer.kind != "word":
            raise InputError(
                f"{name}: an n-gram model predicts words, but this model predicts {tokenizer.kind}"
                " tokens; mixing needs a model whose store was made with --tokenizer word"
            )
        self.name = name
        self.fingerprint = tokenizer.fingerprint
        # A state holds indices of words in the n-gram model, so the order of the words matters.
        order = hashlib.sha256("\n".join(ngram.words).encode()).hexdigest()
        self.identity = f"{ngram.order}-gram model of {self.fingerprint} with words {order}"
        self.vocab_size = tokenizer.vocab_size
        self.device = torch.device("cpu")
        self._ngram = ngram
        self._history_words = max(1, ngram.order - 1)
        ids = {word: place for place, word in enumerate(ngram.words)}
        tokens = [tokenizer.token(token_id) for token_id in range(tokenizer.vocab_size)]
        check_no_tags(tokens)
        names = {tokenizer.eos_id: END, tokenizer.unk_id: UNKNOWN}
        words = [names.get(token_id, token) for token_id, token in enumerate(tokens)]
        _check_words(set(words), set(ids), name)
        # The n-gram model's id of each token when it is predicted, and when it is read.
        self._predicted_V = np.array([ids.get(word, -1) for word in words], dtype=np.int64)
        self._read_V = self._predicted_V.copy()
        self._read_V[tokenizer.eos_id] = ids[BEGIN]

    def start(self, lanes: int) -> Tensor:
        return torch.full((lanes, self._history_words), -1, dtype=torch.int64, device="cpu")

    def read(
        self, ids_TB: Tensor, targets_TB: Tensor | None, state: Tensor
    ) -> tuple[Tensor | None, Tensor]:
        history_NK, after = self._histories(ids_TB, state)
        if targets_TB is None:
            return None, after
        targets_N = targets_TB.cpu().numpy().ravel()
        predicted_N = targets_N != IGNORED
        logprobs_N = np.zeros(len(targets_N))
        words_M = self._predicted_V[targets_N[predicted_N]]
        logprobs_N[predicted_N] = self._ngram.logprobs(history_NK[predicted_N], words_M)
        return torch.from_numpy(logprobs_N.reshape(targets_TB.shape)), after

    def distributions(
        self, ids_TB: Tensor, state: Tensor, *, last_steps: int | None = None
    ) -> tuple[Blocks, Tensor]:
        history_NK, after = self._histories(ids_TB, state)
        if last_steps is not None:
            history_NK = history_NK[-last_steps * ids_TB.shape[1] :]
        return self._blocks(history_NK), after

    def _blocks(self, history_NK: Words) -> Blocks:
        missing_V = self._predicted_V < 0
        for rows in block_rows(len(history_NK), self.vocab_size):
            logprobs_MV = self._ngram.distributions(history_NK[rows]).astype(np.float32)
            logprobs_MV = logprobs_MV[:, self._predicted_V]
            logprobs_MV[:, missing_V] = -np.inf
            yield rows, torch.from_numpy(logprobs_MV)

    def select(self, state: Tensor, lanes: Tensor) -> Tensor:
        return state[lanes.cpu()]

    def _histories(self, ids_TB: Tensor, state: Tensor) -> tuple[Words, Tensor]:
        """Returns the histories after each id, `(N, K)`, and after the last step, `(B, K)`."""
        read_TB = self._read_V[ids_TB.cpu().numpy()]
        words_TB = np.concatenate((state.numpy().T, read_TB))
        windows_TBK = np.lib.stride_tricks.sliding_window_view(
            words_TB, self._history_words, axis=0
        )[1:]
        after = torch.from_numpy(windows_TBK[-1].copy())
        return windows_TBK.reshape(-1, self._history_words), after


def check_no_tags(tokens: Iterable[str]) -> None:
    """Checks that the sentence tags of ARPA files are not words of the text.

    Raises:
        InputError: One of them is.
    """
    if tags := sorted({BEGIN, END}.intersection(tokens)):
        raise InputError(
            f"the text contains {' and '.join(tags)} as words, which mark the ends of sentences in"
            " an n-gram model; take them out of the text (lines are sentences) and prepare it again"
        )


def _check_words(ours: set[str], theirs: set[str], name: str) -> None:
    special = {BEGIN, END, UNKNOWN}
    for missing, where in (
        (ours - theirs - special, "words of the model are not in it"),
        (theirs - ours - special, "of its words are not the model's"),
    ):
        if missing:
            raise InputError(
                f"{name}: another vocabulary: {len(missing):,} {where} ({_some(missing)}); estimate"
                " it on the model's training text, with <unk> for words outside its vocabulary"
            )


def _some(words: Iterable[str]) -> str:
    some = sorted(words)
    return ", ".join(map(repr, some[:_WORDS_LISTED])) + (", …" if len(some) > _WORDS_LISTED else "")
