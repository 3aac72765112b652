"""Packages that sglm does not depend on: its extras, and those that it is compared with.

`scripts/test-extras` has them all. In the ordinary suite, what needs one that is not installed is
skipped, and the skip's reason says how to install it.
"""

import importlib
import os
from typing import Any

import pytest

INSTALL = {
    "curvlinops": "pip install 'sglm[analyze]'",
    "jiwer": "pip install 'sglm[kenlm]'",
    "kenlm": "pip install 'sglm[kenlm]'",
    # Asks for NumPy below 2, but works with today's.
    "pyctcdecode": "pip install --no-deps pyctcdecode pygtrie",
    "scipy": "pip install 'sglm[analyze]'",
    "sklearn": "pip install 'sglm[analyze]'",
    "ray": "pip install 'sglm[ray]'",
    "tokenizers": "pip install 'sglm[hf]'",
}


def needs(name: str) -> Any:
    """Imports a package of `INSTALL`; for a whole module of tests, or inside a test.

    Where it is not installed, the test or the module is skipped; in `scripts/test-extras`, it
    fails.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        if os.environ.get("SGLM_EXTRAS") == "required":
            raise
    pytest.skip(f"needs {name}: {INSTALL[name]}", allow_module_level=True)
