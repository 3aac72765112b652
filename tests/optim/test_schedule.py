"""The schedule as a table of (step, value) at its knots."""

import math

import pytest

from sglm.optim.schedule import Mode, Schedule, StepPlan, make_schedule


def test_cosine_knots_of_two_cycles() -> None:
    schedule = make_schedule([4, 8], unit_steps=1, mode="alternating")
    half = 0.5 * (1 + math.cos(math.pi / 4))
    knots = {
        0: StepPlan(1.0, Mode.REAL, 0),
        1: StepPlan(half, Mode.REAL, 0),
        2: StepPlan(0.5, Mode.REAL, 0),
        4: StepPlan(1.0, Mode.SYNTHETIC, 1),
        6: StepPlan(half, Mode.SYNTHETIC, 1),
        8: StepPlan(0.5, Mode.SYNTHETIC, 1),
    }
    for step, expected in knots.items():
        plan = schedule.at(step)
        assert (plan.mode, plan.cycle) == (expected.mode, expected.cycle)
        # Rounding of a cosine: a few units in the last place of a float64.
        assert plan.lr_factor == pytest.approx(expected.lr_factor, abs=1e-15)


def test_paper_cycles_start_real_and_alternate() -> None:
    """The reference experiments: base 5, cycles 5, 5, 10, 20, 40, 80, 160 epochs, real first."""
    schedule = make_schedule(
        [5, 5, 10, 20, 40, 80, 160], unit_steps=100, mode="alternating", start="real"
    )
    assert schedule.cycle_ends == (500, 1000, 2000, 4000, 8000, 16000, 32000)
    assert [mode.value[0] for mode in schedule.cycle_modes] == list("rsrsrsr")


@pytest.mark.parametrize(
    ("mode", "start", "expected"),
    [
        ("real", "synthetic", "rrr"),
        ("synthetic", "real", "sss"),
        ("alternating", "real", "rsr"),
        ("alternating", "synthetic", "srs"),
    ],
)
def test_modes_of_cycles(mode: str, start: str, expected: str) -> None:
    schedule = make_schedule([1, 1, 1], unit_steps=3, mode=mode, start=start)
    assert "".join(m.value[0] for m in schedule.cycle_modes) == expected


def test_warmup_rises_linearly_below_the_cosine() -> None:
    plain = make_schedule([10], unit_steps=1, mode="real")
    warm = make_schedule([10], unit_steps=1, mode="real", warmup_steps=4)
    for step in range(10):
        share = min(1, (step + 1) / 4)
        assert warm.at(step).lr_factor == pytest.approx(share * plain.at(step).lr_factor)


def test_final_factor_is_the_floor_of_the_cosine() -> None:
    schedule = make_schedule([1000], unit_steps=1, mode="real", final_factor=0.1)
    factors = [schedule.at(step).lr_factor for step in range(1000)]
    assert factors[0] == 1.0
    assert factors == sorted(factors, reverse=True)
    # The last step is one thousandth of a cycle before the knot, where the cosine is flat.
    assert factors[-1] == pytest.approx(0.1, abs=1e-5)


@pytest.mark.parametrize(("until", "steps"), [(1.0, 20), (0.5, 10), (0.26, 6), (1e-9, 1)])
def test_decay_is_for_the_first_steps(until: float, steps: int) -> None:
    schedule = make_schedule([5, 15], unit_steps=1, mode="real", decay_until=until)
    assert [schedule.at(step).decays for step in range(20)] == [True] * steps + [False] * (
        20 - steps
    )


def test_fractions_do_not_drift() -> None:
    """Ten cycles of a third of an epoch end where ten thirds of an epoch end."""
    schedule = make_schedule([1 / 3] * 10, unit_steps=100, mode="real")
    assert schedule.total_steps == round(1000 / 3)
    assert set(schedule.cycle_steps) == {33, 34}


def test_every_cycle_has_a_step_however_short() -> None:
    assert min(make_schedule([0.001, 0.001, 1], unit_steps=10, mode="real").cycle_steps) == 1


def test_outside_of_the_schedule_is_an_error() -> None:
    schedule = Schedule(cycle_steps=(3,), cycle_modes=(Mode.REAL,))
    for step in (-1, 3):
        with pytest.raises(IndexError, match="3 steps"):
            schedule.at(step)
