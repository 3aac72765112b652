"""Pictures, where matplotlib is installed (the extra `plots`)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sglm.storage.durable import replace_file

WITHOUT_MATPLOTLIB = "will not be drawn: it needs matplotlib; pip install matplotlib"


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def save_picture(path: Path, draw: Callable[[Any], object]) -> None:
    """Draws a picture of 8 × 5 inches and writes it as PNG.

    Args:
        path: of the file.
        draw: is given the matplotlib figure.
    """
    # Not pyplot: that would choose a backend for the whole process.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    draw(figure)
    replace_file(path, lambda aside: figure.savefig(aside, format="png", dpi=120))
