"""How far a synthesizer is believed: the factor that calibrates itself."""

import copy

import pytest
import torch

from sglm.dni.trust import Trust, agreement

M, S = 5, 8


def after(multiple: float, noise: float = 0.0, count: int = 20, seed: int = 0) -> Trust:
    """Trust in a synthesizer that says `multiple` times the truth, plus noise.

    The truths are of one length, so that without noise every observation weighs the same and the
    standard error is zero.
    """
    generator = torch.Generator().manual_seed(seed)
    trust = Trust(S, device=torch.device("cpu"))
    for _ in range(count):
        truth_MS = torch.randn(M, S, generator=generator)
        truth_MS /= truth_MS.norm(dim=1, keepdim=True)
        noise_MS = torch.randn(M, S, generator=generator)
        trust.observe(multiple * truth_MS + noise * noise_MS, truth_MS)
    return trust


@pytest.mark.parametrize(
    ("multiple", "factor"), [(1.0, 1.0), (2.0, 0.5), (10.0, 0.1), (0.5, 1.0), (-1.0, 0.0)]
)
def test_the_factor_is_the_best_shrinkage_of_what_is_said(multiple: float, factor: float) -> None:
    """Too loud is turned down to the truth; too quiet stays as it is, and a lie is not told."""
    # Variance is a difference of float32 means: rounding of 1e-7, under a root over 20.
    assert after(multiple).factor.item() == pytest.approx(factor, abs=1e-3)


def test_nothing_is_injected_before_an_observation_nor_for_silence() -> None:
    assert Trust(S, device=torch.device("cpu")).factor.item() == 0
    assert after(0.0).factor.item() == 0


def test_noise_is_told_from_a_signal_by_its_standard_error() -> None:
    """The mean of noise lies within one standard error five times in six, and then α is zero; a
    bare ⟨g, ŝ⟩/⟨ŝ, ŝ⟩ would be above zero every other time."""
    factors = [after(0.0, noise=1.0, seed=seed).factor.item() for seed in range(200)]
    # Binomial: 0.84 ± 0.026 of 200; half of them would be 9 of those below.
    assert sum(factor == 0 for factor in factors) / len(factors) > 0.7
    # ⟨ŝ, ŝ⟩ = S, ⟨g, ŝ⟩ = 0 ± 1/√(M·20) = 0 ± 0.1: three of those above the one taken off.
    assert max(factors) < 0.3 / S


def test_noise_on_the_truth_shrinks_it_as_far_as_it_is_noise() -> None:
    """ŝ = g + n explains best times ‖g‖²/(‖g‖² + ‖n‖²) = 1/(1 + S)."""
    trust = after(1.0, noise=1.0, count=100)
    # ⟨g, ŝ⟩ = 1 ± 1/√500, and a standard error of as much is taken off: within four of them.
    assert trust.factor.item() == pytest.approx(1 / (1 + S), rel=0.2)


@pytest.mark.parametrize("noise", [0.0, 0.3, 100.0])
@pytest.mark.parametrize("multiple", [-1e6, -0.1, 0.0, 1e-9, 0.9, 1e9])
def test_the_factor_stays_within_zero_and_one(multiple: float, noise: float) -> None:
    for count in (1, 3):
        assert 0 <= after(multiple, noise, count).factor.item() <= 1


@pytest.mark.parametrize(
    ("multiple", "explained"), [(1.0, 1.0), (0.0, 0.0), (0.5, 0.75), (2.0, 0.0), (-1.0, -3.0)]
)
def test_what_is_explained_is_measured_against_saying_zero(
    multiple: float, explained: float
) -> None:
    assert after(multiple).explained(1.0) == pytest.approx(explained, abs=1e-5)  # float32 means


def test_one_observation_of_many_states_counts_as_one() -> None:
    """All running means are means over states: twice the lanes, the same numbers."""
    one, two = Trust(S, device=torch.device("cpu")), Trust(S, device=torch.device("cpu"))
    said_MS, truth_MS = torch.randn(M, S), torch.randn(M, S)
    one.observe(said_MS, truth_MS)
    two.observe(said_MS.repeat(2, 1), truth_MS.repeat(2, 1))
    for name, value in one.state_dict().items():
        torch.testing.assert_close(torch.as_tensor(two.state_dict()[name]), torch.as_tensor(value))


def test_what_overflows_when_squared_is_left_out() -> None:
    trust = after(1.0)
    before = copy.deepcopy(trust.state_dict())
    trust.observe(torch.ones(M, S), torch.full((M, S), 1e30))
    after_it = trust.state_dict()
    assert all(torch.equal(after_it[name], before[name]) for name in before)


def test_nothing_to_predict_is_neither_praise_nor_blame() -> None:
    found = agreement(torch.ones(M, S), torch.zeros(M, S))
    assert (found.relative_mse.item(), found.norm_ratio.item()) == (1.0, 0.0)


def test_what_the_factor_makes_of_a_prediction_is_what_is_explained() -> None:
    """ŝ = 2g explains nothing as it is, and everything with the factor a half."""
    assert after(2.0).explained(1.0) == pytest.approx(0.0, abs=1e-5)
    assert after(2.0).explained(0.5) == pytest.approx(1.0, abs=1e-5)


def test_what_is_put_back_is_believed_as_before() -> None:
    """Unit, bound and factor follow from the means at once, not at the next probe."""
    saved, loaded = after(2.0), Trust(S, device=torch.device("cpu"))
    loaded.load_state_dict(copy.deepcopy(saved.state_dict()))
    for name in ("unit", "longest", "factor"):
        assert torch.equal(getattr(loaded, name), getattr(saved, name)), name
        assert getattr(loaded, name) > 0
