"""Rules on low precision and noisy hardware."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._python_dispatch import TorchDispatchMode

from .._autocast import region_on
from ..hardware import Crossbar, convolve, convolve_adjoint, product, programmed, random_noise
from ..modules import OrthogonalConv2d, Rotation
from .rule import Rule, UnitUpdate

aten = torch.ops.aten


class Hardware(Rule):
    """A wrapper that simulates low-precision or noisy hardware for any rule; see `prograde.reference.hardware`.

        rule = Hardware(Ftp(model, second_pass="full"), bits=6, read_noise=0.01)    # two real passes, as hardware has

    All matrices of the rule are on crossbars: weights, and feedback (G, F, B_l, learned inverses). Each product with
    one, forward or transposed, quantises the matrix to `weight_bits`, its input to `activation_bits` and its result to
    `product_bits`. Each read adds noise of `read_noise` times the largest weight. `bits` stands for all three where
    they are not given; None means no quantisation. `constrain` writes the parameters that had an update, biases too,
    with noise of `programming_noise` times the largest weight, clipped to -`weight_range`..`weight_range`. Without any
    of these options the results are the bare rule's, bit for bit.

    A kernel of Conv2d is the matrix (c_out, c_in rows columns), and a convolution one product with it, of the windows
    at all positions of all samples: one read serves them all. The adjoint convolution of a backward pass is the
    transposed product; the windows that it gives overlap, and are added up exactly.

    A recurrent layer reads the weights of its input once for all steps, and those of its state at every step.

    Exact are products without a matrix of the rule (those in the updates), what Forward-Forward's label adds to the
    first layer, which is looked up, and everything that is no product. In a product of two matrices, as in FOTON's
    error projection, the second is on the crossbar and the first is its input. A part of a matrix is quantised as a
    matrix of its own. Backpropagation differentiates rounding as the identity (a straight-through estimate). A batch
    that is a view of a weight counts as the weight.

    The hardware's settings are not part of the state. `rule(x)` gives the scores of the hardware, with noise in
    evaluation too; `objective` is exact. Foton, and Backprop with `orthogonal`, restore orthogonality before a write.
    Noise comes from the rule's generator, or from `generator`. Refused are OrthogonalConv2d and Rotation, computed
    from parts, Conv2d with groups or dilation, a `seeded` G, which nothing holds, and read noise for a Foton with both
    `recompute` and Dropout, whose masks would differ between its two passes. Other attributes of the rule, such as its
    `loss`, are those of `rule.rule`.

    Raises ValueError for fewer than two bits, negative noise, and layers that no crossbar can hold.

    >>> model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))
    >>> x, bare = torch.eye(2), Foton(model)
    >>> torch.equal(Hardware(bare)(x), bare(x)), torch.equal(Hardware(bare, bits=2)(x), bare(x))
    (True, False)
    """

    def __init__(
        self,
        rule: Rule,
        *,
        bits: int | None = None,
        weight_bits: int | None = None,
        activation_bits: int | None = None,
        product_bits: int | None = None,
        read_noise: float = 0.0,
        programming_noise: float = 0.0,
        weight_range: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        if not isinstance(rule, Rule) or isinstance(getattr(rule, "rule", None), Rule):  # one that wraps another
            raise ValueError(f"rule: a {type(rule).__name__}, expected a learning rule")
        for name, module in rule.model.named_modules():
            if is_parametrized(module):
                raise ValueError(
                    f"layer '{name}': {type(module).__name__}, whose weight is computed; Hardware has crossbars for "
                    "weights that are held"
                )
        for unit in rule.units:
            match unit.module:
                case OrthogonalConv2d() | Rotation():
                    raise ValueError(
                        f"layer '{unit.name}': {type(unit.module).__name__}, whose weight is computed from its parts; "
                        "Hardware has crossbars for Linear and Conv2d"
                    )
                case nn.Conv2d(groups=groups, dilation=dilation) if groups != 1 or dilation != (1, 1):
                    raise ValueError(
                        f"layer '{unit.name}': {unit.module}; Hardware has crossbars for Conv2d without groups and "
                        "dilation"
                    )
        if getattr(rule, "seed", None) is not None:
            raise ValueError(
                "rule: its G is seeded, drawn anew at each step; Hardware has crossbars for one that is held"
            )
        given = {"bits": bits, "weight_bits": weight_bits, "activation_bits": activation_bits}
        for name, found in {**given, "product_bits": product_bits}.items():
            if found is not None and (type(found) is not int or found < 2):
                raise ValueError(f"{name}: {found!r}, expected an integer of 2 or more, or None")
        for name, value in {"read_noise": read_noise, "programming_noise": programming_noise}.items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"{name}: {value}, expected 0 or a positive number")
        if weight_range is not None and not 0 < weight_range < float("inf"):
            raise ValueError(f"weight_range: {weight_range}, expected a positive number or None")
        if read_noise and getattr(rule, "recompute", False) and any(unit.dropout is not None for unit in rule.units):
            raise ValueError(f"read_noise: {read_noise}, with recompute and Dropout, whose masks are drawn twice")
        nn.Module.__init__(self)
        self.rule = rule
        self._trained: set[int] = set()  # parameters that had an update, by identity
        self.__dict__["model"] = rule.model  # not as a module: it is one of the rule's
        self.units, self.num_classes = rule.units, rule.num_classes
        self.wants_sequences = rule.wants_sequences
        self.holds_recurrence = any(isinstance(module, nn.RNNBase) for module in rule.model.modules())
        self.crossbar = Crossbar(
            bits if weight_bits is None else weight_bits,
            bits if activation_bits is None else activation_bits,
            bits if product_bits is None else product_bits,
            read_noise,
        )
        self.programming_noise = programming_noise
        self.weight_range = weight_range
        if generator is not None:
            self.generator = generator

    @property
    def generator(self) -> torch.Generator | None:
        """The rule's own."""
        return self.rule.generator

    @generator.setter
    def generator(self, generator: torch.Generator | None) -> None:
        self.rule.generator = generator

    @property
    def least_batch(self) -> int:
        """The rule's own."""
        return self.rule.least_batch

    def untrained(self) -> dict[Tensor, str]:
        return self.rule.untrained()

    def no_weight_decay(self) -> list[nn.Parameter]:
        return self.rule.no_weight_decay()

    def extra_repr(self) -> str:
        return f"{self.crossbar}, programming_noise={self.programming_noise}, weight_range={self.weight_range}"

    def forward(self, x: Tensor) -> Tensor:
        with self._crossbars():
            scores: Tensor = self.rule(x)
        return scores

    def inference(self) -> nn.Module:
        """Raises ValueError: what the hardware adds to its products is in no module."""
        raise ValueError(
            "rule: Hardware, whose products have its noise; export the rule that it runs, rule.rule.export()"
        )

    def stream(self, x: Tensor, y: Tensor) -> Iterator[UnitUpdate]:
        updates = self.rule.stream(x, y)
        self._trained.clear()
        while True:
            with self._crossbars():  # not around the yield: what is done with an update is no business of theirs
                update = next(updates, None)
            if update is None:
                return
            self._trained |= {id(parameter) for parameter, _ in update.pairs}
            yield update

    def activities(self, x: Tensor, y: Tensor) -> Iterator[Tensor]:
        """Those of exact products, as `objective` has them."""
        return self.rule.activities(x, y)

    @torch.no_grad()
    def constrain(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        self.rule.constrain(optimizer if self.crossbar == Crossbar() else None)  # noisy factors tell no step
        if self.programming_noise or self.weight_range is not None:
            for parameter in self.parameters():
                if id(parameter) in self._trained:
                    noise = self._noise(parameter) if self.programming_noise else None
                    parameter.copy_(programmed(parameter, noise, self.programming_noise, self.weight_range))
        self._trained.clear()

    def calibrate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        with self._crossbars():
            self.rule.calibrate(batches)

    def objective(self, x: Tensor, y: Tensor) -> Tensor:
        return self.rule.objective(x, y)

    def _check_autocast(self) -> None:
        """Raises ValueError in an autocast region, whose copies of weights stand on no crossbar."""
        region = region_on(next(self.parameters()).device)
        if region is not None:
            raise ValueError(
                f"autocast is on for {region.kind}: Hardware computes in the precision of its crossbars; leave the "
                "autocast region"
            )

    def _noise(self, weight: Tensor) -> Tensor:
        return random_noise(tuple(weight.shape), self.generator, device=weight.device, dtype=weight.dtype)

    @contextmanager
    def _crossbars(self) -> Iterator[None]:
        self._check_autocast()
        if self.crossbar == Crossbar():
            yield
            return
        self.rule.on_crossbars = True
        with ExitStack() as stack:
            stack.callback(setattr, self.rule, "on_crossbars", False)
            if torch.is_inference_mode_enabled():  # it would dispatch whole what is composed of products
                stack.enter_context(torch.inference_mode(False))
                stack.enter_context(torch.no_grad())
            if self.holds_recurrence:  # as would cuDNN and oneDNN
                stack.enter_context(torch.backends.cudnn.flags(enabled=False))
                stack.callback(setattr, torch.backends.mkldnn, "enabled", torch.backends.mkldnn.enabled)
                torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
            stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
            torch.backends.mha.set_fastpath_enabled(False)  # one operation for all that attention computes
            matrices = [tensor for tensor in (*self.parameters(), *self.buffers()) if tensor.dim() > 1]
            stack.enter_context(_Crossbars(self, matrices))
            yield


class _Crossbars(TorchDispatchMode):
    """Inside, products with one of the matrices, or with a view of one, are the hardware's.

    Those of a backward pass too: autograd's own products are dispatched as any others are.
    """

    def __init__(self, hardware: Hardware, matrices: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.hardware = hardware
        self.storages = {matrix.untyped_storage().data_ptr() for matrix in matrices}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is aten.mm.default and any(map(self.holds, args)):
            return self.multiply(*args)
        if func is aten.addmm.default and any(map(self.holds, args[1:])) and not kwargs:
            return args[0] + self.multiply(*args[1:])
        if func is aten.bmm.default and self.holds(args[1]) and args[1].stride(0) == 0:  # one matrix for all samples
            return self.multiply(args[0].flatten(0, 1), args[1][0]).unflatten(0, args[0].shape[:2])
        if func is aten.convolution.default and self.holds(args[1]):
            return self.convolve(*args)
        if func is aten.convolution_backward.default and self.holds(args[2]):
            return self.convolve_back(*args)
        if func in PRODUCTS and any(map(self.holds, args)):
            raise NotImplementedError(f"{func}: Hardware knows no such product with a matrix of its rule")
        return func(*args, **(kwargs or {}))

    def holds(self, operand: Any) -> bool:
        """Whether the operand is one of the matrices, or a view of one."""
        return isinstance(operand, Tensor) and operand.untyped_storage().data_ptr() in self.storages

    def multiply(self, left: Tensor, right: Tensor) -> Tensor:
        """left @ right, one of which stands on a crossbar: the second, if both are matrices of the rule."""
        if self.holds(right):
            return self.drive(left, right.T)
        return self.drive(right.T, left).T

    def drive(self, x: Tensor, weight: Tensor) -> Tensor:
        """x @ weight.T by the crossbar."""
        return product(self.hardware.crossbar, x, weight, self.noise(weight))

    def noise(self, weight: Tensor) -> Tensor | None:
        """Of one read."""
        return self.hardware._noise(weight) if self.hardware.crossbar.read_noise else None

    def convolve(
        self, z: Tensor, kernel: Tensor, bias: Tensor | None, stride: list[int], padding: list[int], *kind: Any
    ) -> Tensor:
        """As aten.convolution, by the crossbar."""
        self.check_plain(kind)
        a = convolve(self.hardware.crossbar, z, kernel, self.noise(kernel), *_pairs(stride, padding))
        return a if bias is None else a + bias[:, None, None]

    def convolve_back(self, d: Tensor, z: Tensor, kernel: Tensor, biases: Any, *place: Any) -> tuple[Any, Any, Any]:
        """As aten.convolution_backward: the gradient by z by the crossbar, those by kernel and bias exactly."""
        stride, padding, *kind, (by_input, *by_others) = place
        of_input = of_kernel = of_bias = None
        if by_input:
            self.check_plain(kind)
            size, noise = (z.shape[2], z.shape[3]), self.noise(kernel)
            of_input = convolve_adjoint(self.hardware.crossbar, d, kernel, size, noise, *_pairs(stride, padding))
        if any(by_others):
            asked = [False, *by_others]
            _, of_kernel, of_bias = aten.convolution_backward(d, z, kernel, biases, stride, padding, *kind, asked)
        return of_input, of_kernel, of_bias

    def check_plain(self, kind: Sequence[Any]) -> None:
        """Raises NotImplementedError for another convolution than Conv2d without groups and dilation."""
        dilation, transposed, _, groups = kind
        if list(dilation) != [1, 1] or transposed or groups != 1:
            raise NotImplementedError("convolution: Hardware knows Conv2d without groups and dilation alone")


def _pairs(stride: Sequence[int], padding: Sequence[int]) -> tuple[tuple[int, int], tuple[int, int]]:
    return (stride[0], stride[1]), (padding[0], padding[1])


PRODUCTS = {
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.baddbmm.default,
    aten.mv.default,
    aten.addmv.default,
    aten._addmm_activation.default,
    aten.convolution.default,
    aten.convolution_backward.default,
    aten._trilinear.default,
    aten._native_multi_head_attention.default,
    aten._transformer_encoder_layer_fwd.default,
    aten.mkldnn_rnn_layer.default,
}
"""Those that could have a matrix of a rule in them."""
