"""Texts with many continuations, as in a decoder's beam: each distribution is computed once.

Shapes: V vocabulary.
"""

from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import numpy.typing as npt
import torch

from sglm.scoring.predictor import Predictor


class Branch:
    """A node in a tree of texts: the point after some tokens, where continuations branch off.

    The distribution of the next token is computed on first use and kept as long as the branch:
    4·V bytes, plus the predictor's state. Many continuations of one beginning therefore cost hardly
    more than one. A branch holds only weak references to its continuations. Threads may share a
    branch; at worst they compute the same distribution twice.
    """

    def __init__(self, predictor: Predictor[Any], *, state: Any, token_id: int) -> None:
        """
        Args:
            predictor: The predictor of the text.
            state: The predictor's state before the last token, in one lane.
            token_id: The last token; at the beginning of a text, `bos_id`.
        """
        self._predictor = predictor
        self._state_before = state
        self._token_id = token_id
        self._computed: tuple[npt.NDArray[np.float32], Any] | None = None
        self._branches: WeakValueDictionary[int, Branch] = WeakValueDictionary()
        self._ancestors: list[Branch] = []

    def follow(self, token_ids: Sequence[int]) -> tuple[float, "Branch"]:
        """Returns the log-probability of the next tokens in nats, and the branch after them.

        That branch keeps the branches before it alive, because other words begin with the same
        tokens.
        """
        branch, logprob = self, 0.0
        path: list[Branch] = []
        for token_id in token_ids:
            logprobs_V, state = branch._next()
            logprob += float(logprobs_V[token_id])
            after = branch._branches.get(token_id)
            if after is None:
                after = branch._branches[token_id] = Branch(
                    self._predictor, state=state, token_id=token_id
                )
            path.append(branch := after)
        if path:
            branch._ancestors = path[:-1]
        return logprob, branch

    def _next(self) -> tuple[npt.NDArray[np.float32], Any]:
        """Returns the log-probabilities of all next tokens, `(V,)`, and the state after the last
        token of this branch."""
        if self._computed is None:
            ids_11 = torch.tensor([[self._token_id]], device="cpu")
            blocks, state = self._predictor.distributions(ids_11, self._state_before)
            ((_, logprobs_1V),) = blocks
            self._computed = logprobs_1V[0].float().cpu().numpy().copy(), state
        return self._computed
