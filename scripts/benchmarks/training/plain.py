"""The arm `plain`: an ordinary PyTorch training loop.

Shapes: T time, B lanes, V vocabulary, H units, N steps of a lane.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.benchmarks.training.case import FEWEST_WINDOWS, Ids, Patch, Place, Size


class PlainModel(nn.Module):
    """An LSTM language model as tutorials write it."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size.vocab_size, size.hidden)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        self.lstm = nn.LSTM(size.hidden, size.hidden, size.layers)
        self.decoder = nn.Linear(size.hidden, size.vocab_size)
        self.decoder.weight = self.embedding.weight

    def forward(
        self, inputs_TB: Tensor, state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        outputs_TBH, state = self.lstm(self.embedding(inputs_TB), state)
        return self.decoder(outputs_TBH), state


class PlainArm:
    """The ordinary training loop: `nn.LSTM`, `cross_entropy`, clipping, fused AdamW.

    The text lies on the device as one tensor, as in PyTorch's own example; half precision is
    autocast's, with a gradient scaler for fp16.
    """

    def __init__(self, size: Size, place: Place, ids_N: Ids) -> None:
        device, self.dtype = torch.device(place.device), place.compute_dtype
        torch.manual_seed(0)
        self.size, self.device = size, device
        self.model = PlainModel(size).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True)
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.dtype is torch.float16)
        lanes_BN = torch.from_numpy(ids_N.astype(np.int64)).view(size.batch, -1)
        self.text_NB = lanes_BN.t().contiguous().to(device)
        zeros = torch.zeros(size.layers, size.batch, size.hidden, device=device)
        self.state, self.start = (zeros, zeros), 0
        self.block = FEWEST_WINDOWS

    def read(self) -> tuple[Tensor, Tensor]:
        """Returns the next window's inputs and targets."""
        if self.start + self.size.window >= len(self.text_NB):
            self.start = 0
        end = self.start + self.size.window
        inputs_TB, targets_TB = (
            self.text_NB[self.start : end],
            self.text_NB[self.start + 1 : end + 1],
        )
        self.start = end
        return inputs_TB, targets_TB

    def step(self, turn: str | None = None) -> None:
        inputs_TB, targets_TB = self.read()
        hidden, cell = self.state
        half = self.dtype is not torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=half):
            logits_TBV, self.state = self.model(inputs_TB, (hidden.detach(), cell.detach()))
            loss = F.cross_entropy(logits_TBV.flatten(0, 1), targets_TB.flatten())
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), 0.25)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def patches(self) -> list[Patch]:
        return [
            Patch(self, "read", "data"),
            Patch(self.model.embedding, "forward", "forward"),
            Patch(self.model.lstm, "forward", "forward"),
            # The softmax's product belongs to the loss, as in sglm.
            Patch(self.model.decoder, "forward", "loss"),
            Patch(F, "cross_entropy", "loss"),
            Patch(torch.autograd, "backward", "backward"),
            Patch(nn.utils, "clip_grad_norm_", "clip"),
            Patch(self.optimizer, "zero_grad", "optimizer"),
            Patch(self.scaler, "step", "optimizer"),
        ]
