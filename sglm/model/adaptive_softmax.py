"""A two-step softmax for large vocabularies, with words grouped by frequency.

After Grave et al. 2017, "Efficient softmax approximation for GPUs", sections 3 and 4: the *head* is
a softmax over the frequent words and one entry for each *tail*, a cluster of rarer words with a
softmax of its own. The log-probability of a word in the head is the head's; that of a word in a
tail is the head's for the tail plus the tail's for the word. Nothing is approximated: the
probabilities of all words sum to one.

Unlike in the paper, tails are as wide as the head: their rows can then be the embedding's (tied
weights), no word is represented by fewer numbers, and there is no width to choose. Most of what
narrower tails would save is saved already, because a tail is computed only for its own tokens.

Shapes: N tokens, M tokens of a tail, V vocabulary, H features, K tails.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sglm.model.linear import linear
from sglm.model.softmax_loss import IGNORED, Stage


class AdaptiveSoftmax(nn.Module):
    """The order of the words, and the head's entries for the tails.

    The words' own rows and biases belong to the model and are passed in. `weight_VH` and `bias_V`
    are ordered by count, the most frequent word first, so that every cluster is a slice of them.

    Args:
        vocab_size: V.
        cutoffs: Rows at which the tails begin, ascending.
        features: H.

    Attributes:
        word_rows: The row of each token id, a permutation `(V,)`.
        weight: The head's rows for the tails, `(K, H)`.
        bias: The head's biases for the tails, `(K,)`.
    """

    word_rows: Tensor

    def __init__(self, vocab_size: int, cutoffs: Sequence[int], features: int) -> None:
        super().__init__()
        self.cutoffs = list(cutoffs)
        self.sizes = [end - start for start, end in pairwise((0, *cutoffs, vocab_size))]
        self.register_buffer("word_rows", torch.arange(vocab_size))
        self.weight = nn.Parameter(torch.empty(len(cutoffs), features))
        nn.init.uniform_(self.weight, -0.1, 0.1)
        self.bias = nn.Parameter(torch.zeros(len(cutoffs)))

    @torch.no_grad()
    def order_by_count(self, counts_V: Tensor, bias_V: Tensor) -> Tensor:
        """Orders the words by count, and sets the tails' biases from those of their words.

        Args:
            counts_V: Number of occurrences of each token id.
            bias_V: Log-probability of each token id.

        Returns:
            The log-probability of each row.
        """
        # Stable: the same counts give the same order everywhere.
        order_V = torch.argsort(counts_V, descending=True, stable=True).to(self.word_rows.device)
        self.word_rows[order_V] = torch.arange(len(order_V), device=order_V.device)
        bias_V = bias_V[order_V]
        for tail, biases in enumerate(torch.split(bias_V, self.sizes)[1:]):
            self.bias[tail] = biases.logsumexp(0)
        return bias_V

    def rows_of(self, ids: Tensor) -> Tensor:
        """Returns the rows of token ids, of any shape."""
        return self.word_rows[ids]

    def clusters_of(self, targets: Tensor) -> Tensor:
        """Returns the targets' clusters: 0 is the head, k the k-th tail. `IGNORED` counts as 0."""
        rows = self.rows_of(targets.clamp_min(0)).where(targets != IGNORED, 0)
        clusters = torch.zeros_like(rows)
        for cutoff in self.cutoffs:
            clusters += rows >= cutoff
        return clusters

    def stages(self, targets_N: Tensor, weight_VH: Tensor, bias_V: Tensor) -> Iterator[Stage]:
        """Yields the head's softmax, and those of the tails that have targets.

        It waits for the device, because the number of a tail's targets decides how much is
        computed.

        Args:
            targets_N: Token ids; `IGNORED`: nothing is predicted.
            weight_VH, bias_V: Rows and biases of the words.
        """
        rows_N = self.rows_of(targets_N.clamp_min(0)).where(targets_N != IGNORED, IGNORED)
        clusters_N = self.clusters_of(targets_N)
        head, *tails = self._clusters(weight_VH, bias_V)
        of_tails_N = self.cutoffs[0] + clusters_N - 1
        yield Stage(None, *head, rows_N.where(clusters_N == 0, of_tails_N))
        for tail, (start, cluster) in enumerate(zip(self.cutoffs, tails, strict=True), start=1):
            tokens_M = (clusters_N == tail).nonzero()[:, 0]
            if len(tokens_M):
                yield Stage(tokens_M, *cluster, rows_N[tokens_M] - start)

    def logprobs(self, features: Tensor, weight_VH: Tensor, bias_V: Tensor) -> Tensor:
        """Returns log-probabilities `(…, V)` of all words, by token id, float32 at least.

        Args:
            features: Features `(…, H)`.
            weight_VH, bias_V: Rows and biases of the words, in the features' type.
        """
        sum_type = torch.promote_types(features.dtype, torch.float32)
        head, *tails = (
            linear(features, *cluster).log_softmax(-1, dtype=sum_type)
            for cluster in self._clusters(weight_VH, bias_V)
        )
        words, *of_tails = torch.split(head, [self.cutoffs[0], *[1] * len(tails)], -1)
        tails = [tail + of_tail for tail, of_tail in zip(tails, of_tails, strict=True)]
        return torch.cat((words, *tails), -1).index_select(-1, self.word_rows)

    def target_rows(self, ids: Tensor, weight_VH: Tensor) -> Tensor:
        """Returns the words' rows plus their tails' rows in the head, `(…, H)`, detached."""
        none_H = torch.zeros_like(self.weight[:1])
        of_clusters = torch.cat((none_H, self.weight)).detach().to(weight_VH.dtype)
        return F.embedding(self.rows_of(ids), weight_VH.detach()) + F.embedding(
            self.clusters_of(ids), of_clusters
        )

    def _clusters(self, weight_VH: Tensor, bias_V: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Returns weight and bias of the head, with the tails' entries last, and of every tail."""
        head, *tails = zip(
            torch.split(weight_VH, self.sizes), torch.split(bias_V, self.sizes), strict=True
        )
        own = (self.weight.to(weight_VH.dtype), self.bias.to(bias_V.dtype))
        return [(torch.cat((head[0], own[0])), torch.cat((head[1], own[1]))), *tails]
