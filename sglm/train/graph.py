"""The model's pass over a window, replayed from CUDA graphs, which launch all its kernels at once.

With short windows a GPU finishes a kernel before the CPU has launched the next one. The work of an
adjoint around the pass (its readings, its injections, the lessons of its network q) is recorded
separately, by `sglm.runtime.calls`. Not recorded are: the optimizer's step, because its learning
rate is a Python number that changes with every step; the gradient's norm before it and the state
after it; probes and the gauge, which are rare; and the learned synthesizers.
"""

from typing import Any

import torch
from torch import Tensor, nn

from sglm.config import Config
from sglm.model.language_model import LSTMLanguageModel
from sglm.model.state import LSTMState
from sglm.train.window_pass import WindowOutputs, WindowPass

Shapes = tuple[torch.Size, torch.Size]


def uses_cuda_graph(config: Config, model: LSTMLanguageModel) -> bool:
    """Returns whether a window's kernels are recorded: on a GPU, as `train.cuda_graph` says."""
    if config.train.cuda_graph != "auto":
        return config.train.cuda_graph and model.embedding.is_cuda
    alike = config.train.windows_are_alike and config.model.softmax == "full"
    # Whether a recording gives the same bits every time is untested.
    free = model.ranks.count == 1 and not torch.are_deterministic_algorithms_enabled()
    # A graph is recorded on the process's current GPU.
    here = model.embedding.is_cuda and model.embedding.get_device() == torch.cuda.current_device()
    return here and alike and free


class GraphedPass:
    """A `WindowPass` that is replayed from CUDA graphs, one for each shape of window.

    torch records the forward and the backward pass separately (`make_graphed_callables`), so a
    synthetic gradient can still enter between them.
    """

    def __init__(self, window_pass: WindowPass) -> None:
        self.window_pass = window_pass
        self.recorded: dict[Shapes, Any] = {}

    def __call__(self, inputs_TB: Tensor, targets_TB: Tensor, incoming: LSTMState) -> WindowOutputs:
        tap_TBH = None
        if self.window_pass.keeps_features:
            # A graph returns gradients only with respect to its inputs.
            model, last_BH = self.window_pass.model, incoming.hidden[-1]
            tap_TBH = torch.zeros(
                *targets_TB.shape,
                last_BH.shape[1],
                dtype=model.compute_dtype or last_BH.dtype,
                device=last_BH.device,
                requires_grad=True,
            )
        taps = () if tap_TBH is None else (tap_TBH,)
        tensors = (inputs_TB, targets_TB, *taps, *incoming.hidden, *incoming.cell)
        shapes = (inputs_TB.shape, targets_TB.shape)
        if shapes not in self.recorded:
            self.recorded[shapes] = _record(_Flat(self.window_pass), tensors)
        objective_nats, nll_nats, *rest = self.recorded[shapes](*tensors)
        features_TBH = rest.pop(0).detach() if taps else None
        # The next replay overwrites the tensors of this one, and losses are read much later.
        return WindowOutputs(
            objective_nats, nll_nats.clone(), LSTMState.from_parts(rest), features_TBH, tap_TBH
        )


class _Flat(nn.Module):
    """A `WindowPass` with only tensors as inputs and outputs, so that it can be recorded."""

    def __init__(self, window_pass: WindowPass) -> None:
        super().__init__()
        self.window_pass = window_pass

    def forward(self, inputs_TB: Tensor, targets_TB: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        taps, parts = rest[: len(rest) % 2], rest[len(rest) % 2 :]  # a state has an even number
        outputs = self.window_pass(
            inputs_TB, targets_TB, LSTMState.from_parts(parts), tap_TBH=taps[0] if taps else None
        )
        outgoing = outputs.outgoing
        features = (outputs.features_TBH,) if outputs.features_TBH is not None else ()
        nats = outputs.objective_nats, outputs.nll_nats
        return *nats, *features, *outgoing.hidden, *outgoing.cell


def _record(flat: _Flat, tensors: tuple[Tensor, ...]) -> Any:
    # Later replays overwrite these samples with their inputs. The generator is restored afterwards,
    # so that training draws the same dropout masks as without a graph.
    _accept_streams()
    samples = tuple(each.detach().clone().requires_grad_(each.requires_grad) for each in tensors)
    with torch.random.fork_rng(devices=[tensors[0].device]):
        return torch.cuda.make_graphed_callables(flat, samples)


def _accept_streams() -> None:
    """Suppresses torch's warning that a replay's gradients come from another stream than that of
    the recording, whose nodes torch itself keeps. torch waits for the right stream nonetheless.
    (It has this switch from 2.11 on.)"""
    switch = getattr(torch.autograd.graph, "set_warn_on_accumulate_grad_stream_mismatch", None)
    if switch is not None:
        switch(False)
