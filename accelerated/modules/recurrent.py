"""A recurrent classifier or regressor of PyTorch's own layers."""

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from ..orthogonality import orthogonal

CellName: TypeAlias = Literal["elman", "relu", "gru", "lstm"]

KINDS: dict[str, Any] = {"elman": nn.RNN, "relu": nn.RNN, "gru": nn.GRU, "lstm": nn.LSTM}


class RecurrentNetwork(nn.Module):
    """nn.RNN, nn.GRU or nn.LSTM, and nn.Linear on its last state; see `prograde.reference.recurrent`.

    (batch, steps, input_size) to (batch, num_outputs): class scores, or the numbers of a regression. Sequences of
    several lengths are padded, with `lengths`, (batch,), or packed. With a `vocabulary` x are tokens, (batch, steps),
    which nn.Embedding makes input_size numbers of. `per_step` gives the outputs of every step. `cell` is "elman",
    nn.RNN with tanh, "relu", the same with ReLU, "gru" or "lstm". Initial weights are PyTorch's, except Elman's state
    matrices, which are orthogonal: activations and gradients first keep their norms.

    Raises ValueError for an unknown cell and for sizes that are not positive.

    >>> x = torch.ones(2, 5, 3)
    >>> RecurrentNetwork(3, 4, 2)(x).shape, RecurrentNetwork(3, 4, 2, "gru", per_step=True)(x).shape
    (torch.Size([2, 2]), torch.Size([2, 5, 2]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_outputs: int,
        cell: CellName = "elman",
        num_layers: int = 1,
        vocabulary: int | None = None,
        per_step: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "num_outputs": num_outputs}
        for name, value in {**sizes, "num_layers": num_layers, "vocabulary": vocabulary or 1}.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}: {value}, expected a positive integer")
        if cell not in KINDS:
            raise ValueError(f"cell: {cell!r}, expected 'elman', 'relu', 'gru' or 'lstm'")
        place: dict[str, Any] = {"device": device, "dtype": dtype}
        settings = {"nonlinearity": "relu"} if cell == "relu" else {}
        self.per_step = per_step
        self.embedding = None if vocabulary is None else nn.Embedding(vocabulary, input_size, **place)
        self.recurrent: nn.RNN | nn.GRU | nn.LSTM = KINDS[cell](
            input_size, hidden_size, num_layers, batch_first=True, **settings, **place
        )
        self.output = nn.Linear(hidden_size, num_outputs, **place)
        if KINDS[cell] is nn.RNN:
            with torch.no_grad():
                for _, weight, *_ in self.recurrent.all_weights:
                    weight.copy_(orthogonal((hidden_size, hidden_size), device=weight.device, dtype=weight.dtype))

    @property
    def units(self) -> list[nn.Module]:
        """What a rule trains, in the order in which they run."""
        return [*([] if self.embedding is None else [self.embedding]), self.recurrent, self.output]

    def forward(self, x: Tensor | PackedSequence, lengths: Tensor | None = None) -> Tensor:
        if isinstance(x, PackedSequence):
            x, lengths = pad_packed_sequence(x, batch_first=True)
        states, _ = self.recurrent(x if self.embedding is None else self.embedding(x))
        if self.per_step:
            last = states
        elif lengths is None:
            last = states[:, -1]
        else:  # what comes behind a sample's end does not reach its states before
            last = states[torch.arange(len(x), device=x.device), lengths.to(x.device) - 1]
        outputs: Tensor = self.output(last)
        return outputs
