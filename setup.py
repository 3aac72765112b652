"""Everything is in pyproject.toml but this: an editable installation is found from every folder.

For `import sglm` Python looks through the current folder first, and takes any folder called `sglm`
there for a package, were it the checkout seen from above, unless a real package is found in another
place. setuptools' finder of an editable installation is only asked after all places; here it gets
to the front.
"""

from setuptools import setup
from setuptools.command.editable_wheel import editable_wheel

# After setuptools' own, `__editable__….pth`, in the order in which Python reads such files.
PTH_FILE = "sglm-found-first.pth"
PTH_LINE = (
    "import sys; sys.meta_path.sort("
    "key=lambda finder: getattr(finder, '__name__', '') != '_EditableFinder')\n"
)


class _FinderFirst:
    """setuptools' way of making an editable wheel, and one file more in it."""

    def __init__(self, strategy):
        self.strategy = strategy

    def __enter__(self):
        self.strategy.__enter__()
        return self

    def __exit__(self, *error):
        return self.strategy.__exit__(*error)

    def __call__(self, wheel, files, mapping):
        self.strategy(wheel, files, mapping)
        wheel.writestr(PTH_FILE, PTH_LINE)


class EditableWheel(editable_wheel):
    """The command behind `pip install --editable`."""

    # Private to setuptools: where a later version has it no more, nothing else fails.
    def _select_strategy(self, *arguments):
        return _FinderFirst(super()._select_strategy(*arguments))


setup(cmdclass={"editable_wheel": EditableWheel})
