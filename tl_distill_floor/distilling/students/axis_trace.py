"""Trace how the axes of a model's weights are connected, by running the model once under a dispatch mode.

Each axis of each tensor is a node. Operations connect nodes: an addition joins the last axes of its operands, a matrix
product joins the axes that it sums over, a view splits one axis into factors, and a split cuts one axis into pieces.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operations whose output has the axes of their input: split or merged, the same, or fewer of them.
VIEWS = {"view", "_unsafe_view", "reshape", "_reshape_alias", "view_copy", "unsqueeze", "squeeze", "flatten"}
COPIES = {"clone", "detach", "alias", "contiguous", "_to_copy", "lift_fresh"}
REDUCTIONS = {"sum", "mean", "amax", "amin", "var", "std", "any", "all", "argmax", "max", "min", "linalg_vector_norm"}


class View(NamedTuple):
    """The axes of a tensor before and after a view, which splits and merges axes."""

    before: tuple[int, ...]
    after: tuple[int, ...]


class Piece(NamedTuple):
    """An axis that has some of the positions of another axis."""

    full_axis: int
    positions: Sequence[int]
    part: int


class AxisTrace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Record of the axes of all tensors of a forward pass, numbered in the order in which they appear."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: list[int] = []
        """Size of each axis."""
        self.joined: list[tuple[int, int]] = []
        """Pairs of axes with the same positions."""
        self.views: list[View] = []
        self.pieces: list[Piece] = []
        self.added: set[int] = set()
        """Ids of the tensors that are added to other tensors, such as biases."""
        self._axes: dict[int, tuple[int, ...]] = {}
        self._kept: list[Tensor] = []

    def axes_of(self, tensor: Tensor) -> tuple[int, ...]:
        """Return the axes of a tensor; they are new if the tensor was not seen before."""
        axes = self._axes.get(id(tensor))
        if axes is None or len(axes) != tensor.ndim:
            axes = tuple(self._new_axis(size) for size in tensor.shape)
            self._set_axes(tensor, axes)
        return axes

    def has_seen(self, tensor: Tensor) -> bool:
        """Return whether an operation used a tensor."""
        return id(tensor) in self._axes

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        name = name if name.startswith("_") and not name.endswith("_") else name.rstrip("_")
        outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        rule = RULES.get(name)
        if name in COPIES:
            self._set_axes(outputs[0], self.axes_of(args[0]))
        elif name in VIEWS:
            self.views.append(View(self.axes_of(args[0]), self.axes_of(outputs[0])))
        elif name in REDUCTIONS:
            self._reduce(args, outputs)
        elif rule is not None:
            rule(self, args, outputs)
        else:
            inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            self.elementwise(inputs, outputs)
        self._note_added(name, args)
        return output

    def join(self, first: Tensor, first_axis: int, second: Tensor, second_axis: int) -> None:
        """Join an axis of one tensor with an axis of another, if they have the same size."""
        one, other = self.axes_of(first)[first_axis], self.axes_of(second)[second_axis]
        if one != other and self.sizes[one] == self.sizes[other]:
            self.joined.append((one, other))

    def elementwise(self, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Join the axes of inputs and outputs, aligned at the last axis as in broadcasting."""
        for result in outputs:
            for tensor in inputs:
                if tensor.ndim <= result.ndim and tensor is not result:
                    for axis in range(-tensor.ndim, 0):
                        self.join(tensor, axis, result, axis)

    def cut(self, tensor: Tensor, dim: int, part: Tensor, positions: Sequence[int] | None) -> None:
        """Join the axes of a tensor with those of a part of it, which has some positions of one axis.

        Args:
            tensor: the tensor.
            dim: the axis that is cut.
            part: a tensor with as many axes.
            positions: the positions of that axis; None if they are not known.
        """
        for axis in range(tensor.ndim):
            if axis != dim % tensor.ndim:
                self.join(tensor, axis, part, axis)
            elif positions is not None:
                self.pieces.append(Piece(self.axes_of(tensor)[axis], positions, self.axes_of(part)[axis]))
                if positions == range(tensor.shape[axis]):
                    self.join(tensor, axis, part, axis)

    def pick(self, tensor: Tensor, axis: int, position: int) -> None:
        """Record that one position of an axis is used alone."""
        self.pieces.append(Piece(self.axes_of(tensor)[axis], (position % tensor.shape[axis],), self._new_axis(1)))

    def _set_axes(self, tensor: Tensor, axes: tuple[int, ...]) -> None:
        self._axes[id(tensor)] = axes
        self._kept.append(tensor)  # ids of deleted tensors are used again

    def _new_axis(self, size: int) -> int:
        self.sizes.append(int(size))
        return len(self.sizes) - 1

    def _reduce(self, args: Sequence[Any], outputs: Sequence[Tensor]) -> None:
        tensor = args[0]
        for result in outputs:
            if result.ndim == tensor.ndim:
                self.elementwise([tensor], [result])
                continue
            dims = args[1] if len(args) > 1 and args[1] is not None else list(range(tensor.ndim))
            dims = [dims] if isinstance(dims, int) else list(dims) if isinstance(dims, (list, tuple)) else []
            remaining = [axis for axis in range(tensor.ndim) if axis not in {dim % tensor.ndim for dim in dims}]
            if len(remaining) == result.ndim:
                for axis, kept in enumerate(remaining):
                    self.join(tensor, kept, result, axis)

    def _note_added(self, name: str, args: Sequence[Any]) -> None:
        positions = {"add": (0, 1), "addmm": (0,), "baddbmm": (0,), "native_layer_norm": (3,), "convolution": (2,)}
        tensors = [args[i] for i in positions.get(name, ()) if i < len(args) and isinstance(args[i], Tensor)]
        if name != "add" or len(tensors) == 2:  # a number is not added to a tensor's axis: 1 + scale is a scale
            self.added.update(id(tensor) for tensor in tensors)


Rule = Callable[[AxisTrace, Sequence[Any], Sequence[Tensor]], None]
"""How an operation connects the axes of its arguments and outputs."""


def _permute(trace: AxisTrace, args: Sequence[Any], outputs: Sequence[Tensor]) -> None:
    before, after = args[0], outputs[0]
    order = list(range(before.ndim))
    if len(args) == 1:
        order.reverse()
    elif isinstance(args[1], int):
        first, second = args[1], args[2]
        order[first], order[second] = order[second], order[first]
    else:
        order = list(args[1])
    for new, old in enumerate(order):
        trace.join(before, old, after, new)


def _slice(trace: AxisTrace, args: Sequence[Any], outputs: Sequence[Tensor]) -> None:
    tensor, dim = args[0], args[1] if len(args) > 1 else 0
    start, end, step = (args[i] if len(args) > i else None for i in (2, 3, 4))
    trace.cut(tensor, dim, outputs[0], range(*slice(start, end, step).indices(tensor.shape[dim])))


def _select(trace: AxisTrace, args: Sequence[Any], outputs: Sequence[Tensor]) -> None:
    """Apply to `x[..., i]` and `unbind`, which remove an axis."""
    tensor, dim = args[0], (args[1] if len(args) > 1 else 0) % args[0].ndim
    for number, part in enumerate(outputs):
        trace.pick(tensor, dim, args[2] if len(args) > 2 else number)
        for axis in range(tensor.ndim):
            if axis != dim:
                trace.join(tensor, axis, part, axis - (axis > dim))


def _index_select(trace: AxisTrace, args: Sequence[Any], outputs: Sequence[Tensor]) -> None:
    trace.cut(args[0], args[1], outputs[0], None)


def _index(trace: AxisTrace, args: Sequence[Any], outputs: Sequence[Tensor]) -> None:
    """Apply to `x[:, ids]`: one list of positions of one axis keeps the other axes."""
    tensor, indices = args[0], args[1]
    lists = [(axis, index) for axis, index in enumerate(indices) if index is not None]
    if len(lists) != 1 or lists[0][1].ndim != 1 or lists[0][1].dtype == torch.bool:
        trace.elementwise([tensor], outputs)
        return
    ((axis, positions),) = lists
    trace.cut(tensor, axis, outputs[0], tuple(int(i) % tensor.shape[axis] for i in positions))


def _split(trace: AxisTrace, args: Sequence[Any], outputs: Sequence[Tensor]) -> None:
    _cut_in_order(trace, args[0], args[2] if len(args) > 2 else 0, outputs)


def _cat(trace: AxisTrace, args: Sequence[Any], outputs: Sequence[Tensor]) -> None:
    parts = [part for part in args[0] if part.ndim == outputs[0].ndim]  # others are empty tensors of one axis
    _cut_in_order(trace, outputs[0], args[1] if len(args) > 1 else 0, parts)


def _cut_in_order(trace: AxisTrace, full: Tensor, dim: int, parts: Sequence[Tensor]) -> None:
    """Record that an axis consists of those of some parts, one after the other."""
    start = 0
    for part in parts:
        trace.cut(full, dim, part, range(start, start + part.shape[dim]))
        start += part.shape[dim]


def _stack(trace: AxisTrace, args: Sequence[Any], outputs: Sequence[Tensor]) -> None:
    result, dim = outputs[0], args[1] if len(args) > 1 else 0
    for part in args[0]:
        for axis in range(part.ndim):
            trace.join(part, axis, result, axis + (axis >= dim % result.ndim))


def _matmul(trace: AxisTrace, args: Sequence[Any], outputs: Sequence[Tensor]) -> None:
    """Join the axes of a matrix product, whose factors are the last two tensors of two or three axes in `args`."""
    left, right = [arg for arg in args if isinstance(arg, Tensor) and arg.ndim >= 2 and arg.is_floating_point()][-2:]
    result = outputs[0]
    trace.join(left, -1, right, -2)
    trace.join(result, -1, right, -1)
    trace.join(result, -2, left, -2)
    if left.ndim == right.ndim == result.ndim == 3:
        trace.join(result, 0, left, 0)
        trace.join(result, 0, right, 0)


def _addmm(trace: AxisTrace, args: Sequence[Any], outputs: Sequence[Tensor]) -> None:
    _matmul(trace, args[1:3], outputs)
    trace.elementwise([args[0]], outputs)


def _vector_product(trace: AxisTrace, args: Sequence[Any], outputs: Sequence[Tensor]) -> None:
    trace.join(args[0], -1, args[1], -1)
    if outputs[0].ndim:
        trace.join(args[0], 0, outputs[0], 0)


def _embedding(trace: AxisTrace, args: Sequence[Any], outputs: Sequence[Tensor]) -> None:
    trace.join(args[0], -1, outputs[0], -1)


def _convolution(trace: AxisTrace, args: Sequence[Any], outputs: Sequence[Tensor]) -> None:
    tensor, weight, bias = args[:3]
    trace.join(outputs[0], 1, weight, 0)
    trace.join(tensor, 1, weight, 1 if weight.shape[1] > 1 else 0)
    if bias is not None:
        trace.join(bias, 0, weight, 0)


def _ignore(trace: AxisTrace, args: Sequence[Any], outputs: Sequence[Tensor]) -> None:
    """Join nothing: the outputs of these operations have axes of their own."""


RULES: dict[str, Rule] = {
    "t": _permute, "transpose": _permute, "permute": _permute, "slice": _slice, "select": _select, "unbind": _select,
    "index_select": _index_select, "index": _index, "split": _split, "split_with_sizes": _split,
    "unsafe_split": _split, "cat": _cat, "stack": _stack, "mm": _matmul, "bmm": _matmul, "_grouped_mm": _matmul,
    "addmm": _addmm, "baddbmm": _addmm, "mv": _vector_product, "dot": _vector_product, "embedding": _embedding,
    "convolution": _convolution, "mkldnn_convolution": _convolution, "nonzero": _ignore, "one_hot": _ignore,
    "bincount": _ignore, "histc": _ignore, "diagonal": _ignore,
}  # fmt: skip
"""Rule of each other operation, by its name in torch; operations that are not listed are elementwise."""


@torch.no_grad()
def trace_axes(model: nn.Module, first_layer: nn.Module, ids: Tensor) -> tuple[AxisTrace, int]:
    """Run a model once, and record its axes.

    Args:
        model: a `transformers` causal language model.
        first_layer: its first layer, whose input is the residual stream.
        ids: token ids [batch, position]; neither size should equal a size of a weight.

    Returns:
        The record, and the axis of the residual stream at the input of the first layer.
    """
    trace = AxisTrace()
    residual: list[int] = []

    def note_input(_module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        hidden = inputs[0] if inputs else named["hidden_states"]
        residual.append(trace.axes_of(hidden)[-1])

    handle = first_layer.register_forward_pre_hook(note_input, with_kwargs=True)
    try:
        with trace:
            model(ids, use_cache=False)
    finally:
        handle.remove()
    return trace, residual[0]
