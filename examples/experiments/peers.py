"""Other people's public code, timed beside the rules by `prograde benchmark`: a function for each repository.

With the repository's folder and this one in PYTHONPATH, in a folder with the folder `pepita` of ravifrancesco/PEPITA:

    PYTHONPATH=.:examples/experiments prograde benchmark --network 784-1024-10 --rules pepita --beside peers:pepita

Each trains a network of its own, of the benchmark's widths, by the authors' step; progress bars are left out.
"""

from itertools import pairwise
from types import SimpleNamespace

import torch
from torch.nn import functional


def pepita(widths, make_optimizer, device, dropout=0.1):
    """ravifrancesco/PEPITA: one hidden layer or more, no biases."""
    from pepita.models.FCnet import FCNet

    net = FCNet(list(widths), p=dropout).to(device)
    optimizer = make_optimizer(net.parameters())

    def step(x, y):
        scores = net(x, len(x))  # probabilities
        net.modulated_forward(x, scores, functional.one_hot(y, widths[-1]), len(x))
        optimizer.step()
        optimizer.zero_grad()
        return functional.nll_loss(scores.log(), y)

    return step


def foton(widths, batch, learning_rate, device):
    """p0lcAi/FOTON: 20 Björck steps for every weight, by a function that the repository names and does not have."""
    from model_utils import foton_utils
    from model_utils.foton import FOTON

    def bjorck_orthonormalize(w, iters, **_):
        v = torch.ones_like(w[0])
        for _ in range(10):  # towards the largest singular value
            v = functional.normalize(w.T @ (w @ v), dim=0)
        w = w / (w @ v).norm()
        for _ in range(iters):
            w = 1.5 * w - 0.5 * (w @ w.T) @ w  # rows are few
        return w

    foton_utils.bjorck_orthonormalize = bjorck_orthonormalize
    options = {"activation_f": "relu", "layers_init": "orthogonal", "error": "CE", "batch_size": batch}
    net = FOTON(list(widths), **options).to(device)

    @torch.no_grad()
    def step(x, y):
        scores = net(x)
        net.modulated_forward(x, scores, functional.one_hot(y, widths[-1]), learning_rate)
        return functional.cross_entropy(scores, y)

    return step


def forward_forward(widths, device):
    """mpezeshki/pytorch_forward_forward: a step of each hidden layer by its own Adam; 10 classes."""
    import main

    main.tqdm = iter
    layers = [main.Layer(n, m, device=device) for n, m in pairwise(widths[:-1])]
    for layer in layers:
        layer.num_epochs = 1

    def step(x, y):
        wrong = y[torch.randperm(len(y), device=y.device)]
        pair = main.overlay_y_on_x(x, y), main.overlay_y_on_x(x, wrong)
        for layer in layers:
            pair = layer.train(*pair)

    return step


def forward_forward_and_head(widths, batch, device):
    """loeweX/Forward-Forward: 784 pixels, hidden layers of one width, 10 classes, and a linear head on them."""
    from src.ff_model import FF_model

    hidden = widths[1:-1]
    model = SimpleNamespace(peer_normalization=0.03, momentum=0.9, hidden_dim=hidden[0], num_layers=len(hidden))
    net = FF_model(SimpleNamespace(device=str(device), input=SimpleNamespace(batch_size=batch), model=model)).to(device)
    groups = [
        {"params": net.model.parameters(), "lr": 1e-3, "weight_decay": 3e-4},
        {"params": net.linear_classifier.parameters(), "lr": 1e-2, "weight_decay": 3e-3},
    ]
    optimizer = torch.optim.SGD(groups, momentum=0.9)

    def with_label(x, label):
        x = x.clone()
        x[:, :10] = label
        return x

    def step(x, y):
        other = (y + torch.randint(1, 10, y.shape, device=y.device)) % 10
        optimizer.zero_grad()
        samples = {
            "pos_images": with_label(x, functional.one_hot(y, 10)),
            "neg_images": with_label(x, functional.one_hot(other, 10)),
            "neutral_sample": with_label(x, 0.1),
        }
        loss = net(samples, {"class_labels": y})["Loss"]
        loss.backward()
        optimizer.step()
        return loss

    return step


def feedback_alignment(model, make_optimizer, mode="fa"):
    """jsalbert/biotorch: the network that all train, its layers replaced; mode is 'fa', 'usf', 'brsf' or 'frsf'."""
    from biotorch.module.biomodule import BioModule

    net = BioModule(model, mode)
    optimizer = make_optimizer(net.parameters())

    def step(x, y):
        optimizer.zero_grad()
        loss = functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        return loss

    return step
