"""The parts by name, their limits, and the visits that they make up."""

from dataclasses import dataclass, field
from importlib import import_module

from scripts.gpu_visit.cells import Part
from scripts.gpu_visit.supervise import Limits

_KERNELS_ON = {"SGLM_TRITON": "1"}
_DETERMINISTIC = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The description of a part, available without importing it.

    Attributes:
        where: Its module in this package and its function, as `module:function`.
        sentence: A description of the measurements.
        limits: Limits of time.
        environment: Environment variables of its process.
    """

    where: str
    sentence: str
    limits: Limits
    environment: dict[str, str] = field(default_factory=dict)


def _entry(where: str, sentence: str, part: float, cell: float, **named: dict[str, str]) -> Entry:
    return Entry(where=where, sentence=sentence, limits=Limits(part=part, cell=cell), **named)


PARTS = {
    "tests": _entry(
        "tests:tests",
        "the tests marked gpu, with the kernels on",
        150,
        100,
        environment=_KERNELS_ON,
    ),
    "rates": _entry("speed:rates", "the machine's best rates of products and copies", 25, 25),
    "kernels": _entry("kernels:kernels", "each kernel against its reference", 60, 25),
    "bench": _entry("speed:bench", "training steps, one factor at a time", 130, 40),
    "floor": _entry("speed:floors", "the time of these steps' matrix products alone", 35, 15),
    "memory": _entry("speed:memory", "memory and time with all logits, and in chunks", 25, 20),
    "profile": _entry("speed:profile", "where the time of a step goes: the ten longest", 20, 20),
    "other": _entry("other:other", "another project's code (--other) at two sizes", 30, 30),
    "learning": _entry(
        "learning:learning",
        "Penn Treebank: alternating, restarts only, synthetic only; bf16 and fp32",
        470,
        400,
    ),
    "best": _entry("learning:best", "the recipe ptb for as many epochs as fit", 380, 380),
    "deterministic": _entry(
        "learning:deterministic",
        "the recipe ptb twice, bit for bit",
        60,
        60,
        environment=_DETERMINISTIC,
    ),
}

VISITS = {
    "visit1": ["rates", "tests", "kernels", "bench", "floor", "memory", "profile", "other"],
    "visit2": ["rates", "learning"],
    "visit3": ["rates", "deterministic", "best", "other"],
}
VISIT_SECONDS = 465.0  # a command should take eight minutes; the rest is for its end


def load_part(name: str) -> Part:
    """Imports and returns the function of a part."""
    module, _, function = PARTS[name].where.partition(":")
    part: Part = getattr(import_module(f"scripts.gpu_visit.{module}"), function)
    return part
