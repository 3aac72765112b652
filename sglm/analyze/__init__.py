"""What synthetic gradients do to a model: measurements of trained runs, one folder a question.

Each analysis is an `Analysis` (`analysis.py`): it is handed runs and a store, patches nothing, and
consists of parts that are computed in turn and kept, so that an interrupted one goes on where it
stopped. What it returns is a `Finding`: data, which also knows its table, its sentence of reading
and its picture. `sglm analyze WHAT RUN…` shows it (`cli/analyze.py`); docs/analysis.md explains it.
"""

from sglm.analyze.curvature.analysis import curvature
from sglm.analyze.gradients.analysis import gradients
from sglm.analyze.landscape.analysis import landscape
from sglm.analyze.norms.analysis import norms
from sglm.analyze.representations.analysis import representations

__all__ = ["curvature", "gradients", "landscape", "norms", "representations"]
