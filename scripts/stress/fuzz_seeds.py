"""Inputs that fuzzing starts from: valid ones, and some that are known to be hard."""

import gzip
import io

import pyarrow as pa
import pyarrow.parquet as pq

from scripts.stress.fuzz_targets import LINES, SAMPLE, Originals, tensor_file
from sglm.config import config_to_toml, load_config


def seeds(name: str, originals: Originals) -> list[bytes]:
    """Returns valid inputs of that kind, and some that are known to be hard."""
    files = {
        "meta": "store/meta.json",
        "ids": "store/train.bin",
        "tokenizer": "word/tokenizer.json",
        "sentencepiece": "sentencepiece/sentencepiece.model",
        "given_model": "sentencepiece/sentencepiece.model",
        "card": "char/config.json",
        "adaptation": "char/adapt.json",
        "weights": "char/model.safetensors",
        "state": "run/checkpoints/latest/state.json",
        "tensors": f"run/checkpoints/latest/{tensor_file(originals)}",
        "run": "run/run.json",
    }
    found = [(originals.folder / files[name]).read_bytes()] if name in files else []
    found += [seed if isinstance(seed, bytes) else seed.encode() for seed in _MORE.get(name, [])]
    if name == "config":
        found.append(config_to_toml(load_config("tiny")).encode())
    if name == "vocabulary":
        for kind in ("char", "word"):
            found.append(kind[:1].encode() + (originals.folder / kind / "vocab.json").read_bytes())
    if name == "header":
        raw = (originals.folder / "char" / "model.safetensors").read_bytes()
        found.append(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    if name == "parquet":
        for compression in ("none", "snappy", "gzip"):
            file = io.BytesIO()
            pq.write_table(pa.table({"text": LINES, "n": [1, 2, 3]}), file, compression=compression)
            found.append(file.getvalue())
    if name in _JSON_TARGETS:
        found += [b"[" * 5000, b"9" * 5000, b"1e999", b"NaN", b'{"a":1,"a":2}', b'"\\ud800"']
    return [*found, b"", SAMPLE.encode()]


_JSON_TARGETS = (
    *("meta", "tokenizer", "card", "adaptation", "state", "run", "record", "results", "header"),
)
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
    "ids_text": ["5 7 9\n\n1 2\r\n", "007 -0 1_0 ٣", "9" * 5000],
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
    "arpa": [
        "\\data\\\nngram 1=3\nngram 2=1\n\n\\1-grams:\n-99\t<s>\t-0.5\n-1\t</s>\n-0.3\ta\n\n"
        "\\2-grams:\n-0.2\t<s> a\n\n\\end\\\n",
        "\\data\\\nngram 1=999999999999\n\\1-grams:\n",
    ],
    "beams": ["the cat\t-1.5\na\t1e3\r\n", "a\t1e999\n", "a\t1_0\n", "\t1\n"],
    "vocabulary": ['w["a", "a"]', 'w["a b"]', 'c["ab"]', 'c["\\ud800"]', "w[1]", "w" + "[" * 5000],
    "score": [*(bytes([number]) + SAMPLE.encode() for number in range(4))],
    "prep": [
        *(bytes([number]) + b"t" + SAMPLE.encode() * 3 for number in range(4)),
        b"\1j" + b'{"text": "one two three"}\n' * 5,
    ],
}
