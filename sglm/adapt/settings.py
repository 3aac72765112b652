"""The kinds of adaptation and their settings: names, defaults, ranges, values tried by tuning."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sglm.errors import InputError, did_you_mean, short_repr
from sglm.scoring.arguments import checked_choice, real_number, whole_number

KINDS = ("cache", "dynamic", "synthetic", "cache,dynamic")
RULES = ("sgd", "rms")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A numeric setting of an adaptation."""

    kind: str
    default: float
    maximum: float
    minimum: float = 0.0
    whole: bool = False
    tried: tuple[float, ...] = ()
    """The values from which tuning chooses; empty if it does not tune this setting."""

    def checked(self, name: str, value: Any) -> float:
        """Checks a value.

        Raises:
            InputError: The value is not a number, or out of range.
        """
        number = whole_number(name, value) if self.whole else real_number(name, value)
        if not self.minimum <= number <= self.maximum:
            raise InputError(
                f"{name} must be from {self.minimum:g} to {self.maximum:g}, but is"
                f" {short_repr(value)}"
            )
        return number


SETTINGS: dict[str, Setting] = {
    "size": Setting(
        kind="cache", default=500, minimum=1, maximum=2**40, whole=True, tried=(200, 500, 2000)
    ),
    "weight": Setting(kind="cache", default=0.1, maximum=1.0, tried=(0.05, 0.1, 0.15, 0.2, 0.3)),
    "sharpness": Setting(kind="cache", default=0.3, maximum=1e6, tried=(0.1, 0.2, 0.3, 0.5, 0.8)),
    "segment": Setting(kind="dynamic", default=32, minimum=1, maximum=2**20, whole=True),
    "learning_rate": Setting(kind="dynamic", default=1.0, maximum=1e6),
    "decay": Setting(kind="dynamic", default=0.01, maximum=1.0, tried=(0.003, 0.01, 0.03)),
    "steps": Setting(kind="synthetic", default=2, maximum=1000, whole=True),
}
# Learning rates that tuning tries, for each rule; the middle one is the default.
LEARNING_RATES = {"sgd": (0.3, 1.0, 2.0), "rms": (0.0001, 0.0002, 0.0003)}


def default_rate(rule: str) -> float:
    """Returns the default learning rate of a rule."""
    return LEARNING_RATES[rule][1]


def checked_kind(kind: Any) -> str:
    """Returns the member of `KINDS` that `kind` names; combined kinds may be in any order.

    Raises:
        InputError: There is no such kind.
    """
    name = ",".join(sorted(str(kind).split(",")))
    if name not in KINDS:
        cure = did_you_mean(name, KINDS)
        raise InputError(f"there is no adaptation {short_repr(kind)}{cure}")
    return name


def checked_settings(kind: str, given: Mapping[str, Any], *, has_train: bool) -> dict[str, Any]:
    """Returns all settings of a kind, including defaults.

    Args:
        kind: Kind from `checked_kind`.
        given: Settings that differ from the defaults.
        has_train: Whether there is a training text, which the RMS rule needs.

    Raises:
        InputError: A setting is unknown, belongs to another kind, or is out of range; the RMS rule
            lacks its training text.
    """
    kinds = kind.split(",")
    own = {name: each for name, each in SETTINGS.items() if each.kind in kinds}
    known = [*own, "rule"] if "dynamic" in kinds else [*own]
    for name in given:
        if name not in known:
            raise InputError(
                f"adaptation by {kind} has no setting {name!r}{did_you_mean(name, known)}"
            )
    settings = {
        name: each.checked(name, given.get(name, each.default)) for name, each in own.items()
    }
    if "dynamic" in kinds:
        rule = checked_choice("rule", given.get("rule", "rms" if has_train else "sgd"), RULES)
        if rule == "rms" and not has_train:
            raise InputError(
                "the rule rms needs the training text, on which it measures gradients: give its"
                " store (in Python train=STORE), or rule=sgd"
            )
        if "learning_rate" not in given:
            settings["learning_rate"] = default_rate(rule)
        return {"rule": rule, **settings}
    return settings


def values_tried(name: str, settings: Mapping[str, Any]) -> tuple[float, ...]:
    """Returns the values from which tuning chooses."""
    if name == "learning_rate":
        return LEARNING_RATES[settings["rule"]]
    return SETTINGS[name].tried if name in SETTINGS else ()
