"""The variants: ways of training that differ in one thing, as changes to one configuration.

The module imports little, because `sglm compare --help` prints the table below.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sglm.errors import ConfigError

if TYPE_CHECKING:
    from sglm.config import Config

BASELINE = "bptt"
CEILING = "bptt-long"
# Plain truncation, synthetic gradients, and the exact gradients that these approximate: enough to
# answer "does it help here?".
DEFAULT_VARIANTS = ("bptt", "dni", "bptt-long")
# Enough windows to see the horizon gap (BPTT(h; T)), at a moderate cost.
DEFAULT_HORIZON_WINDOWS = 4


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A way of training.

    Attributes:
        sentence: Description for users.
        mode: Kind of gradient, as `schedule.mode`.
        restarts: Whether the run has the configuration's cycles, and not one cosine over its whole
            length.
        kind: As `synthesizer.kind`. None: that of the configuration.
        inject: As `synthesizer.inject`.
        long_horizon: Whether the past is read again, over several windows.
        past: As `train.past`, what the past is read again for.
        swapped: Whether there are fewer lanes, with windows as long as the long horizon and as many
            tokens in an update.
        truncation: As `train.truncation`.
        controls: Variants that differ from this one in one thing; it is compared with them and with
            `bptt`.
    """

    sentence: str
    mode: Literal["real", "synthetic", "alternating"]
    restarts: bool = False
    kind: Literal["feedback", "direct", "critic"] | None = None
    inject: Literal["prediction", "noise", "other-lane"] = "prediction"
    long_horizon: bool = False
    past: Literal["gradient", "state"] = "gradient"
    swapped: bool = False
    truncation: Literal["fixed", "random"] = "fixed"
    controls: tuple[str, ...] = ()


VARIANTS = {
    "bptt": Variant(
        sentence="Plain truncated backpropagation, one cosine cycle over the whole length: the"
        " baseline.",
        mode="real",
    ),
    "bptt-restarts": Variant(
        sentence="Plain truncated backpropagation with the configuration's cycles.",
        mode="real",
        restarts=True,
    ),
    "dni": Variant(
        sentence="Synthetic gradients throughout (Jaderberg et al. 2017), one cycle.",
        mode="synthetic",
    ),
    "dni-restarts": Variant(
        sentence="Synthetic gradients throughout, with the configuration's cycles.",
        mode="synthetic",
        restarts=True,
        controls=("bptt-restarts",),
    ),
    "dni-feedback": Variant(
        sentence="Rival: as dni, but the adjoint goes back through fixed random matrices instead of"
        " the model (feedback alignment: Lillicrap et al. 2016).",
        mode="synthetic",
        kind="feedback",
        controls=("dni",),
    ),
    "dni-direct": Variant(
        sentence="Rival: as dni, but one fixed random matrix maps the gradients at the softmax, as"
        " the adjoint predicts them, to the state (direct feedback alignment: Nøkland 2016).",
        mode="synthetic",
        kind="direct",
        controls=("dni",),
    ),
    "dni-critic": Variant(
        sentence="Rival: as dni, but with the derivative of a predicted future loss.",
        mode="synthetic",
        kind="critic",
        controls=("dni",),
    ),
    "alternating": Variant(
        sentence="Synthetic and real gradients in turn (Shang & Zhang 2019), with the"
        " configuration's cycles.",
        mode="alternating",
        restarts=True,
        controls=("bptt-restarts", "noise", "other-lane"),
    ),
    "noise": Variant(
        sentence="Control: as alternating, but random directions with the prediction's norm are"
        " injected.",
        mode="alternating",
        restarts=True,
        inject="noise",
        controls=("bptt-restarts",),
    ),
    "other-lane": Variant(
        sentence="Control: as alternating, but the adjoint reads another lane's coming text: a gain"
        " that remains does not come from the text.",
        mode="alternating",
        restarts=True,
        inject="other-lane",
        controls=("bptt-restarts",),
    ),
    "bptt-long": Variant(
        sentence="Control: as bptt, with the exact gradient over --horizon steps (Williams & Peng"
        " 1990): what a synthetic gradient can be expected to gain.",
        mode="real",
        long_horizon=True,
    ),
    "bptt-long-restarts": Variant(
        sentence="Control: as bptt-long, with the configuration's cycles.",
        mode="real",
        restarts=True,
        long_horizon=True,
        controls=("bptt-restarts",),
    ),
    "fresh": Variant(
        sentence="Control: as bptt-long, but the past is read only to recompute the state before"
        " every window with the current weights; no gradient goes through it.",
        mode="real",
        long_horizon=True,
        past="state",
    ),
    "swapped": Variant(
        sentence="Rival: as bptt, with fewer lanes but windows of --horizon steps: as many tokens"
        " in an update.",
        mode="real",
        swapped=True,
    ),
    "artbp": Variant(
        sentence="Rival: as bptt, with random, compensated truncation (Tallec & Ollivier 2017).",
        mode="real",
        truncation="random",
    ),
}


def prepare_base(config: "Config", cycle_steps: tuple[int, ...], steps_per_epoch: int) -> "Config":
    """Returns the configuration in steps instead of epochs.

    So all variants make the same number of updates, even one with windows of other lengths.

    Args:
        config: Configuration from the user.
        cycle_steps, steps_per_epoch: Lengths of its cycles and of an epoch in steps, with windows
            of fixed length.

    Raises:
        ConfigError: The configuration sets a key that only variants may set.
    """
    from sglm.config import parse_config, plain_values
    from sglm.config.schema import GEOMETRIC_CYCLES

    taken = {
        "train.horizon": (config.train.horizon is not None, "bptt-long (with --horizon)"),
        "train.truncation": (config.train.truncation != "fixed", "artbp"),
        "train.past": (config.train.past != "gradient", "fresh"),
        "synthesizer.inject": (config.synthesizer.inject != "prediction", "noise or other-lane"),
    }
    for key, (is_set, variant) in taken.items():
        if is_set:
            raise ConfigError(f"{key} is what the variant {variant} sets; leave it out")
    values = plain_values(config)
    for key in GEOMETRIC_CYCLES:
        values["schedule"].pop(key, None)
    values["schedule"] |= {"unit": "steps", "cycles": [float(steps) for steps in cycle_steps]}
    values["train"]["evaluate_every_steps"] = config.train.evaluate_every_steps or steps_per_epoch
    return parse_config(values, "the configuration in steps")


def configure(variant: str, base: "Config", *, seed: int, horizon: int) -> "Config":
    """Returns the configuration of one run: a pure function.

    Args:
        variant: Name of a variant in `VARIANTS`.
        base: Configuration from `prepare_base`.
        seed: Seed of the weights, dropout and noise.
        horizon: Horizon in steps, for the variants with a long one.

    Raises:
        ConfigError: The variant does not fit the base configuration.
    """
    from sglm.config import parse_config, plain_values

    chosen, values = VARIANTS[variant], plain_values(base)
    values["schedule"]["mode"] = chosen.mode
    if not chosen.restarts:
        values["schedule"]["cycles"] = [sum(base.schedule.cycle_lengths())]
    values["synthesizer"] |= _synthesizer(chosen, base)
    values["train"] |= {
        "seed": seed,
        "truncation": chosen.truncation,
        "horizon": horizon if chosen.long_horizon else None,
        "past": chosen.past,
    }
    if chosen.swapped:
        values["train"] |= _swap(variant, base, horizon)
    return parse_config(values, variant)


def _synthesizer(chosen: Variant, base: "Config") -> dict[str, object]:
    """Returns a variant's changes to `[synthesizer]`; keys that its kind lacks are reset."""
    from sglm.config.schema import SynthesizerConfig

    if chosen.kind is None:
        return {"inject": chosen.inject}
    changes: dict[str, object] = {"kind": chosen.kind, "auxiliary": False}
    if not SynthesizerConfig(kind=chosen.kind).reads_text:
        default = SynthesizerConfig()
        changes |= {"every": default.every, "reach": default.reach}
    return changes | {"inject": chosen.inject}


def _swap(variant: str, base: "Config", horizon: int) -> dict[str, int]:
    batch, windows = base.train.batch, horizon // base.train.window
    if batch % windows:
        raise ConfigError(
            f"{variant} makes windows {windows} times as long, and {batch} lanes are no multiple"
            f" of that; set train.batch to one, or leave {variant} out of --variants"
        )
    return {"batch": batch // windows, "window": horizon}


def check_cycles(variants: tuple[str, ...], base: "Config") -> None:
    """Checks that variants with restarts have some.

    Raises:
        ConfigError: A variant has restarts but the schedule has one cycle, so that it would equal
            another variant.
    """
    with_restarts = [name for name in variants if VARIANTS[name].restarts]
    if with_restarts and len(base.schedule.cycle_lengths()) == 1:
        raise ConfigError(
            f"the schedule has one cycle, so nothing alternates or restarts in"
            f" {', '.join(with_restarts)};\ngive schedule.count or schedule.cycles two or more, or"
            " compare --variants bptt,dni"
        )


def horizon_steps(horizon: int | None, window: int) -> int:
    """Returns the long horizon in steps, rounded up to whole windows; None stands for the default.

    Raises:
        ConfigError: The horizon is no longer than a window.
    """
    if horizon is None:
        return DEFAULT_HORIZON_WINDOWS * window
    if horizon <= window:
        raise ConfigError(f"--horizon {horizon} is no longer than train.window = {window} steps")
    return -(-horizon // window) * window
