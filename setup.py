"""Everything is in pyproject.toml but this: an editable installation is found from every folder.

For `import sglm` Python looks through the current folder first, and takes any folder called `sglm`
there for a namespace package, were it the checkout seen from above, unless a real package is found
in another place. setuptools' finder of an editable installation is only asked after all places;
here it is asked before such a folder is taken. A real package of that name (another checkout in
PYTHONPATH) comes first as it always does.
"""

from setuptools import setup
from setuptools.command.editable_wheel import editable_wheel

MODULE = "_sglm_before_namespaces"
FINDER = '''
import sys
from importlib.machinery import PathFinder


class BeforeNamespaces:
    """Finds `sglm` where setuptools' finder does, before a folder without __init__.py."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != "sglm":
            return None
        found = PathFinder.find_spec(name, path, target)
        if found is not None and found.origin is not None:
            return found
        for finder in sys.meta_path:
            if getattr(finder, "__name__", "") == "_EditableFinder":
                if installed := finder.find_spec(name, path, target):
                    return installed
        return None


sys.meta_path.insert(0, BeforeNamespaces)
'''


class _WithFinder:
    """setuptools' way of making an editable wheel, and the finder in it."""

    def __init__(self, strategy):
        self.strategy = strategy

    def __enter__(self):
        self.strategy.__enter__()
        return self

    def __exit__(self, *error):
        return self.strategy.__exit__(*error)

    def __call__(self, wheel, files, mapping):
        self.strategy(wheel, files, mapping)
        wheel.writestr(f"{MODULE}.py", FINDER)
        wheel.writestr(f"{MODULE}.pth", f"import {MODULE}\n")


class EditableWheel(editable_wheel):
    """The command behind `pip install --editable`."""

    # Private to setuptools: where a later version has it no more, nothing else fails.
    def _select_strategy(self, *arguments):
        return _WithFinder(super()._select_strategy(*arguments))


setup(cmdclass={"editable_wheel": EditableWheel})
