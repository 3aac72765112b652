"""Shared by the tests of synthesizers and boundaries."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """What a test draws does not depend on which tests ran before it."""
    torch.manual_seed(0)
