"""The scaling script measures real trainings."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "scaling.py"


def test_rates_and_efficiency_of_each_number_of_processes() -> None:
    small = ["--size", "1x8x50", "--batch", "4", "--window", "5", "--updates", "4", "--rounds", "1"]
    command = [sys.executable, str(SCRIPT), "--processes", "1", *small]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    heading, line = done.stdout.splitlines()
    assert heading.split() == ["processes", "tokens/s", "efficiency"]
    processes, rate, efficiency = line.split()
    assert (processes, efficiency) == ("1", "100%")
    assert float(rate.replace(",", "")) > 0
