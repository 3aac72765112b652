"""The targets of `scripts.stress.fuzz`: a function for each kind of input.

A target writes the bytes that it is given into a file that sglm reads, and lets sglm read it. It
returns if sglm accepts them or refuses them with an SglmError; any other exception is a fault.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from sglm.adapt.folder import save_gradients
from sglm.adapt.synthetic import GradientsShape, SyntheticGradients
from sglm.compare.results import written_horizon
from sglm.compare.runs import Record
from sglm.config import config_to_toml, load_config
from sglm.errors import SglmError
from sglm.lm import LanguageModel
from sglm.loading import load
from sglm.model.folder import load_weights, save_model
from sglm.model.language_model import LSTMLanguageModel, ModelShape
from sglm.ngram.arpa import read_arpa
from sglm.scoring.nbest import read_nbest
from sglm.storage.checkpoint import load_checkpoint, save_checkpoint
from sglm.text.lines import READ_BYTES, read_text_lines
from sglm.text.prepare import StoreSettings, prepare
from sglm.text.records import read_jsonl, read_parquet
from sglm.text.sentencepiece_tokenizer import learn_sentencepiece
from sglm.text.store import TokenStore
from sglm.text.tokenizer import (
    KINDS,
    ByteTokenizer,
    CharTokenizer,
    IdsTokenizer,
    Tokenizer,
    WordTokenizer,
    load_tokenizer,
)
from sglm.text.tokenizer_choice import given_tokenizer
from sglm.train.build import build_schedule
from sglm.train.log.metrics import drop_later_lines
from sglm.train.run_folder import RunFolder

LINES = ["the cat sat on the mat .", "a dog saw the cat , and ran", "naïve cafés — 日本語 🙂"]
SAMPLE = "\n".join([*LINES, "  two  spaces\tand\ttabs", "\u202eright to left", "\0 \ufeff\r\n"])


class Originals:
    """A folder of valid stores, models and runs; targets damage copies of them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.text = folder / "text.txt"
        self.text.write_text("\n".join(LINES * 30) + "\n", encoding="utf-8")
        self.tokenizers: dict[str, Tokenizer] = {
            "sentencepiece": learn_sentencepiece(LINES * 20, None),
            "word": WordTokenizer(sorted({word for line in LINES for word in line.split()})),
            "char": CharTokenizer(sorted(set("\n".join(LINES)))),
            "byte": ByteTokenizer(),
        }
        self.store = prepare(
            [str(self.text)], folder / "store", StoreSettings(tokenizer="word")
        ).folder
        for kind, tokenizer in self.tokenizers.items():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = LSTMLanguageModel(
                    ModelShape(
                        vocab_size=tokenizer.vocab_size, layers=1, hidden=4, embedding=4, tied=True
                    )
                )
            save_model(model, folder / kind, tokenizer.fingerprint)
            tokenizer.save(folder / kind)
        shape = GradientsShape(vocab_size=self.tokenizers["char"].vocab_size, features=4)
        save_gradients(SyntheticGradients(shape), folder / "char")
        self.lms: dict[str, LanguageModel] = {kind: load(folder / kind, "cpu") for kind in KINDS}
        self.run = RunFolder(folder / "run")
        with self.run.opened(load_config("tiny"), TokenStore.open(self.store), resume=True):
            pass
        state = {"weights": torch.arange(6.0), "books": {0: [1, None, "two"], "rate": 0.5}}
        save_checkpoint(folder / "run" / "checkpoints", 7, state)

    def copy(self, name: str) -> Path:
        """Returns a fresh copy of a folder of the originals."""
        target = self.folder / "spoilt"
        shutil.rmtree(target, ignore_errors=True)
        return Path(shutil.copytree(self.folder / name, target, symlinks=True))


def target(name: str, originals: Originals) -> Callable[[bytes], None]:
    """Returns the function that is run with each input."""
    return partial(_guarded, globals()[f"target_{name}"], originals)


def _guarded(run: Callable[[Originals, bytes], None], originals: Originals, data: bytes) -> None:
    try:
        run(originals, data)
    except SglmError as error:
        if len(str(error)) > 4000:
            raise AssertionError("a message of more than 4,000 characters") from error


def target_config(originals: Originals, data: bytes) -> None:
    path = originals.folder / "config.toml"
    path.write_bytes(data)
    config = load_config(str(path))
    path.write_text(config_to_toml(config), encoding="utf-8")
    assert load_config(str(path)) == config
    build_schedule(config, 100)


def target_override(originals: Originals, data: bytes) -> None:
    load_config("tiny", [data.decode("utf-8", "surrogateescape")])


def target_meta(originals: Originals, data: bytes) -> None:
    folder = originals.copy("store")
    (folder / "meta.json").write_bytes(data)
    _use_store(folder)


def target_ids(originals: Originals, data: bytes) -> None:
    """Fuzzes the ids of a store; everything else in it is made to match them."""
    folder = originals.copy("store")
    data = data[: len(data) // 2 * 2]
    (folder / "train.bin").write_bytes(data)
    meta = json.loads((folder / "meta.json").read_text())
    sha256 = hashlib.sha256(data).hexdigest()
    meta["splits"]["train"].update(tokens=len(data) // 2, sha256=sha256)
    (folder / "meta.json").write_text(json.dumps(meta))
    _use_store(folder)


def _use_store(folder: Path) -> None:
    store = TokenStore.open(folder)
    assert len(store.fingerprint) == 64
    for split in store.splits:
        ids = store.ids(split)
        assert len(ids) == store.counts(split).tokens
        assert int(ids.max()) < store.tokenizer().vocab_size


def target_tokenizer(originals: Originals, data: bytes) -> None:
    folder = originals.copy("word")
    (folder / "tokenizer.json").write_bytes(data)
    _use_tokenizer(load_tokenizer(folder))


def target_vocabulary(originals: Originals, data: bytes) -> None:
    """Fuzzes a list of words or characters; its fingerprint is made to match."""
    kind, content = ("char" if data[:1] == b"c" else "word"), data[1:]
    try:
        canonical = json.dumps(json.loads(content), ensure_ascii=False, separators=(",", ":"))
        fingerprint = _fingerprint(kind, canonical.encode())
    except (ValueError, RecursionError):
        fingerprint = "0" * 64
    _load_tokenizer(originals, kind, "vocab.json", content, fingerprint)


def target_sentencepiece(originals: Originals, data: bytes) -> None:
    fingerprint = _fingerprint("sentencepiece", data)
    _load_tokenizer(originals, "sentencepiece", "sentencepiece.model", data, fingerprint)


def target_given_model(originals: Originals, data: bytes) -> None:
    path = originals.folder / "given.model"
    path.write_bytes(data)
    given = given_tokenizer(f"spm:{path}", tokenizer_of=None, vocab_size=None, eos_id=None)
    assert given is not None
    _use_tokenizer(given)


def target_ids_text(originals: Originals, data: bytes) -> None:
    ids = IdsTokenizer(50, eos_id=0).encode(data.decode("utf-8", "surrogateescape"))
    assert all(0 <= token_id < 50 for token_id in ids)


def _fingerprint(kind: str, content: bytes) -> str:
    return hashlib.sha256(kind.encode() + b"\0" + content).hexdigest()


def _load_tokenizer(
    originals: Originals, kind: str, file: str, content: bytes, fingerprint: str
) -> None:
    folder = originals.copy(kind)
    (folder / file).write_bytes(content)
    facts = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**facts, "fingerprint": fingerprint}))
    _use_tokenizer(load_tokenizer(folder))


def _use_tokenizer(tokenizer: Tokenizer, text: str = SAMPLE) -> None:
    ids = tokenizer.encode(text)
    assert all(0 <= token_id < tokenizer.vocab_size for token_id in [*ids, tokenizer.eos_id])
    if tokenizer.lossless and tokenizer.unk_id not in ids:
        assert tokenizer.decode(ids) == text
    settled = tokenizer.safe_prefix(text)
    assert tokenizer.encode(text[:settled]) + tokenizer.encode(text[settled:]) == ids
    tokenizer.decode(range(min(tokenizer.vocab_size, 5000)))
    for token_id in range(min(tokenizer.vocab_size, 5000)):
        assert isinstance(tokenizer.token(token_id), str)


def target_card(originals: Originals, data: bytes) -> None:
    folder = originals.copy("char")
    (folder / "config.json").write_bytes(data)
    _use_model(folder)


def target_weights(originals: Originals, data: bytes) -> None:
    folder = originals.copy("char")
    (folder / "model.safetensors").write_bytes(data)
    _use_model(folder)


def target_header(originals: Originals, data: bytes) -> None:
    """Fuzzes the header of a safetensors file; its length is made to match, the data stay."""
    folder = originals.copy("char")
    raw = (folder / "model.safetensors").read_bytes()
    rest = raw[8 + int.from_bytes(raw[:8], "little") :]
    (folder / "model.safetensors").write_bytes(len(data).to_bytes(8, "little") + data + rest)
    _use_model(folder)


def target_adaptation(originals: Originals, data: bytes) -> None:
    folder = originals.copy("char")
    (folder / "adapt.json").write_bytes(data)
    load(folder, "cpu").adapting("synthetic").score("the cat sat on the mat")


def _use_model(folder: Path) -> None:
    load_weights(folder)
    lm = load(folder, "cpu")
    lm.score("the cat")
    lm.generate("the", tokens=3, seed=0)


def target_state(originals: Originals, data: bytes) -> None:
    _use_checkpoint(originals, "state.json", data)


def target_tensors(originals: Originals, data: bytes) -> None:
    _use_checkpoint(originals, tensor_file(originals), data)


def tensor_file(originals: Originals) -> str:
    [path] = (originals.run.path / "checkpoints" / "latest").glob("*.safetensors")
    return path.name


def _use_checkpoint(originals: Originals, name: str, data: bytes) -> None:
    """Reads a checkpoint with one file replaced; its checksum, if it has one, is made to match."""
    folder = originals.copy("run/checkpoints")
    latest = folder / "latest"
    before = hashlib.sha256((latest / name).read_bytes()).hexdigest()
    (latest / name).write_bytes(data)
    for sums in latest.glob("SHA256SUMS"):
        text = sums.read_text().replace(before, hashlib.sha256(data).hexdigest())
        sums.write_text(text)
    load_checkpoint(folder)


def target_run(originals: Originals, data: bytes) -> None:
    folder = originals.copy("run")
    (folder / "run.json").write_bytes(data)
    with RunFolder(folder).opened(
        load_config("tiny"), TokenStore.open(originals.store), resume=True
    ):
        pass


def target_metrics(originals: Originals, data: bytes) -> None:
    path = originals.folder / "metrics.jsonl"
    path.write_bytes(data)
    drop_later_lines(path, 5)


def target_results(originals: Originals, data: bytes) -> None:
    (originals.folder / "results.json").write_bytes(data)
    horizon = written_horizon(originals.folder)
    assert horizon is None or horizon >= 0


def target_record(originals: Originals, data: bytes) -> None:
    path = originals.folder / "record.json"
    path.write_bytes(data)
    record = Record.read(path)
    assert record is not None
    assert record.seconds >= 0


def target_text(originals: Originals, data: bytes) -> None:
    path = originals.folder / "fuzzed.txt"
    path.write_bytes(data)
    _use_lines(path, data)


def target_gzip(originals: Originals, data: bytes) -> None:
    path = originals.folder / "fuzzed.txt.gz"
    path.write_bytes(data)
    _use_lines(path, None)


def _use_lines(path: Path, data: bytes | None) -> None:
    for longest_bytes in (None, READ_BYTES):
        pieces = list(read_text_lines(path, longest_bytes))
        text = "".join(piece.text for piece in pieces)
        if data is not None:
            assert text == data.decode("utf-8").removeprefix("\ufeff")
        assert all(piece.unfinished or piece.text.endswith("\n") for piece in pieces[:-1])


def target_jsonl(originals: Originals, data: bytes) -> None:
    path = originals.folder / "fuzzed.jsonl"
    path.write_bytes(data)
    for piece in read_jsonl(path, "text"):
        piece.text.encode("utf-8")


def target_parquet(originals: Originals, data: bytes) -> None:
    path = originals.folder / "fuzzed.parquet"
    path.write_bytes(data)
    for piece in read_parquet(path, "text"):
        piece.text.encode("utf-8")


def target_arpa(originals: Originals, data: bytes) -> None:
    path = originals.folder / "fuzzed.arpa"
    path.write_bytes(data)
    model = read_arpa(path)
    history = np.full((1, max(1, model.order - 1)), 0)
    assert len(model.words) == len(set(model.words))
    assert not np.isnan(model.distributions(history)).any()


def target_beams(originals: Originals, data: bytes) -> None:
    path = originals.folder / "fuzzed.tsv"
    path.write_bytes(data)
    lists = read_nbest(path, 1)
    assert all(text.strip() for text in lists.texts)
    assert np.isfinite(lists.scores_LK).all()


def target_score(originals: Originals, data: bytes) -> None:
    lm = originals.lms[KINDS[data[0] % len(KINDS) if data else 0]]
    text = data[1:200].decode("utf-8", "surrogateescape")
    score = lm.score(text)
    assert score.n_tokens == len(score.tokens) == len(score.token_logprobs)
    first, state = lm.extend(lm.start(), text[: len(text) // 2])
    second, state = lm.extend(state, text[len(text) // 2 :])
    whole = first.logprob + second.logprob
    assert abs(whole - score.logprob) <= 1e-4 * max(1.0, abs(score.logprob))
    assert lm.generate(text, tokens=2, seed=0).startswith(text)
    _use_tokenizer(lm.tokenizer, text)


def target_prep(originals: Originals, data: bytes) -> None:
    kind = KINDS[data[0] % len(KINDS) if data else 0]
    ending = "jsonl" if data[1:2] == b"j" else "txt"
    path, out = originals.folder / f"prep.{ending}", originals.folder / "prepared"
    path.write_bytes(data[2:])
    shutil.rmtree(out, ignore_errors=True)
    prepare([str(path)], out, StoreSettings(tokenizer=kind, valid=0.2, test=0.0))
    _use_store(out)
