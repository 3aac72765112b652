"""Packs files for a machine without a network: a token store, and the wheels that it lacks.

Everything goes into the folder `.gpu`, which git ignores. Wheels are unpacked, so that nothing has
to be installed on that machine.
"""

import importlib.metadata
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from scripts import ROOT
from sglm.errors import InputError, SglmError
from sglm.text.store import TokenStore

FOLDER = ROOT / ".gpu"
# Packages that a machine with torch is likely to lack, or to have in another version.
WHEELS = [
    *("pydantic", "pydantic-core", "annotated-types", "typing-inspection"),
    *("typer", "annotated-doc", "shellingham"),
]
PYTHON = "3.12"
PLATFORMS = ["manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"]
MOST_BYTES = 60_000_000  # leaves room for the checkout below the upload limit


def pack(data: Path, *, other: Path | None = None, python: str = PYTHON) -> str:
    """Fills `.gpu` anew; returns a text that says how to use it.

    Args:
        data: A token store of Penn Treebank, by words.
        other: Folder of another project's code with an `arm.py` (see `other`), which is copied
            without its history.
        python: Python version of the other machine.

    Raises:
        InputError: There is no token store, or the files are too large.
        SglmError: pip could not fetch the wheels.
    """
    TokenStore.open(data)
    for name in ("site", "ptb", "other"):
        shutil.rmtree(FOLDER / name, ignore_errors=True)
    _unpack_wheels(FOLDER / "site", python)
    shutil.copytree(data, FOLDER / "ptb")
    if other is not None:
        ignored = shutil.ignore_patterns(".git", "__pycache__", "data")
        shutil.copytree(other, FOLDER / "other", ignore=ignored)
    size = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())
    if size > MOST_BYTES:
        raise InputError(f"{FOLDER}: {size / 1e6:.0f} MB, over {MOST_BYTES / 1e6:.0f}; carry less")
    return (
        f"{FOLDER}: {size / 1e6:.1f} MB\n"
        f'next, with carry [".gpu"] and a limit of 480 s: scripts/gpu visit1\n'
        f"the cells of a visit's file that is copied to {FOLDER.name}/ are not measured again"
    )


def _unpack_wheels(site: Path, python: str) -> None:
    wheels = FOLDER / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    pinned = [f"{name}=={importlib.metadata.version(name)}" for name in WHEELS]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(wheels)]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    result = subprocess.run([*command, *pinned], capture_output=True, text=True, check=False)
    if result.returncode:
        raise SglmError(f"pip could not fetch the wheels: {result.stderr.strip()[-400:]}")
    for wheel in wheels.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    shutil.rmtree(wheels)
