"""What is compared: ways of training that differ in one thing, as changes to one configuration.

Light to import: `sglm compare --help` prints the table below.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sglm.errors import ConfigError

if TYPE_CHECKING:
    from sglm.config import Config

BASELINE = "bptt"
CEILING = "bptt-long"
# Plain, with synthetic gradients, and with the exact ones that these approach: what "does it help
# here?" takes.
DEFAULT_VARIANTS = ("bptt", "dni", "bptt-long")
# Enough to see the horizon gap (BPTT(h; T)), few enough to pay for it.
DEFAULT_HORIZON_WINDOWS = 4


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way of training.

    Attributes:
        sentence: what it is, for people.
        mode: kind of gradient, as `schedule.mode`.
        restarts: the configuration's own cycles; otherwise one cosine over the whole length.
        kind: as `synthesizer.kind`, None for the configuration's own.
        inject: as `synthesizer.inject`.
        long_horizon: the past is read again, several windows of it.
        past: as `train.past`: what for.
        swapped: fewer lanes with windows as long as that horizon, as many tokens to an update.
        truncation: as `train.truncation`.
        controls: variants that it is compared with besides `bptt`: they differ from it in one
            thing.
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
        sentence="Rival: as dni, with what an adjoint reads carried back through fixed random"
        " matrices (feedback alignment: Lillicrap et al. 2016).",
        mode="synthetic",
        kind="feedback",
        controls=("dni",),
    ),
    "dni-direct": Variant(
        sentence="Rival: as dni, with what an adjoint reads mapped to the state by one fixed random"
        " matrix (direct feedback alignment: Nøkland 2016).",
        mode="synthetic",
        kind="direct",
        controls=("dni",),
    ),
    "dni-critic": Variant(
        sentence="Rival: as dni, with the derivative of a prediction of the future loss.",
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
        sentence="Control: as alternating, but random directions of the prediction's norm are"
        " injected.",
        mode="alternating",
        restarts=True,
        inject="noise",
        controls=("bptt-restarts",),
    ),
    "other-lane": Variant(
        sentence="Control: as alternating, but an adjoint reads another lane's coming text: a gain"
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
        sentence="Control: as bptt, with the state before every window computed anew from --horizon"
        " steps by today's weights, no gradient through them.",
        mode="real",
        long_horizon=True,
        past="state",
    ),
    "swapped": Variant(
        sentence="Rival: as bptt, with fewer lanes and windows of --horizon steps: as many tokens"
        " to an update.",
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
    """The configuration in steps instead of epochs, so that every variant makes as many updates,
    even one whose windows are cut differently.

    Args:
        config: as the user gave it.
        cycle_steps, steps_per_epoch: what its schedule comes to with windows of fixed length.

    Raises:
        ConfigError: it sets what the variants are there to set.
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
    """The configuration of one run: a pure function.

    Args:
        variant: a name in `VARIANTS`.
        base: from `prepare_base`.
        seed: of the weights, dropout and noise.
        horizon: in steps, for the variants with a long one.

    Raises:
        ConfigError: the variant does not go with the base configuration.
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
    """What a variant changes about the synthesizer; another kind takes over what suits it."""
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
            f"{variant} makes windows of {windows} times as many steps, and {batch} lanes are no"
            f" multiple of that; set train.batch to one, or leave {variant} out of --variants"
        )
    return {"batch": batch // windows, "window": horizon}


def check_cycles(variants: tuple[str, ...], base: "Config") -> None:
    """
    Raises:
        ConfigError: a variant is about restarts and there are none, so that it would be another
            variant under a second name.
    """
    with_restarts = [name for name in variants if VARIANTS[name].restarts]
    if with_restarts and len(base.schedule.cycle_lengths()) == 1:
        raise ConfigError(
            f"the schedule has one cycle, so nothing alternates or restarts in"
            f" {', '.join(with_restarts)};\ngive schedule.count or schedule.cycles two or more, or"
            " compare --variants bptt,dni"
        )


def horizon_steps(horizon: int | None, window: int) -> int:
    """The long horizon: rounded up to whole windows; None stands for the default.

    Raises:
        ConfigError: it is no longer than a window.
    """
    if horizon is None:
        return DEFAULT_HORIZON_WINDOWS * window
    if horizon <= window:
        raise ConfigError(f"--horizon {horizon} is no longer than train.window = {window} steps")
    return -(-horizon // window) * window
