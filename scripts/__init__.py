"""Benchmarks, experiments and stress tests of sglm, and tools for its documentation. Not installed.

The executable files in this folder are the entry points. Modules of the packages are run from the
root of the checkout, for example `.venv/bin/python -m scripts.stress.soak`.
"""

from pathlib import Path

# The root of the checkout, in which Python finds this package. Processes that run a module of the
# package are started there, whatever the working directory of their parent.
ROOT = Path(__file__).resolve().parents[1]
