"""Checks of arguments from Python callers; an error names the argument that was refused."""

import operator
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np

from sglm.errors import InputError, short_repr

_BOOL_TYPES = bool | np.bool_


def whole_number(name: str, value: Any) -> int:
    """Returns an int, given an int or an integer of NumPy or torch.

    Raises:
        InputError: The value is anything else, such as a float, a str or a bool.
    """
    if not isinstance(value, _BOOL_TYPES):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise InputError(f"{name} must be a whole number, but is {_shown(value)}")


def real_number(name: str, value: Any) -> float:
    """Returns a float, given a float, an int, or a number of NumPy or torch.

    Raises:
        InputError: The value is anything else, such as a str, a bool or an array of many numbers.
    """
    number = isinstance(value, Real) or getattr(value, "ndim", None) == 0
    if number and not isinstance(value, str | bytes | _BOOL_TYPES):
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            pass
    raise InputError(f"{name} must be a number, but is {_shown(value)}")


def checked_bool(name: str, value: Any) -> bool:
    """Returns a bool, given a bool of Python or NumPy.

    Raises:
        InputError: The value is anything else.
    """
    if not isinstance(value, _BOOL_TYPES):
        raise InputError(f"{name} must be True or False, but is {_shown(value)}")
    return bool(value)


def checked_choice(name: str, value: Any, known: Sequence[str]) -> str:
    """Returns the value, which must be one of the known strings.

    Raises:
        InputError: It is none of them.
    """
    if not (isinstance(value, str) and value in known):
        raise InputError(f"{name} must be {' or '.join(known)}, but is {_shown(value)}")
    return value


def _shown(value: object) -> str:
    return f"{short_repr(value)} ({type(value).__name__})"
