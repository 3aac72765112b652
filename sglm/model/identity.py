"""The identity of the network to which a state belongs: the state means nothing to another network,
even if it has the right shape."""

from hashlib import blake2b

import numpy as np
from torch import nn

_SAMPLED = 64  # numbers of each matrix


def identity_of_network(network: nn.Module) -> str:
    """Returns a hash of some of the network's weights; a copy in another process has the same."""
    sampled = blake2b(digest_size=8)
    for weight in network.parameters():
        weights_W = weight.detach().flatten()
        some = weights_W[:: max(1, len(weights_W) // _SAMPLED)].float().cpu().numpy()
        sampled.update(np.ascontiguousarray(some).tobytes())
    return sampled.hexdigest()
