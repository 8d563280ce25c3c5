"""A recurrent classifier of tokens as a chain of layers, for rules that train any chain."""

from collections import OrderedDict

from torch import Tensor, nn


class GRUStates(nn.Module):
    """One layer of nn.GRU, and the states of all its steps: (batch, tokens, n_in) to (batch, tokens, n_out)."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.gru = nn.GRU(n_in, n_out, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = self.gru(x)[0]
        return states


class LastToken(nn.Module):
    """What the last token has: (batch, tokens, width) to (batch, width)."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, -1]


def gru_classifier(
    vocabulary: int, num_classes: int = 10, width: int = 64, hidden: int = 128, depth: int = 1
) -> nn.Sequential:
    """An embedding, `depth` layers of GRU, and a linear layer on the last state: int64 (batch, tokens) to (batch, K).

    A rule credits a layer of GRU as a whole; inside, it goes back through the steps of that layer alone. For rules
    through time see `RecurrentNetwork`.
    """
    layers = [GRUStates(hidden if index else width, hidden) for index in range(depth)]
    return nn.Sequential(
        OrderedDict(
            embedding=nn.Embedding(vocabulary, width),
            layers=nn.Sequential(*layers),
            last=LastToken(),
            output=nn.Linear(hidden, num_classes),
        )
    )
