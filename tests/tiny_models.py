"""Small random language models of every kind of tokenizer, for the laws of scoring.

Random weights will do: the laws hold for any. They are larger than a fresh model's, so that the
state matters and a mistake in it shows.
"""

import io
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from torch import Tensor

from sglm.lm import LanguageModel
from sglm.model.folder import save_model
from sglm.model.language_model import LSTMLanguageModel, ModelShape
from sglm.scoring.predictor import NetworkPredictor
from sglm.text.prepare import StoreSettings, prepare
from sglm.text.sentencepiece_tokenizer import learn_sentencepiece
from sglm.text.spm_tokenizer import SpmTokenizer
from sglm.text.store import TokenStore
from sglm.text.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer, WordTokenizer

OWN_KINDS = ("sentencepiece", "word", "char", "byte")
KINDS = (*OWN_KINDS, "spm")

LINES = [
    "the cat sat on the mat",
    "a dog saw the cat and ran",
    "",
    "naïve cafés — 日本語 and 🙂",
    "  two  spaces\there ",
    "the",
    "unheard-of words: zyx, qqq",
]


@cache
def spm_model(**settings: Any) -> bytes:
    """A SentencePiece model as others make them, with that package's defaults: of `LINES` without
    the last one."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for line in LINES[:-1] if line] * 20),
        model_writer=model,
        minloglevel=2,
        hard_vocab_limit=False,
        **settings,
    )
    return model.getvalue()


@cache
def make_tokenizer(kind: str) -> Tokenizer:
    """Learned from `LINES` without the last one; words and characters of that are unknown."""
    if kind == "byte":
        return ByteTokenizer()
    if kind == "sentencepiece":
        return learn_sentencepiece([line for line in LINES[:-1] if line] * 20, None)
    if kind == "char":
        return CharTokenizer(sorted(set("\n".join(LINES[:-1]))))
    if kind == "spm":
        return SpmTokenizer(spm_model(model_type="unigram", vocab_size=60))
    return WordTokenizer(sorted({word for line in LINES[:-1] for word in line.split()}))


def make_network(
    vocab_size: int,
    layers: int = 2,
    tied: bool = True,
    seed: int = 0,
    cutoffs: tuple[int, ...] = (),
) -> LSTMLanguageModel:
    """A network whose predictions differ from step to step, and whose state lives long.

    With an adaptive softmax, the words are in an order that is that of no ids.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LSTMLanguageModel(
            ModelShape(
                vocab_size=vocab_size,
                layers=layers,
                hidden=12,
                embedding=8,
                tied=tied,
                cutoffs=cutoffs,
            )
        )
        with torch.no_grad():
            if cutoffs:
                random = torch.Generator().manual_seed(7)
                model.start_from_unigram(torch.randperm(vocab_size, generator=random))
            model.embedding.normal_(std=0.7)
            model.softmax_bias.normal_(std=0.5)
    return model.eval()


@cache
def make_lm(kind: str) -> LanguageModel:
    """One of each kind, shared: scoring changes nothing on it."""
    tokenizer = make_tokenizer(kind)
    predictor = NetworkPredictor(make_network(tokenizer.vocab_size))
    return LanguageModel(predictor, tokenizer=tokenizer, name=kind)


def save_lm(kind: str, folder: Path) -> Path:
    """`make_lm(kind)` as a model folder."""
    lm = make_lm(kind)
    save_model(lm.model, folder, lm.tokenizer.fingerprint)
    lm.tokenizer.save(folder)
    return folder


def plain_nlls(model: LSTMLanguageModel, ids: list[int]) -> list[float]:
    """The definition, step by step in float64 with the gates written out: the first id is only
    read, each later one is scored from the state before it."""
    following = torch.tensor(ids[1:], dtype=torch.int64)[:, None]
    return (-plain_logprobs(model, ids)).gather(1, following)[:, 0].tolist()


def plain_logprobs(model: LSTMLanguageModel, ids: list[int]) -> Tensor:
    """Those of every token id after each id but the last, `(T, V)`."""
    weights = {name: tensor.double() for name, tensor in model.state_dict().items()}
    rows = model.rows_of(torch.arange(model.shape.vocab_size)).tolist()
    layers = range(len(model.layers))
    hidden = [torch.zeros(width, dtype=torch.float64) for width in model.shape.widths]
    cell = [torch.zeros(width, dtype=torch.float64) for width in model.shape.widths]
    features = []
    for current in ids[:-1]:
        below = weights["embedding"][rows[current]]
        for n in layers:
            gates = (
                weights[f"layers.{n}.weight_ih"] @ below
                + weights[f"layers.{n}.weight_hh"] @ hidden[n]
                + weights[f"layers.{n}.bias"]
            )
            enter, forget, new, leave = gates.chunk(4)
            cell[n] = forget.sigmoid() * cell[n] + enter.sigmoid() * new.tanh()
            hidden[n] = leave.sigmoid() * cell[n].tanh()
            below = hidden[n]
        features.append(below)
    return softmax_by_definition(model, torch.stack(features)) if features else torch.zeros(0, 0)


def softmax_by_definition(model: LSTMLanguageModel, features_NH: Tensor) -> Tensor:
    """Log-probabilities `(N, V)` by token id, in float64, differentiable.

    Of an adaptive softmax word by word: of its cluster, and in it (Grave et al. 2017).
    """
    weight, bias = model.output_weight.double(), model.softmax_bias.double()
    if model.adaptive is None:
        return (features_NH @ weight.T + bias).log_softmax(1)
    bounds = (0, *model.shape.cutoffs, model.shape.vocab_size)
    head = torch.cat((weight[: bounds[1]], model.adaptive.weight.double()))
    head_bias = torch.cat((bias[: bounds[1]], model.adaptive.bias.double()))
    of_head = (features_NH @ head.T + head_bias).log_softmax(1)
    columns = []
    for row in model.adaptive.word_rows.tolist():
        (cluster,) = (n for n, (a, b) in enumerate(pairwise(bounds)) if a <= row < b)
        if cluster == 0:
            columns.append(of_head[:, row])
            continue
        tail = slice(bounds[cluster], bounds[cluster + 1])
        of_tail = (features_NH @ weight[tail].T + bias[tail]).log_softmax(1)
        columns.append(of_head[:, bounds[1] + cluster - 1] + of_tail[:, row - tail.start])
    return torch.stack(columns, dim=1)


def make_store(folder: Path, kind: str, held_out: Path) -> TokenStore:
    """A store whose test split is the file `held_out`, made the way users make it."""
    train = folder / "train.txt"
    train.write_text(("\n".join(LINES[:-1]) + "\n") * 20, encoding="utf-8")
    if kind == "spm":
        (folder / "given.model").write_bytes(make_tokenizer(kind).content())
        kind = f"spm:{folder / 'given.model'}"
    settings = StoreSettings(tokenizer=kind, valid=0.1, test=str(held_out))
    return prepare([str(train)], folder / "store", settings)
