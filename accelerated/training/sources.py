"""What a training takes its batches from: tensors in memory, or anything that gives batches anew in each pass."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import Dataset as Samples
from torch.utils.data import IterableDataset, TensorDataset

from ..rules import Rule
from .data import Dataset
from .data.augmentation import Augmentation
from .errors import UserError
from .evaluation import EVALUATION_BATCH
from .recipes import Recipe

MEASURED_BATCH = 512

Batch: TypeAlias = tuple[Any, Any]
"""x and y: tensors; x also a padded one and the lengths, or packed, and y a pair of labels and weights."""

BatchOf: TypeAlias = Callable[[Any], tuple[Any, Any]]
"""From what a loader gives to (x, y)."""


class Place(NamedTuple):
    """Where batches are computed on, and what makes (x, y) of one."""

    device: torch.device
    dtype: torch.dtype
    batch_of: BatchOf | None = None

    def __call__(self, batch: Any, name: str) -> Batch:
        """x and y on the device, real numbers in the dtype, integers of y as int64. Raises UserError for other things.

        x may be a pair, sequences and their lengths, or a PackedSequence; y too: labels, and a weight of each.
        """
        try:
            pair = batch if self.batch_of is None else self.batch_of(batch)
        except (TypeError, LookupError, AttributeError) as error:
            raise UserError(
                f"{name}: batch_of does not take a {type(batch).__name__} ({type(error).__name__}: {error}); "
                "it is called with the batches of train, validation and test, expected to be alike"
            ) from error
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            kind = f"{len(pair)} things" if isinstance(pair, tuple | list) else f"a {type(pair).__name__}"
            raise UserError(
                f"{name}: gives {kind}, expected (x, y); batch_of=lambda batch: (batch['image'], batch['label']) makes "
                "them of a dict"
            )
        x, y = pair
        return self._part(x, name, self.tensor), self._part(y, name, self._target)

    def _part(self, values: Any, name: str, made: Callable[[Any, str], Tensor]) -> Any:
        if isinstance(values, PackedSequence):
            dtype = self.dtype if values.data.is_floating_point() else values.data.dtype
            return values.to(device=self.device, dtype=dtype)  # type: ignore[call-arg]  # which its overloads lack
        if _is_pair(values):
            return made(values[0], name), self._target(values[1], name)
        return made(values, name)

    def tensor(self, values: Any, name: str) -> Tensor:
        try:
            is_foreign = not isinstance(values, Tensor) and (_is_array(values) or _is_list(values))
            found = torch.as_tensor(np.asarray(values) if is_foreign else values)
        except (TypeError, ValueError, RuntimeError) as error:
            kind = f"an array of {values.dtype}" if hasattr(values, "dtype") else f"a {type(values).__name__}"
            raise UserError(
                f"{name}: {kind}, expected a tensor or an array of numbers; load() numbers the names of classes"
            ) from error
        return found.to(self.device, self.dtype if found.is_floating_point() else None, non_blocking=True)

    def _target(self, values: Any, name: str) -> Tensor:
        found = self.tensor(values, name)
        return found if found.is_floating_point() else found.long()


class Tensors:
    """Samples in memory, shuffled anew in each pass; training images may be augmented.

    A last batch of fewer than `least` samples joins the one before it.
    """

    def __init__(
        self,
        tensors: tuple[Tensor, ...],
        batch: int,
        place: Place,
        name: str,
        shuffling: torch.Generator,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.samples = len(tensors[0])
        self.tensors, self.batch, self.place, self.name = tensors, batch, place, name
        self.shuffling, self.augmentation = shuffling, augmentation
        self.least = 2
        lengths = [len(tensor) for tensor in tensors]
        if not self.samples or len(set(lengths)) > 1:
            raise UserError(f"{name}: {' and '.join(map(str, lengths))} samples, expected as many of each, 1 or more")

    @property
    def batches(self) -> int:
        return len(batches_of(torch.arange(self.samples), self.batch, self.least))

    def epoch(self, number: int) -> Iterator[Tensor]:
        """What stands for the batches of that epoch, from 1; `read` makes a batch of it."""
        order = torch.randperm(self.samples, generator=self.shuffling).to(self.tensors[0].device)
        yield from batches_of(order, self.batch, self.least)

    def read(self, item: Tensor) -> Batch:
        x, y = self.place(tuple(tensor[item] for tensor in self.tensors), self.name)
        return x if self.augmentation is None else self.augmentation(x, self.shuffling), y

    def in_order(self) -> Iterator[Batch]:
        """Every sample, in batches to evaluate on."""
        for part in zip(*(tensor.split(EVALUATION_BATCH) for tensor in self.tensors), strict=True):
            yield self.place(part, self.name)

    def first(self) -> Batch:
        """Samples that stay the same, to measure a rule on."""
        return self.place(tuple(tensor[:MEASURED_BATCH] for tensor in self.tensors), self.name)

    def generators(self) -> dict[str, torch.Generator]:
        """What its draws come from, besides PyTorch's own."""
        return {"shuffling": self.shuffling}

    @property
    def labels(self) -> Tensor | None:
        """The classes, 0..K-1, where there is one of each sample."""
        y = self.tensors[-1]
        is_classes = len(self.tensors) == 2 and self.place.batch_of is None and y.dim() == 1
        return y.long() if is_classes and not y.is_floating_point() and y.min() >= 0 else None


class Loader:
    """Anything that gives batches each time it is passed through, such as a DataLoader."""

    def __init__(self, loader: Iterable[Any], place: Place, name: str) -> None:
        self.loader, self.place, self.name = loader, place, name

    @property
    def batches(self) -> int | None:
        try:
            return len(self.loader)  # type: ignore[arg-type]
        except TypeError:  # of a stream
            return None

    def epoch(self, number: int) -> Iterator[Any]:
        for sampler in {id(part): part for part in self._parts()}.values():
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(number - 1)
        is_empty = True
        for batch in self.loader:
            is_empty = False
            yield batch
        if is_empty:
            raise UserError(f"{self.name}: gives no batch in epoch {number}, expected one or more")

    def read(self, item: Any) -> Batch:
        return self.place(item, self.name)

    def in_order(self) -> Iterator[Batch]:
        return map(self.read, self.loader)

    def generators(self) -> dict[str, torch.Generator]:
        found = {id(part.generator): part.generator for part in self._parts() if hasattr(part, "generator")}
        drawn = [generator for generator in found.values() if isinstance(generator, torch.Generator)]
        return {f"loader{number}": generator for number, generator in enumerate(drawn)}

    def _parts(self) -> list[Any]:
        """The loader, and what it samples by."""
        by_batch = getattr(self.loader, "batch_sampler", None)
        found = [getattr(self.loader, name, None) for name in ("dataset", "sampler")]
        found += [self.loader, by_batch, getattr(by_batch, "sampler", None)]
        return list({id(part): part for part in found if part is not None}.values())


class Data(NamedTuple):
    """What a training uses: sources, what its checkpoint says of them, and the tensors that they are known by."""

    train: Tensors | Loader
    validation: Tensors | Loader | None
    test: Tensors | Loader | None
    about: dict[str, Any]
    content: Sequence[Sequence[Tensor]]


def of_dataset(rule: Rule, dataset: Dataset, recipe: Recipe, place: Place, shuffling: torch.Generator) -> Data:
    """Its three parts in the shape that the rule takes, standardised and augmented by the recipe. Raises UserError."""
    standardise = recipe.standardise or dataset.is_table
    augmentation = Augmentation.of(dataset, standardise, **recipe.augmentation)
    moved = dataset.to(place.device, place.dtype, standardise)
    if rule.wants_images:
        moved = moved.as_images()
    elif rule.wants_sequences:
        moved = moved.as_sequences()
    train, validation, test = (
        Tensors(tuple(part), recipe.batch, place, dataset.name, shuffling)
        for part in (moved.train, moved.validation, moved.test)
    )
    train.augmentation = augmentation
    parts = dataset.train, dataset.validation, dataset.test
    about = {
        "data": dataset.name,
        "samples": [len(part.labels) for part in parts],
        "image_shape": list(dataset.image_shape),
        "classes": list(dataset.classes),
        "columns": list(dataset.columns),
        "num_classes": dataset.num_classes,
        "mean": dataset.standardisation[0],
        "std": dataset.standardisation[1],
    }
    return Data(train, validation, test, about, parts)


def of_others(train: Any, validation: Any, test: Any, recipe: Recipe, place: Place, shuffling: torch.Generator) -> Data:
    """Other data as they are. Raises UserError, with the argument's name."""
    for name, value in recipe.augmentation.items():
        if value:
            raise UserError(
                f"{name}: {value}, but only images of a Dataset of load() are augmented, expected {type(value)()}"
            )
    first = source(train, recipe.batch, place, "train", shuffling)
    held, unseen = (
        None if data is None else source(data, recipe.batch, place, name, shuffling)
        for name, data in (("validation", validation), ("test", test))
    )
    in_memory = [part for part in (first, held, unseen) if isinstance(part, Tensors)]
    about = {"data": type(train).__name__, "samples": [part.samples for part in in_memory], "batches": first.batches}
    return Data(first, held, unseen, about, [part.tensors for part in in_memory])


def source(data: Any, batch: int, place: Place, name: str, shuffling: torch.Generator) -> Tensors | Loader:
    """A TensorDataset or a pair of arrays or tensors in batches of that size, or a loader in its own.

    Raises UserError for what gives no batches, or gives them only once.
    """
    if isinstance(data, TensorDataset) or _is_x_and_y(data):
        tensors = data.tensors if isinstance(data, TensorDataset) else data
        return Tensors(tuple(place.tensor(part, name) for part in tensors), batch, place, name, shuffling)
    kind = type(data).__name__
    if isinstance(data, Samples) and not isinstance(data, IterableDataset):
        raise UserError(f"{name}: a {kind}, which gives single samples; expected DataLoader({name}, batch_size=...)")
    if isinstance(data, Iterator):
        raise UserError(f"{name}: a {kind}, which gives its batches once; expected what gives them anew in each epoch")
    if isinstance(data, str | bytes | dict) or _is_array(data) or not hasattr(data, "__iter__"):
        raise UserError(
            f"{name}: a {kind}, expected a Dataset of load(), a DataLoader, a TensorDataset, a pair of arrays, or what "
            "else gives batches (x, y)"
        )
    loader = Loader(data, place, name)
    if loader.batches == 0:
        raise UserError(f"{name}: a {kind} without batches, expected one or more")
    return loader


def _is_pair(data: Any) -> bool:
    return isinstance(data, tuple | list) and len(data) == 2 and all(map(_is_array, data))


def _is_x_and_y(data: Any) -> bool:
    """Whether it is a pair of arrays, or of lists of numbers or names, and not of batches."""
    return isinstance(data, tuple | list) and len(data) == 2 and all(_is_array(part) or _is_list(part) for part in data)


def _is_list(part: Any) -> bool:
    """Whether it is a list, or a list of lists, of numbers or names."""
    while isinstance(part, list | tuple) and len(part):
        part = part[0]
        if isinstance(part, str | int | float | np.number):
            return True
    return False


def _is_array(data: Any) -> bool:
    """A tensor, an array, or what NumPy makes one of, such as a table of pandas; but no single number."""
    return hasattr(data, "__array__") and getattr(data, "ndim", 0) > 0


def batches_of(order: Tensor, batch: int, least: int = 2) -> list[Tensor]:
    """Batches in that order. A last one of too few joins the one before: some rules and BatchNorm need two samples."""
    batches = list(order.split(batch))
    if len(batches) > 1 and len(batches[-1]) < least <= batch:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches
