"""What synthetic gradients do to a model: measurements of trained runs, one file a question.

Each analysis is an `Analysis` (`analysis.py`): it is handed runs and a store, patches nothing, and
consists of parts that are computed in turn and kept, so that an interrupted one goes on where it
stopped. What it returns is a `Finding`: data, which also knows its table, its sentence of reading
and its picture. `sglm analyze WHAT RUN…` shows it (`cli/analyze.py`); docs/analysis.md explains it.
"""

from sglm.analyze.gradients import gradients as gradients
from sglm.analyze.landscape import landscape as landscape

__all__ = ["gradients", "landscape"]
