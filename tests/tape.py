"""CUDA graphs without a GPU: a stand-in that behaves as they do, for `sglm.runtime.calls`.

As with a graph, recording changes nothing; a replay runs the recorded operators once more on the
very tensors that they were recorded with, and nothing of the Python code around them; and what
waits for the device cannot be recorded.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique_dim"}


class Tape:
    """In place of `torch.cuda.CUDAGraph`.

    Attributes:
        tapes: all that were made since `use_tapes`.
        replays: how many times this one was replayed.
    """

    tapes: ClassVar[list["Tape"]] = []

    def __init__(self) -> None:
        self.operators: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any, bool]] = []
        self.replays = 0
        self.tapes.append(self)

    @torch.no_grad()
    def replay(self) -> None:
        self.replays += 1
        for operator, args, kwargs, recorded, with_grad in self.operators:
            # As they were recorded; oneDNN's LSTM looks at the mode.
            with torch._C._AutoDispatchBelowAutograd(), torch.set_grad_enabled(with_grad):
                again = operator(*args, **kwargs)
            if recorded is None:
                continue  # it has written to its arguments
            for own, new in zip(tree_leaves(recorded), tree_leaves(again), strict=True):
                if isinstance(own, Tensor):
                    own.copy_(new)


class _Recorder(TorchDispatchMode):
    def __init__(self, tape: Tape) -> None:
        super().__init__()
        self.tape = tape
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        assert func._schema.name.removeprefix("aten::") not in _WAITS, (
            f"{func} waits for the device"
        )
        writes = False
        for index, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                writes = True
                given = args[index] if index < len(args) else kwargs.get(argument.name)
                for each in tree_leaves(given):
                    self._keep(each)
        result = func(*args, **kwargs)
        is_view = not writes and any(each.alias_info for each in func._schema.returns)
        if not is_view:  # a view is one of the recorded memory already
            with_grad = torch.is_grad_enabled()
            self.tape.operators.append((func, args, kwargs, None if writes else result, with_grad))
        return result

    def _keep(self, written: object) -> None:
        if isinstance(written, Tensor):
            whole = torch.empty(0, dtype=torch.uint8).set_(written.untyped_storage())  # type: ignore[call-overload]
            self.before.setdefault(written.untyped_storage()._cdata, (whole, whole.clone()))


@contextmanager
def _recording(tape: Tape) -> Iterator[None]:
    recorder = _Recorder(tape)
    with recorder:
        yield
    for memory, content in recorder.before.values():
        memory.copy_(content)


def use_tapes(monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    """Tapes instead of CUDA graphs; returns those that are made from now on."""
    Tape.tapes = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Tape)
    monkeypatch.setattr(torch.cuda, "graph", _recording)
    return Tape.tapes
