"""Coverage-guided fuzzing of everything that reads a file or a text from elsewhere.

    python -m scripts.stress.fuzz TARGET --seconds 120      (TARGET: see --help, or `all`)

Each input must end in a result or in an SglmError; any other exception, a crash of a library, a run
of more than 30 seconds or more than 3 GB of memory ends the target, and the input is kept as a file
(`--keep`). Atheris mutates the inputs and watches which branches of sglm they reach. In the test
suite, the same targets run on their seeds without it.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from scripts import ROOT

SECONDS_PER_INPUT = 30
MEMORY_MB = 3000


def main() -> int:
    """Parses the command line; fuzzes each target in a process of its own."""
    names = target_names()
    parser = argparse.ArgumentParser(
        prog="python -m scripts.stress.fuzz", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("target", choices=[*names, "all"], metavar="TARGET", help=", ".join(names))
    parser.add_argument("--seconds", type=int, default=60, help="time for each target")
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="folder of findings")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        import atheris  # noqa: F401
    except ImportError:
        print("scripts.stress.fuzz needs atheris: pip install atheris", file=sys.stderr)
        return 2
    if options.worker is not None:
        fuzz(options.target, options.seconds, options.keep, options.worker)
    failed = []
    for name in names if options.target == "all" else [options.target]:
        # Atheris exits without cleaning up, so the parent process removes its working folder.
        with tempfile.TemporaryDirectory() as folder:
            arguments = [name, "--seconds", str(options.seconds)]
            arguments += ["--keep", str(options.keep.resolve()), "--worker", folder]
            command = [sys.executable, "-m", "scripts.stress.fuzz", *arguments]
            if subprocess.run(command, cwd=ROOT, check=False).returncode != 0:
                failed.append(name)
    print(
        f"found something: {', '.join(failed)}; see {options.keep}" if failed else "nothing found"
    )
    return 1 if failed else 0


def target_names() -> list[str]:
    """Returns the names of the targets without importing their module, which takes seconds."""
    text = (Path(__file__).parent / "fuzz_targets.py").read_text(encoding="utf-8")
    return [line[11:].split("(")[0] for line in text.splitlines() if line.startswith("def target_")]


def fuzz(name: str, seconds: int, keep: Path, folder: Path) -> None:
    """Fuzzes one target for `seconds`; ends the process."""
    import atheris
    import torch

    with atheris.instrument_imports(include=["sglm", "tomllib", "json", "gzip"]):
        from scripts.stress import fuzz_seeds, fuzz_targets

    torch.set_num_threads(1)
    originals = fuzz_targets.Originals(folder / "originals")
    corpus, found = folder / "corpus", keep / name
    corpus.mkdir()
    found.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(fuzz_seeds.seeds(name, originals)):
        (corpus / f"seed-{number}").write_bytes(seed)
    run: Callable[[bytes], None] = fuzz_targets.target(name, originals)
    atheris.Setup(
        [
            sys.argv[0],
            str(corpus),
            f"-max_total_time={seconds}",
            f"-timeout={SECONDS_PER_INPUT}",
            f"-rss_limit_mb={MEMORY_MB}",
            f"-artifact_prefix={found}/",
            "-max_len=65536",
            "-print_final_stats=1",
            "-verbosity=1",
        ],
        run,
    )
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
