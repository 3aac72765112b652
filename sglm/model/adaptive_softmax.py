"""A softmax in two steps, by how frequent the words are, for large vocabularies.

After Grave et al. 2017, "Efficient softmax approximation for GPUs", sections 3 and 4: the *head* is
a softmax over the frequent words and one entry for each *tail*, a cluster of rarer words that has a
softmax of its own. A token's log-probability is the head's of its word, or of its tail, plus the
tail's of its word. Nothing is approximated: the probabilities of all words sum to one.

Unlike there, tails are as wide as the head: their rows can then be the embedding's (tied weights),
no word is described by fewer numbers, and there is no width to choose. Most of what narrower tails
would save is saved already, because a tail is only computed for the tokens that are in it.

Shapes: N tokens, V vocabulary, H features, K tails.
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

    The words' own rows and biases are the model's, and are passed in: `weight_VH` and `bias_V` are
    ordered by count, the most frequent word first, so that every cluster is a slice of them.

    Args:
        vocab_size: V.
        cutoffs: the rows at which the tails begin; ascending.
        features: H.

    Attributes:
        word_rows: the row of each token id, a permutation `(V,)`.
        weight: the head's rows for the tails, `(K, H)`.
        bias: and their biases, `(K,)`.
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
        """Takes the words' order from their counts, and the tails' biases from their words'.

        Args:
            counts_V: by token id.
            bias_V: log-probabilities, by token id.

        Returns:
            These by row.
        """
        # Stable: the same counts give the same order everywhere.
        order_V = torch.argsort(counts_V, descending=True, stable=True).to(self.word_rows.device)
        self.word_rows[order_V] = torch.arange(len(order_V), device=order_V.device)
        bias_V = bias_V[order_V]
        for tail, biases in enumerate(torch.split(bias_V, self.sizes)[1:]):
            self.bias[tail] = biases.logsumexp(0)
        return bias_V

    def rows_of(self, ids: Tensor) -> Tensor:
        """The rows of token ids, of any shape."""
        return self.word_rows[ids]

    def clusters_of(self, targets: Tensor) -> Tensor:
        """0: the head; k: the k-th tail. `IGNORED` counts as in the head."""
        rows = self.rows_of(targets.clamp_min(0)).where(targets != IGNORED, 0)
        clusters = torch.zeros_like(rows)
        for cutoff in self.cutoffs:
            clusters += rows >= cutoff
        return clusters

    def stages(self, targets_N: Tensor, weight_VH: Tensor, bias_V: Tensor) -> Iterator[Stage]:
        """The head's softmax, and those of the tails that have targets.

        Waits for the device: how many targets a tail has decides how much is computed.

        Args:
            targets_N: token ids; `IGNORED`: nothing is predicted.
            weight_VH, bias_V: of the words.
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
        """Log-probabilities `(…, V)` of all words, by token id, float32 at least.

        Args:
            features: `(…, H)`.
            weight_VH, bias_V: of the words, in the features' type.
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
        """`(…, H)`: a word's row, plus its tail's in the head; constants."""
        none_H = torch.zeros_like(self.weight[:1])
        of_clusters = torch.cat((none_H, self.weight)).detach().to(weight_VH.dtype)
        return F.embedding(self.rows_of(ids), weight_VH.detach()) + F.embedding(
            self.clusters_of(ids), of_clusters
        )

    def _clusters(self, weight_VH: Tensor, bias_V: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of the head, the tails' entries last, and of every tail."""
        head, *tails = zip(
            torch.split(weight_VH, self.sizes), torch.split(bias_V, self.sizes), strict=True
        )
        own = (self.weight.to(weight_VH.dtype), self.bias.to(bias_V.dtype))
        return [(torch.cat((head[0], own[0])), torch.cat((head[1], own[1]))), *tails]
