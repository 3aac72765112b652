"""The scaling script measures real trainings."""

import subprocess
import sys

from scripts import ROOT


def test_rates_and_efficiency_of_each_number_of_processes() -> None:
    small = ["--size", "1x8x50", "--batch", "4", "--window", "5", "--updates", "4", "--rounds", "1"]
    command = [sys.executable, "-m", "scripts.benchmarks.scaling", "--processes", "1", *small]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    heading, line = done.stdout.splitlines()
    assert heading.split() == ["processes", "tokens/s", "efficiency"]
    processes, rate, efficiency = line.split()
    assert (processes, efficiency) == ("1", "100%")
    assert float(rate.replace(",", "")) > 0
