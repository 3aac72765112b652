"""The variants: each changes one thing, and none the number of updates."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglm.compare.runs import Comparison
from sglm.compare.variants import (
    CEILING,
    DEFAULT_VARIANTS,
    VARIANTS,
    check_cycles,
    configure,
    horizon_steps,
    prepare_base,
)
from sglm.config import Config, differences, parse_config
from sglm.errors import ConfigError
from sglm.optim.schedule import Mode
from sglm.train.build import build_schedule

MakeComparison = Callable[..., Comparison]
SEED = 7
HORIZON = 20
ADJOINT = {"synthesizer": {"kind": "adjoint"}}  # for other-lane


def changes(variant: str, base: Config) -> set[str]:
    """Which keys differ from those of the configuration, besides the seed."""
    lines = differences(base, configure(variant, base, seed=SEED, horizon=HORIZON))
    return {line.partition(":")[0] for line in lines} - {"train.seed"}


@pytest.mark.parametrize(
    ("variant", "expected"),
    [
        ("bptt", {"schedule.mode", "schedule.cycles"}),
        ("bptt-restarts", {"schedule.mode"}),
        ("dni", {"schedule.mode", "schedule.cycles"}),
        ("dni-restarts", {"schedule.mode"}),
        ("dni-feedback", {"schedule.mode", "schedule.cycles", "synthesizer.kind"}),
        ("dni-direct", {"schedule.mode", "schedule.cycles", "synthesizer.kind"}),
        ("dni-critic", {"schedule.mode", "schedule.cycles", "synthesizer.kind"}),
        ("alternating", set()),
        ("noise", {"synthesizer.inject"}),
        ("other-lane", {"synthesizer.inject"}),
        ("bptt-long", {"schedule.mode", "schedule.cycles", "train.horizon"}),
        ("bptt-long-restarts", {"schedule.mode", "train.horizon"}),
        ("fresh", {"schedule.mode", "schedule.cycles", "train.horizon", "train.past"}),
        ("swapped", {"schedule.mode", "schedule.cycles", "train.batch", "train.window"}),
        ("artbp", {"schedule.mode", "schedule.cycles", "train.truncation"}),
    ],
)
def test_a_variant_changes_what_it_is_about_and_nothing_else(
    variant: str, expected: set[str], make_comparison: MakeComparison
) -> None:
    base = make_comparison(**ADJOINT).base
    assert changes(variant, base) == expected
    made = configure(variant, base, seed=SEED, horizon=HORIZON)
    assert made.train.seed == SEED
    assert made.train.horizon == (HORIZON if "train.horizon" in expected else None)
    modes = set(build_schedule(made, steps_per_epoch=3).cycle_modes)
    if VARIANTS[variant].mode == "alternating":
        assert modes == {Mode.REAL, Mode.SYNTHETIC}
    else:
        assert modes == {Mode(VARIANTS[variant].mode)}


def test_every_variant_is_tested_above() -> None:
    tested = test_a_variant_changes_what_it_is_about_and_nothing_else.pytestmark[0].args[1]  # type: ignore[attr-defined]
    assert [name for name, _ in tested] == list(VARIANTS)
    assert set(DEFAULT_VARIANTS) <= VARIANTS.keys()
    assert all(set(variant.controls) <= VARIANTS.keys() for variant in VARIANTS.values())


@given(
    lengths=st.lists(st.floats(0.1, 5.0), min_size=1, max_size=5),
    unit=st.sampled_from(["epochs", "steps"]),
    steps_per_epoch=st.integers(1, 50),
    mode=st.sampled_from(["real", "synthetic", "alternating"]),
    evaluate_every=st.none() | st.integers(1, 9),
)
def test_all_make_equal_updates_and_evaluations(
    lengths: list[float], unit: str, steps_per_epoch: int, mode: str, evaluate_every: int | None
) -> None:
    """Also where an epoch has another number of windows, as with random truncation."""
    config = parse_config(
        {
            "schedule": {"cycles": lengths, "unit": unit, "mode": mode},
            "train": {"window": 5, "evaluate_every_steps": evaluate_every},
            **ADJOINT,
        },
        "test",
    )
    schedule = build_schedule(config, steps_per_epoch)
    base = prepare_base(config, schedule.cycle_steps, steps_per_epoch)
    for variant in VARIANTS:
        made = configure(variant, base, seed=SEED, horizon=HORIZON)
        assert build_schedule(made, steps_per_epoch + 11).total_steps == schedule.total_steps
        assert made.train.evaluate_every_steps == (evaluate_every or steps_per_epoch)
        if VARIANTS[variant].restarts:
            assert build_schedule(made, 1).cycle_steps == schedule.cycle_steps
        else:
            assert build_schedule(made, 1).cycle_steps == (schedule.total_steps,)


@given(windows=st.integers(1, 7), lanes=st.integers(1, 7), steps=st.integers(1, 9))
def test_swapped_has_as_many_tokens_to_an_update(windows: int, lanes: int, steps: int) -> None:
    config = parse_config({"train": {"batch": lanes * windows, "window": steps}}, "test")
    base = prepare_base(config, (10,), steps_per_epoch=5)
    swapped = configure("swapped", base, seed=SEED, horizon=windows * steps)
    assert (swapped.train.batch, swapped.train.window) == (lanes, windows * steps)


def test_lanes_that_cannot_be_swapped_are_refused() -> None:
    base = prepare_base(parse_config({"train": {"window": 5}}, "test"), (10,), steps_per_epoch=5)
    with pytest.raises(ConfigError, match=r"swapped makes windows 3 times .* 20 lanes .*batch"):
        configure("swapped", base, seed=SEED, horizon=15)


REAL = {"schedule": {"mode": "real"}}  # synthetic gradients are refused beside these two


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"horizon": 10}, **REAL}, r"train\.horizon is what the variant bptt-long"),
        (
            {"train": {"truncation": "random"}, **REAL},
            r"train\.truncation is what the variant artbp",
        ),
        (
            {"train": {"horizon": 10, "past": "state"}, **REAL},
            r"train\.horizon is what the variant bptt-long",
        ),
        ({"synthesizer": {"inject": "noise"}}, r"synthesizer\.inject is what the variant noise"),
    ],
)
def test_a_configuration_must_not_set_what_variants_set(
    sections: dict[str, dict[str, object]], message: str, make_comparison: MakeComparison
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_comparison(**sections)


@pytest.mark.parametrize("kind", ["adjoint", "recurrent"])
def test_a_rival_takes_over_what_suits_it(kind: str, make_comparison: MakeComparison) -> None:
    """What is for adjoints alone a critic does not have; nor a rival what learned ones have."""
    special = {"every": 3, "reach": 7} if kind == "adjoint" else {"auxiliary": True}
    base = make_comparison(synthesizer={"kind": kind, "hidden": 9, **special}).base
    for name in ("dni-feedback", "dni-direct", "dni-critic"):
        settings = configure(name, base, seed=SEED, horizon=HORIZON).synthesizer
        assert (settings.kind, settings.hidden) == (name.removeprefix("dni-"), 9)
        reads = (3, 7) if kind == "adjoint" and name != "dni-critic" else (None, 10)
        assert (settings.every, settings.reach) == reads


def test_one_cycle_has_no_restarts(make_comparison: MakeComparison) -> None:
    base = make_comparison().base
    single = configure("bptt", base, seed=SEED, horizon=HORIZON)
    check_cycles(tuple(VARIANTS), base)
    check_cycles(("bptt", "dni", CEILING, "artbp"), single)
    with pytest.raises(ConfigError, match=r"one cycle.*in bptt-restarts, alternating;\ngive"):
        check_cycles(("bptt", "bptt-restarts", "alternating"), single)


@pytest.mark.parametrize(
    ("wanted", "expected"), [(None, 20), (6, 10), (10, 10), (11, 15), (1000, 1000)]
)
def test_the_horizon_is_whole_windows(wanted: int | None, expected: int) -> None:
    assert horizon_steps(wanted, window=5) == expected


@pytest.mark.parametrize("wanted", [5, 1, 0, -3])
def test_a_horizon_within_the_window_is_none(wanted: int) -> None:
    with pytest.raises(ConfigError, match=rf"--horizon {wanted} is no longer than .* = 5 steps"):
        horizon_steps(wanted, window=5)
