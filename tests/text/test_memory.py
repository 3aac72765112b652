"""Memory does not grow with the text."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import make_text

# Prepares `text.txt` with the tokenizer named first; prints by how many bytes the peak grew.
# (VmHWM is this process's own peak; ru_maxrss would start from that of the one that forked it.)
MEASURE = """
import sys
from pathlib import Path
import numpy, sentencepiece
from sglm.text import sentencepiece_tokenizer
from sglm.text.prepare import StoreSettings, prepare

def peak():
    [line] = [l for l in open("/proc/self/status") if l.startswith("VmHWM")]
    return int(line.split()[1]) * 1024

sentencepiece_tokenizer.SAMPLE_BYTES //= 8  # learning must not hide what is kept elsewhere
before = peak()
held_out = 0.0 if sys.argv[2] == "line" else 0.05
settings = StoreSettings(tokenizer=sys.argv[1], valid=held_out, test=held_out)
prepare([sys.argv[3]], Path(sys.argv[4]), settings)
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("kind", "shape", "limit_mb"),
    [
        # Measured: 18, 30 and 28 MB, for blocks of a megabyte as text and as ids. With the text
        # kept in a list, or the line read whole: 47, 82 and 47 MB.
        ("char", "lines", 35),
        ("word", "line", 55),
        ("sentencepiece", "lines", 38),
    ],
)
def test_the_peak_is_far_below_the_text(
    tmp_path: Path, kind: str, shape: str, limit_mb: int
) -> None:
    path = tmp_path / "text.txt"
    block = make_text(40_000).replace("a", "ā")
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < 20e6:
            file.write(block if shape == "lines" else block.replace("\n", " "))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, kind, shape, str(path), str(tmp_path / "store")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < limit_mb * 1e6
