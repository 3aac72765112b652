"""Small random language models of every kind of tokenizer, for the laws of scoring.

Random weights will do: the laws hold for any. They are larger than a fresh model's, so that the
state matters and a mistake in it shows.
"""

from functools import cache
from pathlib import Path

import torch

from sglm.lm import LanguageModel
from sglm.model.folder import save_model
from sglm.model.language_model import LSTMLanguageModel, ModelShape
from sglm.text.sentencepiece_tokenizer import learn_sentencepiece
from sglm.text.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer, WordTokenizer

KINDS = ("sentencepiece", "word", "char", "byte")

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
def make_tokenizer(kind: str) -> Tokenizer:
    """Learned from `LINES` without the last one; words and characters of that are unknown."""
    if kind == "byte":
        return ByteTokenizer()
    if kind == "sentencepiece":
        return learn_sentencepiece([line for line in LINES[:-1] if line] * 20, None)
    if kind == "char":
        return CharTokenizer(sorted(set("\n".join(LINES[:-1]))))
    return WordTokenizer(sorted({word for line in LINES[:-1] for word in line.split()}))


def make_network(
    vocab_size: int, layers: int = 2, tied: bool = True, seed: int = 0
) -> LSTMLanguageModel:
    """A network whose predictions differ from step to step, and whose state lives long."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LSTMLanguageModel(
            ModelShape(vocab_size=vocab_size, layers=layers, hidden=12, embedding=8, tied=tied)
        )
        with torch.no_grad():
            model.embedding.normal_(std=0.7)
            model.softmax_bias.normal_(std=0.5)
    return model.eval()


@cache
def make_lm(kind: str) -> LanguageModel:
    """One of each kind, shared: scoring changes nothing on it."""
    tokenizer = make_tokenizer(kind)
    return LanguageModel(make_network(tokenizer.vocab_size), tokenizer, kind)


def save_lm(kind: str, folder: Path) -> Path:
    """`make_lm(kind)` as a model folder."""
    lm = make_lm(kind)
    save_model(lm.model, folder, lm.tokenizer.fingerprint)
    lm.tokenizer.save(folder)
    return folder
