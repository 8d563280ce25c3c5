"""A recurrent classifier of tokens as a chain of layers, for rules that train any chain."""

from collections import OrderedDict

from torch import Tensor, nn


class GRUStates(nn.Module):
    """One layer of nn.GRU, and the states of all its steps: (batch, tokens, n_in) to (batch, tokens, n_out).

    >>> GRUStates(2, 3)(torch.ones(1, 4, 2)).shape
    torch.Size([1, 4, 3])
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.gru = nn.GRU(n_in, n_out, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = self.gru(x)[0]
        return states


class LastToken(nn.Module):
    """What the last token has: (batch, tokens, width) to (batch, width).

    >>> LastToken()(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])).tolist()
    [[3.0, 4.0]]
    """

    def forward(self, x: Tensor) -> Tensor:
        return x[:, -1]


def gru_classifier(
    vocabulary: int, num_classes: int = 10, width: int = 64, hidden: int = 128, depth: int = 1
) -> nn.Sequential:
    """An embedding, `depth` layers of GRU, and a linear layer on the last state: int64 (batch, tokens) to (batch, K).

    A rule credits a layer of GRU as a whole; inside, it goes back through the steps of that layer alone. For rules
    through time see `RecurrentNetwork`.

    >>> gru_classifier(10, num_classes=3, width=4, hidden=5)(torch.tensor([[1, 2, 3]])).shape
    torch.Size([1, 3])
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
