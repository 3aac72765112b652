"""The top eigenpairs of matrices that are too large to write down: Hessian and Gauss–Newton.

Products come from curvlinops (Dangel et al. 2025), eigenpairs from SciPy's Lanczos iteration.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sglm.analyze.curvature.subspaces import Eigenpairs
from sglm.analyze.curvature.windows import WindowLoss
from sglm.errors import InputError, SglmError

# Relative to an eigenvalue, the length of what its vector fails to be an eigenvector by.
TOLERANCE = 1e-3
# Vectors that the iteration holds, per eigenvector that is wanted.
_HELD = 3
_RESTARTS = 300
INSTALL = 'pip install "sglm[analyze]"'


def check_installed() -> None:
    """
    Raises:
        InputError: the packages of the extra `analyze` are missing.
    """
    try:
        import curvlinops  # noqa: F401
        import scipy.sparse.linalg  # noqa: F401
    except ImportError as error:
        raise InputError(f"analyze curvature needs {error.name}; {INSTALL}") from None


def hessian(window_loss: WindowLoss, weight: nn.Parameter) -> Any:
    """SciPy's linear operator of the loss's Hessian in one weight matrix, row by row."""
    from curvlinops import HessianLinearOperator

    return _operator(HessianLinearOperator, window_loss, weight)


def gauss_newton(window_loss: WindowLoss, weight: nn.Parameter) -> Any:
    """The same of the generalized Gauss–Newton matrix, split at the logits."""
    from curvlinops import GGNLinearOperator

    return _operator(GGNLinearOperator, window_loss, weight)


def _operator(kind: Callable[..., Any], window_loss: WindowLoss, weight: nn.Parameter) -> Any:
    embedded_TNI = window_loss.embedded_TNI
    data: list[tuple[Tensor, Tensor]] = [(embedded_TNI, torch.zeros(len(embedded_TNI)))]
    operator = kind(
        window_loss.features, window_loss.loss, [weight], data, check_deterministic=False
    )
    return operator.to_scipy(dtype=np.float64)


def top_eigenpairs(operator: Any, count: int) -> Eigenpairs:
    """The eigenpairs of the largest eigenvalues, by Lanczos iteration with restarts.

    Args:
        operator: SciPy's, symmetric; or a matrix.
        count: K; fewer where the matrix is as small.

    Raises:
        SglmError: the eigenvalues lie too close together to be told apart; the matrix is zero or
            not finite.
    """
    from scipy.sparse.linalg import ArpackError, ArpackNoConvergence, eigsh

    size = operator.shape[0]
    count = min(count, size - 1)
    start = np.random.default_rng(0).standard_normal(size)
    try:
        values, vectors = eigsh(
            operator,
            k=count,
            which="LA",
            tol=TOLERANCE,
            v0=start,
            ncv=min(size, max(_HELD * count, 20)),
            maxiter=_RESTARTS,
        )
    except ArpackNoConvergence:
        raise SglmError(
            f"the first {count} eigenvalues lie too close together to be told apart; give more"
            " --tokens"
        ) from None
    except ArpackError as error:
        raise SglmError(
            f"the curvature has no eigenvalues that can be found ({error}); has the run diverged?"
        ) from None
    order = np.argsort(values)[::-1]
    return Eigenpairs(values[order], vectors.T[order])


def iteration_bytes(size: int, count: int) -> int:
    """What `top_eigenpairs` holds at most for a matrix of `size` columns."""
    return 8 * size * (max(_HELD * count, 20) + count + 4)
