"""Pictures, drawn with matplotlib if it is installed (the extra `plots`)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sglm.storage.durable import replace_file

WITHOUT_MATPLOTLIB = "will not be drawn: it needs matplotlib; pip install matplotlib"


def can_draw() -> bool:
    """Returns whether matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def save_picture(path: Path, draw: Callable[[Any], object]) -> None:
    """Draws a picture of 8 × 5 inches and writes it as PNG.

    Args:
        path: The file to write.
        draw: Function that draws on the matplotlib figure that it is given.
    """
    # Not pyplot, which would choose a backend for the whole process.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    draw(figure)
    replace_file(path, lambda aside: figure.savefig(aside, format="png", dpi=120))
