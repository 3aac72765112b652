"""Top eigenpairs of the Hessian and the Gauss–Newton matrix, which are too large to write out.

Matrix–vector products come from curvlinops (Dangel et al. 2025), eigenpairs from SciPy's Lanczos
iteration.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sglm.analyze.curvature.subspaces import Eigenpairs
from sglm.analyze.curvature.windows import WindowLoss
from sglm.errors import InputError, SglmError

# Largest residual ‖Av − λv‖ of an eigenpair, relative to its eigenvalue.
TOLERANCE = 1e-3
# Vectors that the iteration holds for each requested eigenvector.
_HELD = 3
_RESTARTS = 300
INSTALL = 'pip install "sglm[analyze]"'


def check_installed() -> None:
    """Checks that the packages that the analysis imports are installed.

    Raises:
        InputError: Packages of the extra `analyze` are missing.
    """
    try:
        import curvlinops  # noqa: F401
        import scipy.sparse.linalg  # noqa: F401
    except ImportError as error:
        raise InputError(f"analyze curvature needs {error.name}; {INSTALL}") from None


def hessian(window_loss: WindowLoss, weight: nn.Parameter) -> Any:
    """Returns the loss's Hessian in one weight matrix, flattened row by row.

    Returns:
        A SciPy linear operator.
    """
    from curvlinops import HessianLinearOperator

    return _operator(HessianLinearOperator, window_loss, weight)


def gauss_newton(window_loss: WindowLoss, weight: nn.Parameter) -> Any:
    """Returns the generalized Gauss–Newton matrix, split at the logits, like `hessian`."""
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
    """Computes the eigenpairs of the largest eigenvalues by Lanczos iteration with restarts.

    Args:
        operator: A symmetric SciPy linear operator, or a matrix.
        count: K, the number of eigenpairs, capped at one less than the number of columns.

    Raises:
        SglmError: The eigenvalues lie too close together to be separated, or the matrix is zero or
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
            f"the first {count} eigenvalues lie too close together to be separated; give more"
            " --tokens"
        ) from None
    except ArpackError as error:
        raise SglmError(
            f"the eigenvalues of the curvature cannot be computed ({error}); has the run diverged?"
        ) from None
    order = np.argsort(values)[::-1]
    return Eigenpairs(values[order], vectors.T[order])


def iteration_bytes(size: int, count: int) -> int:
    """Returns the most bytes that `top_eigenpairs` holds for a matrix of `size` columns."""
    return 8 * size * (max(_HELD * count, 20) + count + 4)
