"""What measures sglm, tries things with it and tries to break it. Not installed with it.

The executable files here are the entry points. Modules of the packages are run from the checkout's
root, as `.venv/bin/python -m scripts.stress.soak`.
"""

from pathlib import Path

# The folder in which Python finds this package. Processes that run one of its modules are started
# there, whatever the working directory of the process that starts them.
ROOT = Path(__file__).resolve().parents[1]
