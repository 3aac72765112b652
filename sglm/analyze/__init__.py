"""What synthetic gradients do to a model: measurements of trained runs, one folder per question.

Each analysis is an `Analysis` (`analysis.py`): it is given runs and a store, patches nothing, and
consists of parts that are computed one after another and saved, so that an interrupted analysis
continues where it stopped. It returns a `Finding`: the data, with methods that give its table, its
interpretation in words and its picture. `sglm analyze WHAT RUN…` prints it (`cli/analyze.py`);
docs/analysis.md explains the mathematics.
"""

from sglm.analyze.curvature.analysis import curvature
from sglm.analyze.gradients.analysis import gradients
from sglm.analyze.landscape.analysis import landscape
from sglm.analyze.norms.analysis import norms
from sglm.analyze.representations.analysis import representations

__all__ = ["curvature", "gradients", "landscape", "norms", "representations"]
