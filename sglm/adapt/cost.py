"""The time that adapting takes, relative to reading the same text without it."""

from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from sglm.model.language_model import LSTMLanguageModel
from sglm.scoring.batch import texts_nll
from sglm.scoring.predictor import NetworkPredictor
from sglm.scoring.results import Evaluation
from sglm.scoring.stream import stream_nll

SAMPLES, SAMPLE_TOKENS = 5, 4096


def relative_time(
    evaluation: Evaluation,
    network: LSTMLanguageModel,
    sample_N: npt.NDArray[np.integer[Any]],
    *,
    bos_id: int,
) -> float:
    """Returns an evaluation's time per token divided by that of the static network.

    Args:
        evaluation: Evaluation of a reader of this network.
        network: The network as it was loaded.
        sample_N: Part of the text that was evaluated; read in the same context, `SAMPLES` times.
        bos_id: Token before a text; with context `reset`, each one in the sample ends a text.
    """
    ends = np.flatnonzero(sample_N == bos_id) + 1
    texts = [text for text in np.split(sample_N, ends) if len(text)]
    seconds = []
    for _ in range(SAMPLES):
        started = perf_counter()
        if evaluation.context == "carried":
            stream_nll(NetworkPredictor(network), sample_N, bos_id)
        else:
            texts_nll(NetworkPredictor(network), texts, bos_id)
        seconds.append(perf_counter() - started)
    return (evaluation.seconds / evaluation.tokens) / (median(seconds) / len(sample_N))
