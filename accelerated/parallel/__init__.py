"""Training by several processes, which `torchrun` starts and torch.distributed connects."""

from .data_parallel import DataParallel
from .layer_parallel import LayerParallel

__all__ = ["DataParallel", "LayerParallel"]
