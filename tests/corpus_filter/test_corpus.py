"""`sglm score --out`: every record once, as it was, with its scores, whatever happens."""

import gzip
import io
import json
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

import sglm
from sglm.cli.main import app
from sglm.corpus_filter.engines import run_in_processes
from sglm.corpus_filter.progress import CorpusProgress
from sglm.errors import SglmWarning
from sglm.model.folder import save_model
from sglm.storage import durable
from sglm.text.sources import find_sources
from sglm.text.tokenizer import IdsTokenizer
from tests.corpus_filter.test_progress import make_job
from tests.tiny_models import LINES, make_network, save_lm

FIELDS = [
    *("perplexity", "word_perplexity", "bits_per_byte", "logprob"),
    *("n_tokens", "n_words", "n_bytes", "n_unk"),
]
# Digits that a float would lose, an escape, an order that is not the alphabet's.
ROW = '{"z": 12345678901234567890123, "n": 1.50, "text": %s ,"a": {"\\u00e9": [1, null]}}'


def score(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["score", *map(str, arguments)])


def contents(folder: Path) -> dict[str, bytes]:
    """The results, without what is kept about them."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(folder).parts)
    }


def rows(path: Path) -> list[dict[str, Any]]:
    if path.name.endswith(".parquet"):
        found: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return found
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.name.endswith(".gz") else raw).decode()
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_lm("word", tmp_path_factory.mktemp("run"))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A file of each kind, one of them below a folder."""
    folder = tmp_path / "corpus"
    (folder / "below").mkdir(parents=True)
    (folder / "lines.txt").write_text("\n".join(LINES), encoding="utf-8")
    lines = [ROW % json.dumps(line) for line in LINES]
    (folder / "rows.jsonl").write_text("\n\n".join(lines) + "\n", encoding="utf-8")
    (folder / "below" / "packed.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    table = {"n": pa.array(range(len(LINES)), pa.int8()), "text": LINES, "l": [[1]] * len(LINES)}
    pq.write_table(pa.table(table).replace_schema_metadata({"who": "me"}), folder / "t.parquet")
    return folder


class TestRecords:
    @pytest.mark.parametrize("form", [None, "jsonl", "parquet"])
    def test_have_the_scores_of_their_texts(
        self, run: Path, corpus: Path, tmp_path: Path, form: str | None
    ) -> None:
        if form == "parquet":  # it has no integers of this size
            for path in (corpus / "rows.jsonl",):
                path.write_text(path.read_text().replace("12345678901234567890123", "7"))
            (corpus / "below" / "packed.jsonl.gz").unlink()
        given = ("--format", form) if form else ()
        out = tmp_path / "out"
        result = score(run, corpus, "--out", out, "--fields", ",".join(FIELDS), *given, "--json")
        assert result.exit_code == 0, result.output
        scores = sglm.load(run).score(LINES)
        found = {name for name in contents(out) if name != "score.json"}
        assert len(found) == 3 + (form != "parquet")
        for name in found:
            assert len(rows(out / name)) == len(LINES)
            for row, expected in zip(rows(out / name), scores, strict=True):
                assert row["text"] == expected.text
                assert list(row)[-len(FIELDS) :] == FIELDS
                assert row["logprob"] == pytest.approx(expected.logprob, rel=1e-6, abs=1e-9)
                assert str(row["logprob"]) != "-0.0"
                assert row["n_tokens"] == expected.n_tokens
                assert row["n_words"] == expected.n_words
                assert row["n_bytes"] == expected.n_bytes
                assert row["n_unk"] == sum(expected.unk)
                if expected.n_tokens:
                    assert row["perplexity"] == pytest.approx(expected.ppl, rel=1e-6)
                else:
                    assert row["perplexity"] is None
                assert (row["bits_per_byte"] is None) == (expected.bits_per_byte is None)
        facts = json.loads(result.stdout)
        assert facts["records"] == len(found) * len(LINES)
        assert facts["tokens"] == len(found) * sum(each.n_tokens for each in scores)
        nats = -len(found) * sum(each.logprob for each in scores)
        assert facts["token_ppl"] == pytest.approx(math.exp(nats / facts["tokens"]), rel=1e-6)

    def test_are_otherwise_as_they_were(self, run: Path, corpus: Path, tmp_path: Path) -> None:
        assert score(run, corpus, "--out", tmp_path / "out").exit_code == 0
        before = [line for line in (corpus / "rows.jsonl").read_text().split("\n") if line]
        after = (tmp_path / "out" / "rows.jsonl").read_text().splitlines()
        for old, new in zip(before, after, strict=True):
            assert new.startswith(old[:-1])
        table = pq.read_table(tmp_path / "out" / "t.parquet")
        old_table = pq.read_table(corpus / "t.parquet")
        assert table.select(old_table.schema.names).equals(old_table)
        assert table.schema.metadata == old_table.schema.metadata
        assert {"below/packed.jsonl.gz", "lines.jsonl"} <= contents(tmp_path / "out").keys()

    def test_are_read_from_another_field(self, run: Path, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text('{"a": {"b": "the cat"}, "perplexity": 3}\n')
        where = ("--out", tmp_path / "out", "--text-field", "a.b")
        result = score(run, tmp_path / "a.jsonl", *where)
        assert result.exit_code == 1
        assert "have a field 'perplexity' already; give another --prefix" in result.stderr
        shutil.rmtree(tmp_path / "out")
        assert score(run, tmp_path / "a.jsonl", *where, "--prefix", "lm_").exit_code == 0
        row = rows(tmp_path / "out" / "a.jsonl")[0]
        assert list(row) == ["a", "perplexity", "lm_perplexity", "lm_bits_per_byte"]

    def test_of_parquet_become_json_or_are_refused(self, run: Path, tmp_path: Path) -> None:
        """A year that Python's dates do not have, bytes, and a number that JSON does not have."""
        corpus, out = tmp_path / "corpus", tmp_path / "out"
        corpus.mkdir()
        for name, column in {
            "year": pa.array([2**50], pa.timestamp("ms")),
            "bytes": pa.array([b"a"]),
            "map": pa.array([[("a", math.nan)]], pa.map_(pa.string(), pa.float64())),
        }.items():
            table = pa.table({"text": ["the cat"], "other": column})
            pq.write_table(table, corpus / f"{name}.parquet")
        result = score(run, corpus, "--out", out, "--format", "jsonl", "--processes", 1)
        assert (result.exit_code, result.stderr.count("leave out --format jsonl")) == (1, 2)
        assert contents(out).keys() == {"errors.json", "map.jsonl", "score.json"}
        assert rows(out / "map.jsonl")[0]["other"] == [["a", None]]

    @pytest.mark.parametrize("form", ["jsonl", "parquet"])
    def test_there_may_be_none(self, run: Path, tmp_path: Path, form: str) -> None:
        pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
        result = score(run, tmp_path / "a.parquet", "--out", tmp_path / "out", "--format", form)
        assert result.exit_code == 0, result.output
        assert rows(tmp_path / "out" / f"a.{form}") == []


class TestBuckets:
    def test_cut_the_documents_at_the_percentiles(self, run: Path, tmp_path: Path) -> None:
        folder = tmp_path / "corpus"
        folder.mkdir()
        words = " ".join(LINES).split()
        for part in range(2):
            texts = [" ".join(words[i : i + 3]) for i in range(part, len(words), 2)] + [""]
            lines = [json.dumps({"text": text}) for text in texts]
            (folder / f"{part}.jsonl").write_text("\n".join(lines))
        out = tmp_path / "out"
        result = score(run, folder, "--out", out, "--buckets", "30,60", "--json")
        assert result.exit_code == 0, result.output
        facts = json.loads(result.stdout)
        found = rows(out / "0.jsonl") + rows(out / "1.jsonl")
        low, high = facts["cutoffs"]
        total = sum(row["perplexity"] is not None for row in found)
        for row in found:
            value = row["perplexity"]
            expected = None if value is None else "head" if value < low else "tail"
            if value is not None and low <= value < high:
                expected = "middle"
            assert row["bucket"] == expected
        counts = [facts["buckets"][name] for name in ("head", "middle", "tail")]
        assert counts == [
            sum(row["bucket"] == name for row in found) for name in ("head", "middle", "tail")
        ]
        assert sum(counts) == total
        # Documents are not cut in two, and some have the same text.
        assert counts[0] / total == pytest.approx(0.3, abs=1.5 / total + 0.02)
        assert counts[1] / total == pytest.approx(0.3, abs=1.5 / total + 0.02)
        assert not list((out / ".sglm" / "scored").rglob("*.jsonl"))
        # More of the corpus later: the same bounds.
        (folder / "2.jsonl").write_text('{"text": "the cat sat on"}\n')
        again = json.loads(score(run, folder, "--out", out, "--buckets", "30,60", "--json").stdout)
        assert (again["cutoffs"], again["already_done"]) == (facts["cutoffs"], 2)
        # Two texts are empty: the table accounts for all records.
        told = score(run, folder, "--out", out, "--buckets", "30,60").stdout.splitlines()
        assert told[-1].split() == ["none", "2", "records", "without", "a", "perplexity"]

    @pytest.mark.parametrize("form", ["jsonl", "parquet"])
    def test_are_refused_before_the_scoring_where_a_field_has_their_name(
        self, run: Path, tmp_path: Path, form: str
    ) -> None:
        (tmp_path / "a.jsonl").write_text('{"text": "the cat", "bucket": 7}\n')
        how = ("--out", tmp_path / "out", "--buckets", "30,60", "--format", form, "--json")
        result = score(run, tmp_path / "a.jsonl", *how)
        assert f"{tmp_path / 'a.jsonl'}: its records have a field 'bucket' already" in result.stderr
        assert json.loads(result.stdout)["tokens_scored"] == 0

    @pytest.mark.parametrize("form", ["jsonl", "parquet"])
    def test_of_texts_without_a_token(self, run: Path, tmp_path: Path, form: str) -> None:
        (tmp_path / "a.jsonl").write_text('{"text": ""}\n{"text": " "}\n')
        how = ("--buckets", "30,60", "--format", form, "--json")
        result = score(run, tmp_path / "a.jsonl", "--out", tmp_path / "out", *how)
        assert result.exit_code == 0, result.output
        assert [row["bucket"] for row in rows(tmp_path / "out" / f"a.{form}")] == [None, None]
        assert json.loads(result.stdout)["buckets"] == {"head": 0, "middle": 0, "tail": 0}


DAMAGE = {
    "cut.jsonl.gz": ("broken gzip data", gzip.compress(b'{"text": "the cat"}\n' * 99)[:-20]),
    "cut.jsonl": ("cut.jsonl, line 2: not JSON", b'{"text": "the cat"}\n{"text": "th'),
    "other.jsonl": ("line 1: no field 'text'; did you mean 'texts'?", b'{"texts": "a"}\n'),
    "number.jsonl": ("line 2: the field 'text' is not text but int", b'{"text":""}\n{"text":1}\n'),
    "latin.txt": ("not UTF-8 text (byte offset 3)", b"caf\xe9\n"),
    "cut.parquet": ("not a readable parquet file", b"PAR1 and no more"),
}


def test_a_damaged_file_is_named_and_costs_nothing_but_itself(
    run: Path, corpus: Path, tmp_path: Path
) -> None:
    out, mended = tmp_path / "out", tmp_path / "mended"
    for name, (_, raw) in DAMAGE.items():
        (corpus / name).write_bytes(raw)
    command = (run, corpus, "--out", out, "--processes", 1)
    result = score(*command)
    assert result.exit_code == 1
    assert "6 of 10 files failed" in result.stderr
    errors = json.loads((out / "errors.json").read_text())
    for name, (message, _) in DAMAGE.items():
        assert message in result.stderr
        assert [message in e["error"] for e in errors if e["source"].endswith(name)] == [True]
    assert len(contents(out)) == 4 + 2
    assert not list(out.rglob(".*aside"))
    first = {
        path: path.stat().st_mtime_ns for path in out.glob("*.[jp]*") if path.suffix != ".json"
    }
    for name in DAMAGE:
        (corpus / name).unlink()
    (corpus / "cut.jsonl").write_bytes(b'{"text": "the cat"}\n')
    assert score(*command).exit_code == 0
    assert not (out / "errors.json").exists()
    for path, written in first.items():
        assert path.stat().st_mtime_ns == written, f"{path} was done again"
    assert score(run, corpus, "--out", mended).exit_code == 0
    assert contents(out) == contents(mended)


def test_a_source_that_has_changed_is_scored_again(run: Path, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert score(run, corpus, "--out", out).exit_code == 0
    (corpus / "lines.txt").write_text("the mat\n")
    facts = json.loads(score(run, corpus, "--out", out, "--json").stdout)
    assert facts["already_done"] == 3
    assert [row["text"] for row in rows(out / "lines.jsonl")] == ["the mat"]


def killed_at(number: int, command: tuple[object, ...], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the process was killed when it wrote to the disk for the n-th time."""
    left = iter(range(number))

    def dying_sync(path: Path) -> None:
        if next(left, None) is None:
            os._exit(9)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python warns of the threads that a fork loses
        child = os.fork()
    if child == 0:
        with monkeypatch.context() as patch:
            patch.setattr(durable, "sync", dying_sync)
            os._exit(score(*command).exit_code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_killed_at_any_write_it_ends_as_if_undisturbed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(2):
        (corpus / f"{number}.jsonl").write_text(json.dumps({"text": LINES[number]}) + "\n")
    how = ("--buckets", "30,60", "--processes", 1)
    assert score(run, corpus, "--out", tmp_path / "whole", *how).exit_code == 0
    expected = contents(tmp_path / "whole")
    monkeypatch.setattr(durable, "sync", lambda path: None)  # no machine stops here
    kills = 0
    while killed_at(kills, (run, corpus, "--out", tmp_path / f"{kills}", *how), monkeypatch):
        out = tmp_path / f"{kills}"
        assert score(run, corpus, "--out", out, *how).exit_code == 0
        assert contents(out) == expected
        assert not list(out.rglob(".*aside"))
        kills += 1
    assert kills >= 4 + 2 * 8, "settings twice; of each file the result and its record, twice"


def test_killed_while_a_changed_source_is_scored_again_nothing_old_is_taken_for_new(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, old = tmp_path / "a.jsonl", tmp_path / "old"
    source.write_text('{"text": "the cat"}\n')
    monkeypatch.setattr(durable, "sync", lambda path: None)
    assert score(run, source, "--out", old).exit_code == 0
    source.write_text('{"text": "the mat and a dog"}\n')
    kills = 0
    while True:
        out = shutil.copytree(old, tmp_path / f"{kills}")
        killed = killed_at(kills, (run, source, "--out", out), monkeypatch)
        assert score(run, source, "--out", out).exit_code == 0
        assert [row["text"] for row in rows(out / "a.jsonl")] == ["the mat and a dog"]
        if not killed:
            break
        kills += 1
    assert kills >= 4, "the result and its record, twice"


def alive(number: int) -> bool:
    try:
        state = Path(f"/proc/{number}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return False
    return state[0] != "Z"


def test_what_is_left_early_ends_its_own_processes_alone(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    jobs = [replace(job, shard=replace(job.shard, source=str(tmp_path / "nothing")))] * 3
    other = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    other.start()
    progress = CorpusProgress(io.StringIO(), doing="", sizes=[1, 1, 1])
    outcomes = run_in_processes(jobs, progress, processes=1)
    next(outcomes)
    outcomes.close()  # type: ignore[attr-defined]
    assert multiprocessing.active_children() == [other]
    other.terminate()
    other.join()


@pytest.mark.skipif(sys.platform != "linux", reason="finds child processes in /proc")
def test_processes_end_with_a_command_that_is_killed_and_make_the_same_files(
    run: Path, tmp_path: Path
) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number in range(24):
        (corpus / f"{number:02}.jsonl").write_text((ROW % json.dumps(LINES[0]) + "\n") * 300)
    out = tmp_path / "out"
    arguments = [str(run), str(corpus), "--out", str(out)]
    command = [sys.executable, "-P", "-m", "sglm.cli.main", "score", *arguments]
    with subprocess.Popen([*command, "--processes", "2"]) as process:
        while not list(out.glob("*.jsonl")):
            assert process.poll() is None
            time.sleep(0.02)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(process.pid, signal.SIGKILL)
    done = {path.name: path.stat().st_mtime_ns for path in out.glob("*.jsonl")}
    deadline = time.monotonic() + 10
    while any(alive(int(child)) for child in children):
        assert time.monotonic() < deadline, "a worker outlives the command"
        time.sleep(0.05)
    assert len(children) >= 2
    assert score(run, corpus, "--out", out, "--processes", 1).exit_code == 0
    later = {path.name: path.stat().st_mtime_ns for path in out.glob("*.jsonl")}
    assert len(later) == 24
    assert done.items() <= later.items(), "a finished file was done again"
    assert len({path.read_bytes() for path in out.glob("*.jsonl")}) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fields", "perplexity,tokens"], "unknown 'tokens'; did you mean 'n_tokens'?"),
        (["--fields", "n_unk,n_unk"], "'n_unk' is given twice"),
        (["--buckets", "60,30"], "not two rising percentiles"),
        (["--buckets", "30,60", "--fields", "n_unk"], "add perplexity to --fields"),
        (["--buckets", "nan,60"], "not two rising percentiles"),
        (["--processes", "0"], "--processes must be at least 1"),
        (["--processes", "2", "--engine", "ray"], "leave it out with --engine ray"),
        (["--per-token"], "--per-token and --out do not go together"),
        (["--color"], "--color and --out do not go together"),
        (["--engine", "spark"], "unknown 'spark'"),
    ],
)
def test_wrong_options(
    run: Path, corpus: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    result = score(run, corpus, "--out", tmp_path / "out", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") <= 2
    assert not (tmp_path / "out").exists()


def test_what_the_folder_of_results_refuses(run: Path, corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert score(run, corpus / "lines.txt", "--out", out).exit_code == 0
    other = save_lm("byte", tmp_path / "other")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")
    (tmp_path / "lines.txt").write_text("a\n")
    before = contents(out)
    for arguments, message in {
        (other, corpus, "--out", out): "made with the model",
        (run, corpus, "--out", out, "--eos"): "made with --bos",
        (run, corpus, "--out", out, "--fields", "n_unk"): "made with --fields perplexity,bits_per",
        (run, corpus, "--out", tmp_path / "mine"): "not empty, and no results of sglm score",
        (run, corpus, "--out", tmp_path / "lines.txt"): "a file, not a folder",
        (run, corpus, "--out", corpus / "below" / "out"): "lies in",
        (run, corpus, "--out", out / ".." / "corpus" / "below" / "out"): "lies in",
        (run, out / "lines.jsonl", "--out", out): "lines.jsonl in it; give another",
        (run, corpus, tmp_path / "lines.txt", "--out", out): "would both become",
        (run, corpus, corpus / "lines.txt", "--out", out): "lines.txt: given twice; give it once",
        (run, "-", "--out", out): "takes files and folders",
        (run, "--out", out): "none was given",
        (run, corpus, corpus): "one file at a time; for several, give --out DIR",
        (run, corpus / "lines.txt", "--buckets", "30,60"): "--buckets is for whole files; give",
    }.items():
        result = score(*arguments)
        expected = message.replace("made with --bos", "made with --eos False, now it is --eos True")
        assert expected in result.stderr
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert contents(out) == before


def test_empty_files_have_empty_results(run: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    for name in ("a.jsonl", "b.txt", "c.jsonl.gz"):
        (tmp_path / "corpus" / name).write_bytes(b"")
    assert score(run, tmp_path / "corpus", "--out", tmp_path / "out").exit_code == 0
    assert set(contents(tmp_path / "out")) == {"a.jsonl", "b.jsonl", "c.jsonl.gz", "score.json"}
    assert rows(tmp_path / "out" / "c.jsonl.gz") == rows(tmp_path / "out" / "b.jsonl") == []


def test_options_may_be_mended_until_a_file_is_done(
    run: Path, corpus: Path, tmp_path: Path
) -> None:
    command = (run, corpus / "rows.jsonl", "--out", tmp_path / "out")
    assert score(*command, "--text-field", "txet").exit_code == 1
    assert score(*command).exit_code == 0
    assert "made with --text-field text" in score(*command, "--text-field", "z").stderr


def test_without_ray(
    run: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = score(run, corpus, "--out", tmp_path / "out", "--engine", "ray")
    assert result.exit_code == 2
    assert "pip install 'sglm[ray]'" in result.stderr


def test_records_of_ids_have_no_words_and_bytes_and_a_foreign_id_is_named_by_its_record(
    tmp_path: Path,
) -> None:
    tokenizer, run, out = IdsTokenizer(20, eos_id=0), tmp_path / "run", tmp_path / "out"
    save_model(make_network(20), run, tokenizer.fingerprint)
    tokenizer.save(run)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "good.txt").write_text("1 2 3\n4 5\n")
    (corpus / "foreign.txt").write_text("1 2\n3\n4 20\n")
    result = score(run, corpus, "--out", out, "--fields", ",".join(FIELDS), "--json")
    assert result.exit_code == 1
    assert "foreign.txt, record 3: the id 20 is not in the vocabulary" in result.stderr
    summary = json.loads(result.stdout)
    assert (summary["words"], summary["bytes"], summary["bits_per_byte"]) == (None, None, None)
    lm = sglm.load(run)
    for row in rows(out / "good.jsonl"):
        assert row["perplexity"] == pytest.approx(lm.score(row["text"]).ppl, rel=1e-5)
        for name in ("word_perplexity", "bits_per_byte", "n_words", "n_bytes"):
            assert row[name] is None


def test_buckets_are_not_bounded_by_files_without_a_text(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "lines.txt").write_text("\n".join(LINES))
    how = ("--out", tmp_path / "out", "--buckets", "30,60", "--json")
    first = score(run, tmp_path / "empty.txt", *how)
    assert json.loads(first.stdout)["cutoffs"] is None
    second = json.loads(score(run, tmp_path / "empty.txt", tmp_path / "lines.txt", *how).stdout)
    assert second["buckets"]["head"] > 0
    assert second["buckets"]["tail"] > 0


def test_a_network_for_adapting_is_no_other_model(tmp_path: Path) -> None:
    place = save_lm("word", tmp_path / "run")
    (tmp_path / "lines.txt").write_text("\n".join(LINES))
    arguments = (place, tmp_path / "lines.txt", "--out", tmp_path / "out", "--json")
    assert score(*arguments).exit_code == 0
    (place / "adapt.json").write_text("{}")
    (place / "adapt.safetensors").write_bytes(b"")
    again = score(*arguments)
    assert json.loads(again.stdout)["already_done"] == 1


def test_an_empty_file_has_the_columns_of_the_others(run: Path, tmp_path: Path) -> None:
    for name in ("a.txt", "c.jsonl"):
        (tmp_path / name).touch()
    (tmp_path / "b.txt").write_text("\n".join(LINES))
    sources = (tmp_path / name for name in ("a.txt", "b.txt", "c.jsonl"))
    result = score(run, *sources, "--out", tmp_path / "out", "--format", "parquet")
    assert result.exit_code == 0, result.output
    names = [pq.read_schema(tmp_path / "out" / f"{name}.parquet").names for name in "abc"]
    assert names == [["text", "perplexity", "bits_per_byte"]] * 3


def test_columns_of_one_name_are_no_object(run: Path, tmp_path: Path) -> None:
    table = pa.table([["the cat"], [1], [2]], names=["text", "n", "n"])
    pq.write_table(table, tmp_path / "t.parquet")
    result = score(run, tmp_path / "t.parquet", "--out", tmp_path / "out", "--format", "jsonl")
    assert result.exit_code == 1
    assert "2 columns are called 'n'" in result.stderr


def test_what_failed_is_told_also_where_nobody_reads_the_summary(run: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": ')
    command = [sys.executable, "-m", "sglm.cli.main", "score", run, tmp_path / "bad.jsonl"]
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [*map(str, command), "--out", str(tmp_path / "out")],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert ended.returncode == 1
    assert "bad.jsonl" in ended.stderr


def test_a_result_is_not_replaced_by_that_of_another_source(run: Path, tmp_path: Path) -> None:
    for name in ("en", "de"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(f"the cat {name}\n")
        os.utime(tmp_path / name / "a.txt", (0, 0))
    out = ("--out", tmp_path / "out")
    assert score(run, tmp_path / "en" / "a.txt", *out).exit_code == 0
    refused = score(run, tmp_path / "de" / "a.txt", *out)
    assert refused.exit_code == 2
    assert f"was made from {tmp_path}/en/a.txt, and" in refused.stderr
    assert rows(tmp_path / "out" / "a.jsonl")[0]["text"] == "the cat en"
    (tmp_path / "en").rename(tmp_path / "moved")  # the same files under another name go on
    again = score(run, tmp_path / "moved" / "a.txt", *out, "--json")
    assert json.loads(again.stdout)["already_done"] == 1


def test_the_bucket_pass_reads_what_escapes_made_long(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sglm.text.lines.LONGEST_LINE_BYTES", 1 << 20)
    (tmp_path / "a.txt").write_text('"' * 600_000 + "\nthe cat\n")  # each is \\" in JSON
    result = score(run, tmp_path / "a.txt", "--out", tmp_path / "out", "--buckets", "30,60")
    assert result.exit_code == 0, result.stderr
    assert len(rows(tmp_path / "out" / "a.jsonl")) == 2


def test_a_folder_that_was_emptied_keeps_nothing_of_another_model(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text("\n".join(LINES))
    arguments = (tmp_path / "a.txt", "--out", tmp_path / "out", "--buckets", "30,60")
    with monkeypatch.context() as patched:
        patched.setattr("sglm.corpus_filter.run._give_buckets", lambda *_: [])
        assert score(run, *arguments).exit_code == 0
    (tmp_path / "out" / "score.json").unlink()  # rm -r out/*
    other = save_lm("char", tmp_path / "other")
    assert score(other, *arguments).exit_code == 0
    fresh = (tmp_path / "a.txt", "--out", tmp_path / "fresh", "--buckets", "30,60")
    assert score(other, *fresh).exit_code == 0
    assert contents(tmp_path / "out")["a.jsonl"] == contents(tmp_path / "fresh")["a.jsonl"]


def test_scores_below_a_folder_of_text_are_not_its_text_and_alone_they_are(
    run: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("\n".join(LINES))
    out = tmp_path / "scored"
    assert score(run, tmp_path / "a.txt", "--out", out).exit_code == 0
    with pytest.warns(SglmWarning, match="scored: scores of a text, which would be read twice"):
        found = find_sources(str(tmp_path))
    assert [Path(source.name).name for source in found] == ["a.txt"]
    assert [Path(source.name).name for source in find_sources(str(out))] == ["a.jsonl"]
