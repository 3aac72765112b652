"""What scripts/fuzz.py fuzzes: a function for each kind of input, and inputs to start from.

A target writes the bytes that it is given where sglm will read them, and reads them. It returns
where sglm made something of them or refused them with an SglmError; what else comes out is a fault.
"""

import gzip
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from sglm.compare.results import written_horizon
from sglm.compare.runs import Record
from sglm.config import config_to_toml, load_config
from sglm.errors import SglmError
from sglm.lm import LanguageModel, load
from sglm.model.folder import load_weights, save_model
from sglm.model.language_model import LSTMLanguageModel, ModelShape
from sglm.storage.checkpoint import load_checkpoint, save_checkpoint
from sglm.text.lines import READ_BYTES, read_text_lines
from sglm.text.prepare import Recipe, prepare
from sglm.text.records import read_jsonl, read_parquet
from sglm.text.sentencepiece_tokenizer import learn_sentencepiece
from sglm.text.store import TokenStore
from sglm.text.tokenizer import (
    KINDS,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    WordTokenizer,
    load_tokenizer,
)
from sglm.train.build import build_schedule
from sglm.train.log.report import drop_later_lines
from sglm.train.run_folder import RunFolder

LINES = ["the cat sat on the mat .", "a dog saw the cat , and ran", "naïve cafés — 日本語 🙂"]
SAMPLE = "\n".join([*LINES, "  two  spaces\tand\ttabs", "\u202eright to left", "\0 \ufeff\r\n"])


class Bench:
    """A folder of whole things, for the targets to spoil copies of."""

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
        self.store = prepare([str(self.text)], folder / "store", Recipe(tokenizer="word")).folder
        for kind, tokenizer in self.tokenizers.items():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model = LSTMLanguageModel(ModelShape(tokenizer.vocab_size, 1, 4, 4, True))
            save_model(model, folder / kind, tokenizer.fingerprint)
            tokenizer.save(folder / kind)
        self.lms: dict[str, LanguageModel] = {kind: load(folder / kind, "cpu") for kind in KINDS}
        self.run = RunFolder(folder / "run")
        with self.run.opened(load_config("tiny"), TokenStore.open(self.store), resume=True):
            pass
        state = {"weights": torch.arange(6.0), "books": {0: [1, None, "two"], "rate": 0.5}}
        save_checkpoint(folder / "run" / "checkpoints", 7, state)

    def copy(self, name: str) -> Path:
        """A fresh copy of a folder of the bench."""
        target = self.folder / "spoilt"
        shutil.rmtree(target, ignore_errors=True)
        return Path(shutil.copytree(self.folder / name, target, symlinks=True))


def target(name: str, bench: Bench) -> Callable[[bytes], None]:
    """What is run with each input."""
    return partial(_guarded, globals()[f"target_{name}"], bench)


def _guarded(run: Callable[[Bench, bytes], None], bench: Bench, data: bytes) -> None:
    try:
        run(bench, data)
    except SglmError as error:
        if len(str(error)) > 4000:
            raise AssertionError("a message that nobody reads") from error


def target_config(bench: Bench, data: bytes) -> None:
    path = bench.folder / "config.toml"
    path.write_bytes(data)
    config = load_config(str(path))
    path.write_text(config_to_toml(config), encoding="utf-8")
    assert load_config(str(path)) == config
    build_schedule(config, 100)


def target_override(bench: Bench, data: bytes) -> None:
    load_config("tiny", [data.decode("utf-8", "surrogateescape")])


def target_meta(bench: Bench, data: bytes) -> None:
    folder = bench.copy("store")
    (folder / "meta.json").write_bytes(data)
    _use_store(folder)


def target_ids(bench: Bench, data: bytes) -> None:
    """The ids themselves, with everything else made to fit."""
    folder = bench.copy("store")
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


def target_tokenizer(bench: Bench, data: bytes) -> None:
    folder = bench.copy("word")
    (folder / "tokenizer.json").write_bytes(data)
    _use_tokenizer(load_tokenizer(folder))


def target_vocabulary(bench: Bench, data: bytes) -> None:
    """A list of words or characters, with the fingerprint that belongs to it."""
    kind, content = ("char" if data[:1] == b"c" else "word"), data[1:]
    try:
        canonical = json.dumps(json.loads(content), ensure_ascii=False, separators=(",", ":"))
        fingerprint = _fingerprint(kind, canonical.encode())
    except (ValueError, RecursionError):
        fingerprint = "0" * 64
    _load_tokenizer(bench, kind, "vocab.json", content, fingerprint)


def target_sentencepiece(bench: Bench, data: bytes) -> None:
    fingerprint = _fingerprint("sentencepiece", data)
    _load_tokenizer(bench, "sentencepiece", "sentencepiece.model", data, fingerprint)


def _fingerprint(kind: str, content: bytes) -> str:
    return hashlib.sha256(kind.encode() + b"\0" + content).hexdigest()


def _load_tokenizer(bench: Bench, kind: str, file: str, content: bytes, fingerprint: str) -> None:
    folder = bench.copy(kind)
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


def target_card(bench: Bench, data: bytes) -> None:
    folder = bench.copy("char")
    (folder / "config.json").write_bytes(data)
    _use_model(folder)


def target_weights(bench: Bench, data: bytes) -> None:
    folder = bench.copy("char")
    (folder / "model.safetensors").write_bytes(data)
    _use_model(folder)


def target_header(bench: Bench, data: bytes) -> None:
    """The header of a safetensors file; its length is made to fit, the data stay."""
    folder = bench.copy("char")
    raw = (folder / "model.safetensors").read_bytes()
    rest = raw[8 + int.from_bytes(raw[:8], "little") :]
    (folder / "model.safetensors").write_bytes(len(data).to_bytes(8, "little") + data + rest)
    _use_model(folder)


def _use_model(folder: Path) -> None:
    load_weights(folder)
    lm = load(folder, "cpu")
    lm.score("the cat")
    lm.generate("the", tokens=3, seed=0)


def target_state(bench: Bench, data: bytes) -> None:
    _use_checkpoint(bench, "state.json", data)


def target_tensors(bench: Bench, data: bytes) -> None:
    _use_checkpoint(bench, _tensor_file(bench), data)


def _tensor_file(bench: Bench) -> str:
    [path] = (bench.run.path / "checkpoints" / "latest").glob("*.safetensors")
    return path.name


def _use_checkpoint(bench: Bench, name: str, data: bytes) -> None:
    """With the checksum that belongs to it, where there are checksums."""
    folder = bench.copy("run/checkpoints")
    latest = folder / "latest"
    before = hashlib.sha256((latest / name).read_bytes()).hexdigest()
    (latest / name).write_bytes(data)
    for sums in latest.glob("SHA256SUMS"):
        text = sums.read_text().replace(before, hashlib.sha256(data).hexdigest())
        sums.write_text(text)
    load_checkpoint(folder)


def target_run(bench: Bench, data: bytes) -> None:
    folder = bench.copy("run")
    (folder / "run.json").write_bytes(data)
    with RunFolder(folder).opened(load_config("tiny"), TokenStore.open(bench.store), resume=True):
        pass


def target_metrics(bench: Bench, data: bytes) -> None:
    path = bench.folder / "metrics.jsonl"
    path.write_bytes(data)
    drop_later_lines(path, 5)


def target_results(bench: Bench, data: bytes) -> None:
    (bench.folder / "results.json").write_bytes(data)
    horizon = written_horizon(bench.folder)
    assert horizon is None or horizon >= 0


def target_record(bench: Bench, data: bytes) -> None:
    path = bench.folder / "record.json"
    path.write_bytes(data)
    record = Record.read(path)
    assert record is not None
    assert record.seconds >= 0


def target_text(bench: Bench, data: bytes) -> None:
    path = bench.folder / "fuzzed.txt"
    path.write_bytes(data)
    _use_lines(path, data)


def target_gzip(bench: Bench, data: bytes) -> None:
    path = bench.folder / "fuzzed.txt.gz"
    path.write_bytes(data)
    _use_lines(path, None)


def _use_lines(path: Path, data: bytes | None) -> None:
    for longest_bytes in (None, READ_BYTES):
        pieces = list(read_text_lines(path, longest_bytes))
        text = "".join(piece.text for piece in pieces)
        if data is not None:
            assert text == data.decode("utf-8").removeprefix("\ufeff")
        assert all(piece.unfinished or piece.text.endswith("\n") for piece in pieces[:-1])


def target_jsonl(bench: Bench, data: bytes) -> None:
    path = bench.folder / "fuzzed.jsonl"
    path.write_bytes(data)
    for piece in read_jsonl(path, "text"):
        piece.text.encode("utf-8")


def target_parquet(bench: Bench, data: bytes) -> None:
    path = bench.folder / "fuzzed.parquet"
    path.write_bytes(data)
    for piece in read_parquet(path, "text"):
        piece.text.encode("utf-8")


def target_score(bench: Bench, data: bytes) -> None:
    lm = bench.lms[KINDS[data[0] % len(KINDS) if data else 0]]
    text = data[1:200].decode("utf-8", "surrogateescape")
    score = lm.score(text)
    assert score.n_tokens == len(score.tokens) == len(score.token_logprobs)
    first, state = lm.extend(lm.start(), text[: len(text) // 2])
    second, state = lm.extend(state, text[len(text) // 2 :])
    whole = first.logprob + second.logprob
    assert abs(whole - score.logprob) <= 1e-4 * max(1.0, abs(score.logprob))
    assert lm.generate(text, tokens=2, seed=0).startswith(text)
    _use_tokenizer(lm.tokenizer, text)


def target_prep(bench: Bench, data: bytes) -> None:
    kind = KINDS[data[0] % len(KINDS) if data else 0]
    ending = "jsonl" if data[1:2] == b"j" else "txt"
    path, out = bench.folder / f"prep.{ending}", bench.folder / "prepared"
    path.write_bytes(data[2:])
    shutil.rmtree(out, ignore_errors=True)
    prepare([str(path)], out, Recipe(tokenizer=kind, valid=0.2, test=0.0))
    _use_store(out)


def seeds(name: str, bench: Bench) -> list[bytes]:
    """Whole inputs of that kind, and some that are known to be hard."""
    files = {
        "meta": "store/meta.json",
        "ids": "store/train.bin",
        "tokenizer": "word/tokenizer.json",
        "sentencepiece": "sentencepiece/sentencepiece.model",
        "card": "char/config.json",
        "weights": "char/model.safetensors",
        "state": "run/checkpoints/latest/state.json",
        "tensors": f"run/checkpoints/latest/{_tensor_file(bench)}",
        "run": "run/run.json",
    }
    found = [(bench.folder / files[name]).read_bytes()] if name in files else []
    found += [seed if isinstance(seed, bytes) else seed.encode() for seed in _MORE.get(name, [])]
    if name == "config":
        found.append(config_to_toml(load_config("tiny")).encode())
    if name == "vocabulary":
        for kind in ("char", "word"):
            found.append(kind[:1].encode() + (bench.folder / kind / "vocab.json").read_bytes())
    if name == "header":
        raw = (bench.folder / "char" / "model.safetensors").read_bytes()
        found.append(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    if name == "parquet":
        for compression in ("none", "snappy", "gzip"):
            file = io.BytesIO()
            pq.write_table(pa.table({"text": LINES, "n": [1, 2, 3]}), file, compression=compression)
            found.append(file.getvalue())
    if name in _JSON_TARGETS:
        found += [b"[" * 5000, b"9" * 5000, b"1e999", b"NaN", b'{"a":1,"a":2}', b'"\\ud800"']
    return [*found, b"", SAMPLE.encode()]


_JSON_TARGETS = ("meta", "tokenizer", "card", "state", "run", "record", "results", "header")
_MORE: dict[str, list[str | bytes]] = {
    "config": [
        "[model]\nhidden = 1979-05-27\n[schedule]\nfirst = inf\ngrowth = nan\n",
        "a = " + "[" * 3000,
        "[train]\nseed = " + "9" * 5000,
        'schedule.unit = "steps"\nschedule.cycles = [1.0, 2.0]\n\ufeff',
    ],
    "override": ["train.batch=4", "schedule.cycles=[1, 2]", "a.b=" + "[" * 3000, "model.x=1\n[b]"],
    "metrics": ['{"step": 3}\n{"step": 9}\n', "[" * 3000 + '\n{"step": 1e999}\n', "9" * 5000],
    "record": [
        '{"finished": true, "seconds": 1.0, "peak_memory_mb": null, "device": "cpu",'
        ' "precision": "fp32"}',
    ],
    "results": ['{"horizon": 20}', '{"horizon": 1e999}'],
    "text": ["one\r\ntwo\rthree\n\nfour", b"\xff\xfea\0", b"\xed\xa0\x80", "\ufeff\ufeffa\n"],
    "gzip": [
        gzip.compress(b"one\ntwo\n") * 3,
        gzip.compress(b"a" * 2_000_000),
        gzip.compress(b"text\n")[:-6],
    ],
    "jsonl": [
        '{"text": "one"}\n\n{"text": "two", "x": [NaN, 1e999]}\r\n',
        '{"text": "\\ud800"}',
        "[" * 5000,
        '{"text": ' + "9" * 5000 + "}",
    ],
    "vocabulary": ['w["a", "a"]', 'w["a b"]', 'c["ab"]', 'c["\\ud800"]', "w[1]", "w" + "[" * 5000],
    "score": [*(bytes([number]) + SAMPLE.encode() for number in range(4))],
    "prep": [
        *(bytes([number]) + b"t" + SAMPLE.encode() * 3 for number in range(4)),
        b"\1j" + b'{"text": "one two three"}\n' * 5,
    ],
}
