"""The files of a corpus as the tasks of a Ray cluster, here one of two CPUs on this machine."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sglm.cli.main import app
from tests.extras.conftest import needs
from tests.tiny_models import LINES, save_lm

ray = needs("ray")
# Ray's own, of its dashboard's agent and of sockets that it leaves open.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def _cluster() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
        yield
        ray.shutdown()


@pytest.mark.usefixtures("_cluster")
def test_a_cluster_makes_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # tasks work in another folder
    save_lm("sentencepiece", Path("run"))
    Path("corpus").mkdir()
    for number in range(5):
        lines = [json.dumps({"id": number, "text": line}) for line in LINES[number:]]
        Path("corpus", f"{number}.jsonl").write_text("\n".join(lines) + "\n")
    Path("corpus", "cut.jsonl").write_text('{"text": ')
    found = {}
    for name, engine in {"ray": ["--engine", "ray"], "local": ["--processes", "1"]}.items():
        command = ["score", "run", "corpus", "--out", name, "--buckets", "30,60", *engine]
        for _ in range(2):
            result = CliRunner().invoke(app, command)
            assert result.exit_code == 1
            assert "sglm: corpus/cut.jsonl, line 1: not JSON" in result.stderr.replace(
                f"{tmp_path}/", ""
            )
        files = sorted(Path(name).glob("*.jsonl"))
        assert len(files) == 5
        found[name] = [(path.name, path.read_bytes()) for path in files]
        assert '"bucket": "' in files[0].read_text()
        Path("corpus", "cut.jsonl").write_text('{"text": ')
    # The same weights, the same batches, one thread each: the same bits.
    assert found["ray"] == found["local"]
