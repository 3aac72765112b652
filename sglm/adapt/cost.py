"""What adapting costs, in units of reading the same text without it."""

from statistics import median
from time import perf_counter

import numpy as np

from sglm.model.language_model import LSTMLanguageModel
from sglm.scoring.predictor import NetworkPredictor
from sglm.scoring.results import Evaluation
from sglm.scoring.stream import stream_nll

SAMPLES, SAMPLE_TOKENS = 5, 1024


def in_static_evaluations(evaluation: Evaluation, network: LSTMLanguageModel) -> float:
    """Its time per token over that of the network alone, on random tokens: they take no longer."""
    vocab_size = network.shape.vocab_size
    ids = np.random.default_rng(0).integers(0, vocab_size, SAMPLE_TOKENS)
    seconds = []
    for _ in range(SAMPLES):
        started = perf_counter()
        stream_nll(NetworkPredictor(network), ids, 0)
        seconds.append(perf_counter() - started)
    return (evaluation.seconds / evaluation.tokens) / (median(seconds) / SAMPLE_TOKENS)
