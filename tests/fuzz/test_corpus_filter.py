"""Files of any content through the corpus filter: scored as a whole, or refused by name."""

import gzip
import json
import shutil
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglm.corpus_filter.job import Job, perform
from sglm.corpus_filter.plan import Settings, model_hash, plan_shards
from tests.fuzz.examples import examples
from tests.tiny_models import save_lm

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
ROWS = st.lists(
    st.fixed_dictionaries({"text": TEXT}, optional={"a": VALUES, "b": VALUES}), max_size=4
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_lm("byte", tmp_path_factory.mktemp("run"))


def score(run: Path, name: str, content: bytes, form: Any) -> tuple[str | None, Path]:
    """The error, or None; and where the result is."""
    folder = Path(mkdtemp(dir=run.parent))
    (folder / name).write_bytes(content)
    [shard] = plan_shards([str(folder / name)], folder / "out", text_field="text", format=form)
    settings = Settings(
        model=model_hash(run),
        text_field="text",
        fields=("n_bytes",),
        prefix="+",
        format=form,
        percentiles=None,
        bos=True,
        eos=False,
        precision="fp32",
    )
    outcome = perform(Job(shard=shard, settings=settings, run=str(run), device="cpu"))
    if outcome.error is None:
        return None, shard.result_path
    assert outcome.error.startswith(str(folder / name)), "the file is named"
    assert outcome.error.count("\n") <= 1
    assert not [path for path in (folder / "out").rglob("*") if path.is_file()], "nothing is left"
    shutil.rmtree(folder)
    return outcome.error, shard.result_path


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return rows
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    return [json.loads(line) for line in text.split("\n") if line]


@examples(40)
@given(ROWS, st.sampled_from(["jsonl", "parquet"]), st.booleans())
def test_any_records(run: Path, rows: list[dict[str, Any]], form: str, escaped: bool) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=escaped) + "\n" for row in rows)
    error, result = score(run, "some.jsonl", lines.encode(), form)
    if error is not None:
        assert form == "parquet", error
        assert "parquet" in error
        return
    sizes = [len(row["text"].encode()) for row in rows]
    found = read(result)
    assert [row.pop("+n_bytes") for row in found] == sizes
    if form == "jsonl":
        assert found == rows
    else:
        assert [row["text"] for row in found] == [row["text"] for row in rows]


@examples(40)
@given(
    st.sampled_from(["a.txt", "a.txt.gz", "a.jsonl", "a.jsonl.gz", "a.parquet"]),
    st.data(),
    st.sampled_from([None, "jsonl", "parquet"]),
)
def test_any_damage(run: Path, name: str, data: st.DataObject, form: str | None) -> None:
    whole = json.dumps({"text": "the cat", "n": 1}).encode() + b"\n"
    if name.endswith(".parquet"):
        sink = pa.BufferOutputStream()
        pq.write_table(pa.table({"text": ["the cat", "sat"], "n": [1, 2]}), sink)
        whole = sink.getvalue().to_pybytes()
    if name.endswith(".gz"):
        whole = gzip.compress(whole, mtime=0)
    start = data.draw(st.integers(0, len(whole)))
    end = data.draw(st.integers(start, len(whole)))
    content = whole[:start] + data.draw(st.binary(max_size=4)) + whole[end:]
    error, result = score(run, name, content, form)
    if error is None:
        assert all("+n_bytes" in row for row in read(result))
