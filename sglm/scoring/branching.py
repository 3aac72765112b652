"""A text that may go on in many ways, as in a decoder's beam: what follows is computed once.

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
    """The place after some tokens, from which a text may go on.

    What may come next is computed when it is first asked for, and then kept as long as the object:
    4·V bytes, and whatever the predictor's state takes. So many continuations of one beginning cost
    hardly more than the beginning. A continuation lives as long as somebody holds it. Threads may
    share a branch; at worst they compute the same twice.
    """

    def __init__(self, predictor: Predictor[Any], *, state: Any, token_id: int) -> None:
        """
        Args:
            predictor: reads the text.
            state: its state, of one lane, before the last token.
            token_id: the last token; what stands before every text, at its start.
        """
        self._predictor = predictor
        self._state_before = state
        self._token_id = token_id
        self._computed: tuple[npt.NDArray[np.float32], Any] | None = None
        self._branches: WeakValueDictionary[int, Branch] = WeakValueDictionary()
        self._way: list[Branch] = []

    def follow(self, token_ids: Sequence[int]) -> tuple[float, "Branch"]:
        """The log-probability of the next tokens in nats, and the place after them.

        The places on the way live as long as the one after them: other words begin like this one.
        """
        branch, logprob = self, 0.0
        way: list[Branch] = []
        for token_id in token_ids:
            logprobs_V, state = branch._next()
            logprob += float(logprobs_V[token_id])
            after = branch._branches.get(token_id)
            if after is None:
                after = branch._branches[token_id] = Branch(
                    self._predictor, state=state, token_id=token_id
                )
            way.append(branch := after)
        if way:
            branch._way = way[:-1]
        return logprob, branch

    def _next(self) -> tuple[npt.NDArray[np.float32], Any]:
        """The log-probabilities of all tokens that may come next, and the state to go on from."""
        if self._computed is None:
            ids_11 = torch.tensor([[self._token_id]], device="cpu")
            blocks, state = self._predictor.distributions(ids_11, self._state_before)
            ((_, logprobs_1V),) = blocks
            self._computed = logprobs_1V[0].float().cpu().numpy().copy(), state
        return self._computed
