"""A Lightning module: the trainer does epochs, logging and checkpoints; a rule takes the place of the backward pass.

Run it: python lightning_module.py      (needs lightning; fifteen seconds on one core)
Expect: 96 % of 297 unseen digits, give or take one.
"""

import logging
import warnings

import lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from prograde.accelerated.rules import Foton


class Digits(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False  # the trainer would call loss.backward()
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        self.rule = Foton(model)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.rule.parameters(), lr=0.1)

    def training_step(self, batch: list[Tensor], index: int) -> None:
        optimizer = self.optimizers()
        self.log("loss", self.rule.assign_credit(*batch))
        optimizer.step()
        self.rule.constrain(optimizer.optimizer)  # PyTorch's own, inside of Lightning's

    def test_step(self, batch: list[Tensor], index: int) -> None:
        x, y = batch
        self.log("accuracy", (self.rule(x).argmax(dim=1) == y).float().mean())


if __name__ == "__main__":
    warnings.filterwarnings("ignore", module="lightning")  # of workers and loggers
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    lightning.seed_everything(0, verbose=False)
    digits = load_digits()
    x = torch.tensor(digits.data, dtype=torch.float32)
    data = TensorDataset((x - x.mean()) / x.std(), torch.tensor(digits.target))
    train, test = torch.utils.data.random_split(data, [1500, 297])
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(max_epochs=20, accelerator="cpu", **quiet)
    module = Digits()
    trainer.fit(module, DataLoader(train, batch_size=50, shuffle=True))
    (found,) = trainer.test(module, DataLoader(test, batch_size=297), verbose=False)
    print(f"{found['accuracy']:.1%} of 297 unseen digits")
