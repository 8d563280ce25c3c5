"""What a rule has trained as a module that does nothing but infer."""

from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:
    from .rule import Rule


class Inference(nn.Module):
    """The class scores that a rule and its read-out give: x as the first layer takes it, to (batch, K).

    Nothing is checked, so that `torch.export` finds tensors alone.
    """

    def __init__(self, rule: "Rule") -> None:
        super().__init__()
        self.rule = rule

    def forward(self, x: Tensor) -> Tensor:
        return self.rule.scores(x)
