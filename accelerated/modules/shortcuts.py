"""A network with shortcuts as a module."""

from collections.abc import Iterable

from torch import Tensor, nn

from ..local_classifiers import Shortcut, check_shortcuts, wired


class ShortcutNetwork(nn.Module):
    """Blocks one after another, and shortcuts from what one passes on to what a later one does.

    `stem` comes before the blocks and `head` behind them. Under a local rule every block is one Conv2d or Linear with
    the layers that follow it. For shortcuts see `prograde.reference.local_classifiers`.

    Raises ValueError for a shortcut that does not lead from one block to a later one.

    >>> model = resnet17(2, planes=(4, 8, 16, 32))
    >>> isinstance(model, ShortcutNetwork), model(torch.ones(1, 3, 32, 32)).shape
    (True, torch.Size([1, 2]))
    """

    def __init__(
        self, stem: nn.Module, blocks: Iterable[nn.Sequential], shortcuts: Iterable[Shortcut], head: nn.Module
    ) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = stem, nn.ModuleList(blocks), head
        self.shortcuts = check_shortcuts(shortcuts, len(self.blocks))

    def forward(self, x: Tensor) -> Tensor:
        saved: dict[int, Tensor] = {}
        x = self.stem(x)
        for index, block in enumerate(self.blocks):
            x = wired(block(x), index, self.shortcuts, saved)
        scores: Tensor = self.head(x)
        return scores

    def extra_repr(self) -> str:
        return ", ".join(f"{s.source}-{s.target} {s.join}" for s in self.shortcuts)
