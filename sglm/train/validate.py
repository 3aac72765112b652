"""Validation during training, by the same function as `sglm eval`."""

from collections.abc import Callable
from dataclasses import replace

from sglm.scoring.evaluate import evaluate_split
from sglm.scoring.predictor import NetworkPredictor
from sglm.scoring.results import Evaluation
from sglm.text.store import TokenStore
from sglm.train.learner import Learner


def validate(learner: Learner, store: TokenStore, *, should_stop: Callable[[], bool]) -> Evaluation:
    """Evaluates the model on the validation split, in float32 whatever the training runs in.

    Every rank reads the whole split but scores only its share of the tokens, because most of the
    time goes into the softmax.

    Returns:
        The evaluation, the same on every rank.

    Raises:
        StoppedReading: `should_stop` returned true.
    """
    ranks = learner.ranks
    share = evaluate_split(
        NetworkPredictor(learner.evaluated_model),
        store,
        "valid",
        bos_id=store.bos_id,
        should_stop=should_stop,
        shard=(ranks.rank, ranks.count),
    )
    return replace(share, nll_nats=ranks.totals([share.nll_nats])[0])
