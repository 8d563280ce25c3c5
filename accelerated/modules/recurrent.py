"""A recurrent classifier or regressor of PyTorch's own layers."""

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from ..orthogonality import orthogonal

CellName: TypeAlias = Literal["elman", "gru"]


class RecurrentNetwork(nn.Module):
    """nn.RNN (tanh) or nn.GRU, and nn.Linear on its last state; see `prograde.reference.recurrent`.

    (batch, steps, input_size) to (batch, num_outputs): class scores, or the numbers of a regression. Initial weights
    are PyTorch's, except Elman's state matrix, which is orthogonal: activations and gradients first keep their norms.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_outputs: int,
        cell: CellName = "elman",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_outputs": num_outputs}
        for name, value in sizes.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: {value}, expected a positive integer")
        if cell not in ("elman", "gru"):
            raise ValueError(f"cell: {cell!r}, expected 'elman' or 'gru'")
        self.cell = cell
        kind = nn.RNN if cell == "elman" else nn.GRU
        self.recurrent: nn.RNN | nn.GRU = kind(input_size, hidden_size, batch_first=True, device=device, dtype=dtype)
        self.output = nn.Linear(hidden_size, num_outputs, device=device, dtype=dtype)
        if cell == "elman":
            with torch.no_grad():
                weight = self.recurrent.get_parameter("weight_hh_l0")
                weight.copy_(orthogonal((hidden_size, hidden_size), device=weight.device, dtype=weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.recurrent(x)
        outputs: Tensor = self.output(states[:, -1])
        return outputs
