"""An `arm.py` for the code of Shang & Zhang 2019 (a repository called `alternate_sg`).

It calls their code, which is not included here. Copy this file as `arm.py` into a checkout of their
repository, outside this one, and name that folder with `--other` (see `other`). Its steps are those
of their `main.py`, with their rates of dropout, their Adam, penalties and clipping, and in float32
as there.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

_ALPHA, _BETA, _CLIP, _RATE, _DECAY = 2.0, 1.0, 0.25, 1e-3, 1.2e-6
_SYNTHESIZER_UNITS = 50


class Arm:
    """Their model, synthesizer and optimizers, and the state carried from window to window."""

    def __init__(self, *, size: dict[str, int], device: str) -> None:
        model, dni, split = (import_module(name) for name in ("model", "dni", "splitcross"))
        self.size, self.device, self.dni = size, device, dni
        layers, hidden, words = size["layers"], size["hidden"], size["vocab_size"]
        rates = {"dropout": 0.4, "dropouth": 0.25, "dropouti": 0.4, "dropoute": 0.1, "wdrop": 0.5}
        self.model: Any = model.RNNModel(
            size["batch"], "LSTM", words, hidden, hidden, layers, **rates, tie_weights=True
        ).to(device)
        self.criterion: Any = split.SplitCrossEntropyLoss(hidden, splits=[], verbose=False)
        self.criterion = self.criterion.to(device)
        synthesizer = model.RNNSynthesizer(sgtype="GRU", nhid=_SYNTHESIZER_UNITS, nlayers=1)
        self.interface: Any = dni.BackwardInterface(synthesizer).to(device)
        self.weights = [*self.model.parameters(), *self.criterion.parameters()]
        self.optimizer = torch.optim.Adam(self.weights, lr=_RATE, weight_decay=_DECAY)
        self.own_optimizer = torch.optim.Adam(
            self.interface.parameters(), lr=_RATE, weight_decay=_DECAY
        )
        self.hidden = self.model.init_hidden(size["batch"])
        self.model.train()

    def real(self) -> None:
        """Takes a step of truncated backpropagation."""
        self.optimizer.zero_grad()
        self._loss({}).backward()  # type: ignore[no-untyped-call]
        self._update()

    def learning(self) -> None:
        """Takes the same step, while their synthesizer learns."""
        self._with_synthesizer(inject=False)

    def synthetic(self) -> None:
        """Takes the same step, while the predictions of their synthesizer are injected."""
        self._with_synthesizer(inject=True)

    def _with_synthesizer(self, *, inject: bool) -> None:
        self.optimizer.zero_grad()
        self.own_optimizer.zero_grad()
        with self.dni.defer_backward():
            named = {"use_sg": inject, "backward_interface": self.interface}
            self.dni.backward(self._loss(named))
        self.own_optimizer.step()
        self._update()

    def _loss(self, named: dict[str, Any]) -> Tensor:
        shape = (self.size["window"], self.size["batch"])
        ids = torch.randint(self.size["vocab_size"], (2, *shape), device=self.device)
        hidden = [tuple(part.detach() for part in layer) for layer in self.hidden]
        output, self.hidden, before, after = self.model(ids[0], hidden, return_h=True, **named)
        decoder = self.model.decoder
        loss: Tensor = self.criterion(decoder.weight, decoder.bias, output, ids[1].flatten())
        loss = loss + _ALPHA * after[-1].pow(2).mean()
        change: Tensor = (before[-1][1:] - before[-1][:-1]).pow(2).mean()
        return loss + _BETA * change

    def _update(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.weights, _CLIP)
        self.optimizer.step()


def build(*, device: str, **size: int) -> dict[str, Callable[[], None]]:
    """Returns three kinds of training step of one model, by name; see `other`."""
    arm = Arm(size=size, device=device)
    return {"real": arm.real, "learning": arm.learning, "synthetic": arm.synthetic}
