"""What measures sglm, tries things with it and tries to break it. Not installed with it.

The executable files here are the entry points. What lies in the packages is run from the checkout's
root, as `.venv/bin/python -m scripts.stress.soak`.
"""

from pathlib import Path

# Where Python finds this package by its name, and so where a process starts that runs a module of
# it, wherever the process that started it is.
ROOT = Path(__file__).resolve().parents[1]
