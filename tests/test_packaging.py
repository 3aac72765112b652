"""The wheel holds all of sglm and nothing else, and works away from the checkout.

Nothing is fetched: the wheel is built with the setuptools at hand, and runs with the dependencies
that are installed already, but not with the editable installation that may be among them.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy to build from: setuptools leaves its workings beside the sources."""
    source = tmp_path_factory.mktemp("source")
    for name in ("sglm", "cli", "configs", "scripts"):  # not all of which belongs into it
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    return source


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    run_pip("wheel", "--no-build-isolation", "--wheel-dir", str(out), str(source))
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content, installed."""
    folder = tmp_path_factory.mktemp("site")
    run_pip("install", "--target", str(folder), str(wheel))
    return folder


def run_pip(command: str, *arguments: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pip", command, "--no-deps", "--no-index", "--quiet", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def run_installed(
    site: Path, arguments: list[str], folder: Path
) -> subprocess.CompletedProcess[str]:
    """Python with `site` and the dependencies on its path.

    `-S` keeps it from reading .pth files, and so from finding the checkout through an editable
    installation.
    """
    paths = [str(site), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-S", *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_wheel_holds_every_module_and_recipe_under_sglm(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    patterns = [("sglm", "*.py"), ("cli", "*.py"), ("configs", "*.py"), ("configs", "*.toml")]
    expected = {"sglm/py.typed"}
    for folder, pattern in patterns:
        for path in (ROOT / folder).rglob(pattern):
            name = path.relative_to(ROOT).as_posix()
            expected.add(name if folder == "sglm" else f"sglm/{name}")
    assert {"sglm/cli/main.py", "sglm/configs/tiny.toml"} <= expected
    assert inside == expected


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        info = f"sglm-{PROJECT['version']}.dist-info"
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
        metadata = archive.read(f"{info}/METADATA").decode()
        names = archive.namelist()
    assert "sglm = sglm.cli.main:app" in entry_points
    assert f"{info}/licenses/LICENSE" in names
    assert "Requires-Python: >=3.11" in metadata
    for requirement in PROJECT["dependencies"]:
        assert f"Requires-Dist: {requirement}" in metadata


def test_an_installed_sglm_runs_away_from_the_checkout(site: Path, tmp_path: Path) -> None:
    version = run_installed(site, ["-m", "sglm.cli.main", "--version"], tmp_path)
    assert (version.returncode, version.stdout) == (0, f"{PROJECT['version']}\n"), version.stderr
    usage = run_installed(site, ["-m", "sglm.cli.main", "train", "tiny", "--help"], tmp_path)
    assert usage.returncode == 0, usage.stderr
    assert "--data" in usage.stdout


def test_an_installed_sglm_is_the_one_that_was_installed(site: Path, tmp_path: Path) -> None:
    program = """
import sglm, sglm.cli.main, sglm.config
from sglm.errors import ConfigError

print(sglm.__file__, sglm.cli.main.__file__, sep="\\n")
for name in sglm.config.shipped_configs():
    sglm.config.load_config(name)
try:
    sglm.config.load_config("tinny")
except ConfigError as error:
    assert "tiny" in str(error)
"""
    result = run_installed(site, ["-c", program], tmp_path)
    assert result.returncode == 0, result.stderr
    homes = [Path(line).resolve() for line in result.stdout.splitlines()]
    assert homes == [
        (site / "sglm" / "__init__.py").resolve(),
        (site / "sglm" / "cli" / "main.py").resolve(),
    ]


def test_an_editable_sglm_is_found_from_the_folder_above_a_checkout(
    source: Path, tmp_path: Path
) -> None:
    build = "import sys; from setuptools.build_meta import build_editable as b; b(sys.argv[1])"
    command = [sys.executable, "-c", build, str(tmp_path)]
    built = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    (tmp_path / "above" / "sglm" / "cli").mkdir(parents=True)  # as a checkout has it
    program = """
import site, sys
sys.path.insert(1, sys.argv[1])  # before another editable installation's finder of that name
site.addsitedir(sys.argv[1])
import sglm, sglm.cli.main
print(sglm.__file__)
"""
    result = run_installed(tmp_path / "none", ["-c", program, str(site)], tmp_path / "above")
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()) == source / "sglm" / "__init__.py"
    # A real package of that name comes first as always: another checkout in PYTHONPATH, say.
    other = tmp_path / "other" / "sglm"
    other.mkdir(parents=True)
    (other / "__init__.py").touch()
    program = program.replace("import sglm, sglm.cli.main", "import sglm")
    result = run_installed(tmp_path / "other", ["-c", program, str(site)], tmp_path / "above")
    assert Path(result.stdout.strip()) == other / "__init__.py", result.stderr


def test_every_direct_dependency_is_pinned_exactly() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z-]+==[0-9]+(\.[0-9]+)+", pin) for pin in pins), pins
    extras = sum(PROJECT["optional-dependencies"].values(), PROJECT["dependencies"])
    wanted = {re.match(r"[a-z-]+", requirement).group() for requirement in extras}  # type: ignore[union-attr]
    assert {pin.partition("==")[0] for pin in pins} == wanted - {"sglm"}


def test_the_lower_bounds_are_those_that_are_tested() -> None:
    """scripts/test-oldest installs constraints-oldest.txt: exactly the bounds of pyproject.toml."""
    extras = PROJECT["optional-dependencies"]
    requirements = PROJECT["dependencies"] + extras["plots"] + extras["test"]
    bounds = {}
    for requirement in requirements:
        name, found, bound = requirement.partition(";")[0].strip().partition(">=")
        assert found, f"{requirement} has no lower bound"
        assert bounds.setdefault(name, bound) == bound, f"two lower bounds of {name}"
    lines = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    # torch's oldest is gigabytes where pip gets it; the file says so.
    assert pins == {name: bound for name, bound in bounds.items() if name != "torch"}
    assert all(">=" in requirement for requirement in extras["dev"][1:])


def test_the_version_is_told_in_one_voice() -> None:
    import sglm

    assert sglm.__version__ == PROJECT["version"]
    assert f"[{sglm.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
