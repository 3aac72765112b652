"""An n-gram model with back-off, in sorted arrays.

The probability of a word after a history is that of the longest n-gram in the model that ends with
this word after this history, times the back-off weights of all longer histories (Katz 1987,
"Estimation of probabilities from sparse data", eq. 16; the ARPA format).

Each n-gram has a key, one number: the index of its first n − 1 words among the n-grams of the order
below, times V, plus its last word. The keys of an order are sorted, so that many n-grams are looked
up at once by binary search, and those that continue one history are adjacent.

Shapes: V words, G n-grams of one order, K = order − 1 words of history, N histories.
Log-probabilities and back-off weights are natural logarithms, float64. The word id −1 stands for a
word that the model does not know, and fills histories that begin before the text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sglm.errors import InputError

Words = npt.NDArray[np.int64]
Nats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Order:
    """The n-grams of one length, sorted by `keys_G`."""

    keys_G: Words
    logprob_G: Nats
    backoff_G: Nats
    """The back-off weight of each n-gram as a history; not used at the highest order."""


class NgramModel:
    """An n-gram model that scores words after histories.

    Attributes:
        words: The V words; the index of a word is its id.
        order: Length of the longest n-grams.
    """

    def __init__(self, words: Sequence[str]) -> None:
        """Creates a model without n-grams; `add` adds those of the orders 1, 2, …"""
        self.words = list(words)
        self._orders: list[Order] = []

    @property
    def order(self) -> int:
        return len(self._orders)

    def add(self, words_GN: Words, logprob_G: Nats, backoff_G: Nats) -> None:
        """Adds the n-grams of the next order, in any sequence.

        Args:
            words_GN: Ids of the words of each n-gram, `(G, order)`.
            logprob_G: Log-probability of each n-gram's last word after the others.
            backoff_G: Log back-off weight of each n-gram as a history.

        Raises:
            InputError: An n-gram occurs twice, or its history is not an n-gram of the order below.
        """
        if self._orders:
            contexts_G = self._context(words_GN[:, :-1])
            if (lost := np.flatnonzero(contexts_G < 0)).size:
                gram = words_GN[lost[0]]
                raise InputError(
                    f"the {len(gram)}-gram {self._shown(gram)} begins with"
                    f" {self._shown(gram[:-1])}, which is not a {len(gram) - 1}-gram"
                )
            keys_G = contexts_G * len(self.words) + words_GN[:, -1]
        else:
            keys_G = words_GN[:, 0]
        places = np.argsort(keys_G, kind="stable")
        keys_G = keys_G[places]
        if (same := np.flatnonzero(keys_G[1:] == keys_G[:-1])).size:
            gram = words_GN[places[same[0]]]
            raise InputError(f"the {len(gram)}-gram {self._shown(gram)} occurs twice")
        self._orders.append(
            Order(keys_G=keys_G, logprob_G=logprob_G[places], backoff_G=backoff_G[places])
        )

    def logprobs(self, history_NK: Words, words_N: Words) -> Nats:
        """Returns the log-probability of each word after its history, `(N,)`; −inf for the word −1.

        Args:
            history_NK: Ids of the words before each word, at least K, the most recent one last.
            words_N: Ids of the words.
        """
        known_N = words_N >= 0
        result_N = np.where(known_N, self._orders[0].logprob_G[words_N], -np.inf)
        for length in range(1, self.order):
            contexts_N = self._context(history_NK[:, -length:])
            result_N += self._backoffs(length, contexts_N)
            places_N = self._find(length + 1, contexts_N, words_N)
            found_N = known_N & (places_N >= 0)
            result_N[found_N] = self._orders[length].logprob_G[places_N[found_N]]
        return result_N

    def distributions(self, history_NK: Words) -> Nats:
        """Returns the log-probabilities of all words after each history, `(N, V)`."""
        result_NV = np.tile(self._orders[0].logprob_G, (len(history_NK), 1))
        for length in range(1, self.order):
            contexts_N = self._context(history_NK[:, -length:])
            result_NV += self._backoffs(length, contexts_N)[:, None]
            above = self._orders[length]
            first_N = np.searchsorted(above.keys_G, contexts_N * len(self.words))
            last_N = np.searchsorted(above.keys_G, (contexts_N + 1) * len(self.words))
            for row in np.flatnonzero(contexts_N >= 0).tolist():
                children = slice(first_N[row], last_N[row])
                words = above.keys_G[children] - contexts_N[row] * len(self.words)
                result_NV[row, words] = above.logprob_G[children]
        return result_NV

    def _backoffs(self, length: int, contexts_N: Words) -> Nats:
        """Returns the log back-off weights of histories of `length` words; 0 for histories that the
        model does not have."""
        result_N = np.zeros(len(contexts_N))
        found_N = contexts_N >= 0
        result_N[found_N] = self._orders[length - 1].backoff_G[contexts_N[found_N]]
        return result_N

    def _context(self, words_NK: Words) -> Words:
        """Returns the indices of histories among the n-grams of their length; −1 for a history that
        is not an n-gram of the model."""
        places_N = words_NK[:, 0]
        for position in range(1, words_NK.shape[1]):
            places_N = self._find(position + 1, places_N, words_NK[:, position])
        return places_N

    def _find(self, length: int, contexts_N: Words, words_N: Words) -> Words:
        """Returns the indices of n-grams of this length; −1 if history, word or n-gram is
        missing."""
        keys_G = self._orders[length - 1].keys_G
        if not len(keys_G):
            return np.full(len(words_N), -1, dtype=np.int64)
        wanted_N = contexts_N * len(self.words) + words_N  # negative for a history of −1
        places_N = np.minimum(np.searchsorted(keys_G, wanted_N), len(keys_G) - 1)
        # Without the second condition, the word −1 would match the last word of the vocabulary
        # after the previous history.
        found_N = (keys_G[places_N] == wanted_N) & (words_N >= 0)
        return np.where(found_N, places_N, -1)

    def _shown(self, gram: Words) -> str:
        return repr(" ".join(self.words[word] for word in gram))
