"""What is injected: how often the bound cuts, and noise in the prediction's place."""

import copy

import torch
from torch import Tensor

from sglm.dni.injection import Injection
from sglm.dni.trust import Trust

B, S = 4, 6


def make(seed: int | None = None, factor: float | None = 0.7) -> Injection:
    """After one observation, of which nothing was predicted; with noise drawn from a seed."""
    trust = Trust(S, device=torch.device("cpu"))
    trust.observe(torch.zeros(B, S), torch.ones(B, S))
    noise = None if seed is None else torch.Generator().manual_seed(seed)
    return Injection(trust, factor=factor, noise=noise)


def some_prediction() -> Tensor:
    return torch.randn(B, S, generator=torch.Generator().manual_seed(0))


def test_how_often_the_bound_cuts_is_counted() -> None:
    injection = make()
    predicted_BS = torch.ones(B, S) * torch.tensor([[1e3], [1e-3], [1e-3], [1e-3]])
    for _ in range(20):
        injection.inject(predicted_BS)
    # A running mean over some twenty that began at zero.
    assert 0.15 < injection.capped.item() <= 0.25


def test_noise_is_as_long_as_the_prediction_lane_by_lane_but_another_direction() -> None:
    # The last is cut.
    predicted_BS = some_prediction() * torch.tensor([[1e-3], [1.0], [2.0], [1e3]])
    plain, noise = make(), make(seed=5)
    right_BS, first_BS, second_BS = (each.inject(predicted_BS) for each in (plain, noise, noise))
    for noise_BS in (first_BS, second_BS):
        torch.testing.assert_close(noise_BS.norm(dim=1), right_BS.norm(dim=1))
    directions_3BS = torch.stack([right_BS, first_BS, second_BS])
    directions_3BS = directions_3BS / directions_3BS.norm(dim=2, keepdim=True)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        cosines_B = (directions_3BS[one] * directions_3BS[other]).sum(dim=1)
        assert cosines_B.max() < 0.999


def test_in_place_of_nothing_there_is_no_noise() -> None:
    assert torch.equal(make(seed=5).inject(torch.zeros(B, S)), torch.zeros(B, S))
    # The calibrated factor is zero.
    injected_BS = make(seed=5, factor=None).inject(some_prediction())
    assert torch.equal(injected_BS, torch.zeros(B, S))


def test_noise_goes_on_where_its_saved_state_was() -> None:
    injection, other = make(seed=5), make(seed=6)
    injection.inject(some_prediction())
    other.load_state_dict(copy.deepcopy(injection.state_dict()))
    for _ in range(2):
        found_BS = other.inject(some_prediction())
        assert torch.equal(injection.inject(some_prediction()), found_BS)


def test_the_state_of_a_gpus_generator_is_no_obstacle_on_a_cpu() -> None:
    injection = make(seed=5)
    saved = {**injection.state_dict(), "noise": torch.zeros(16, dtype=torch.uint8)}  # CUDA's
    before = injection.noise.get_state() if injection.noise else None
    injection.load_state_dict(saved)
    assert injection.noise is not None
    assert before is not None
    assert torch.equal(injection.noise.get_state(), before)
