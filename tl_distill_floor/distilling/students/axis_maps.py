"""`weight_axes`: which axes of a student's weights are the residual stream, and which teacher positions they keep.

This is read off two forward passes of the same family, one of the student's sizes and one of the teacher's. No names of
weights are needed.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from tl_distill_floor.distilling.students.axis_trace import AxisTrace, trace_axes
from tl_distill_floor.distilling.students.family_models import create_zero_model, refuse_failures, sample_ids
from tl_distill_floor.distilling.students.layers import layers_of
from tl_distill_floor.distilling.students.student_config import student_config
from tl_distill_floor.errors import InputError


class Product(NamedTuple):
    """An axis that is the product of others."""

    full_axis: int
    factors: tuple[int, ...]


class PairedPiece(NamedTuple):
    """An axis that has some of the positions of another axis, in the student and in the teacher."""

    full_axis: int
    positions: Sequence[int]
    teacher_positions: Sequence[int]
    part: int


@dataclass(frozen=True)
class WeightAxes:
    """What the axes of one of a student's weights are."""

    residual: tuple[int, ...]
    """Axes that are the residual stream."""
    positions: tuple[Tensor, ...]
    """For each axis, the teacher's positions that the student keeps."""
    is_scale: bool
    """Whether the weight multiplies the residual stream, such as the scale of a norm."""


_KNOWN_AXES: dict[tuple[object, ...], dict[str, WeightAxes]] = {}
"""Results of `weight_axes`: students of the same sizes are built several times, with other seeds or after a resume."""


def weight_axes(config: PreTrainedConfig, teacher: PreTrainedConfig) -> dict[str, WeightAxes]:
    """Return the axes of all weights of a student, by the weights' names.

    Args:
        config: the student's configuration.
        teacher: the teacher's configuration.

    Raises:
        InputError: the family's operations depend on the width, or a weight that follows the width is not used.
    """
    sizes = (type(config), config.to_json_string(use_diff=False), teacher.to_json_string(use_diff=False))
    if sizes not in _KNOWN_AXES:
        _KNOWN_AXES[sizes] = _trace_weight_axes(config, teacher)
    return _KNOWN_AXES[sizes]


def _trace_weight_axes(config: PreTrainedConfig, teacher: PreTrainedConfig) -> dict[str, WeightAxes]:
    """Run a model of the student's sizes and one of the teacher's, and return the axes of the student's weights."""
    same_depth = student_config(teacher, int(teacher.hidden_size), int(config.num_hidden_layers))
    # Fused kernels hide how experts are used.
    models = [create_zero_model(shape, fused_experts=False) for shape in (config, same_depth)]
    traces = []
    ids = sample_ids(teacher)
    for model in models:
        with refuse_failures(config, "cannot be run"):
            traces.append(trace_axes(model, layers_of(model)[0], ids))
    (student_trace, residual), (teacher_trace, _) = traces
    maps = AxisMaps(student_trace, teacher_trace, residual)
    weights, teacher_weights = (model.state_dict(keep_vars=True) for model in models)
    axes: dict[str, WeightAxes] = {}
    unused = []
    for name, weight in weights.items():
        if student_trace.has_seen(weight):
            axes[name] = maps.axes_of(weight)
        else:
            unused.append(name)
    for name in unused:  # such as experts that no token was sent to
        axes[name] = _axes_of_sibling(name, weights, teacher_weights, axes)
    return axes


def _axes_of_sibling(
    name: str, weights: dict[str, Tensor], teacher_weights: dict[str, Tensor], axes: dict[str, WeightAxes]
) -> WeightAxes:
    """Return the axes of a weight that no operation used: those of the same weight of another layer or expert."""
    shape = weights[name].shape
    for other, other_axes in axes.items():
        if re.sub(r"\d+", "", other) == re.sub(r"\d+", "", name) and weights[other].shape == shape:
            return other_axes
    if name in teacher_weights and teacher_weights[name].shape == shape:
        return WeightAxes((), tuple(torch.arange(size) for size in shape), False)
    raise InputError(f"it is not known how {name} follows the width; use --start random")


class AxisMaps:
    """Comparison of two traces of the same family, one of the student's sizes and one of the teacher's.

    Axes that both traces join are one class, and so are the factors of one class and the pieces of one class. Two axes
    whose sizes are equal by chance in one of the traces are not joined.

    Args:
        student: trace of the student.
        teacher: trace of a model of the teacher's sizes, and of the student's depth.
        residual: axis of the residual stream.

    Raises:
        InputError: the traces have different operations.
    """

    def __init__(self, student: AxisTrace, teacher: AxisTrace, residual: int) -> None:
        is_same = [len(a) == len(b) for a, b in ((student.sizes, teacher.sizes), (student.pieces, teacher.pieces))]
        if not all(is_same) or student.views != teacher.views:
            raise InputError(
                "the operations of this family depend on the width, so no weights can be matched; use --start random"
            )
        self._student, self._residual = student, residual
        self._sizes = list(zip(student.sizes, teacher.sizes, strict=True))
        """Sizes of each axis in the student and in the teacher."""
        self._parents = list(range(len(self._sizes)))
        for one, other in set(student.joined) & set(teacher.joined):
            self._union(one, other)
        pieces = [
            PairedPiece(own.full_axis, own.positions, theirs.positions, own.part)
            for own, theirs in zip(student.pieces, teacher.pieces, strict=True)
            if (own.full_axis, own.part) == (theirs.full_axis, theirs.part)
        ]
        products = [product for view in student.views for product in self._split_view(*view)]
        while self._join_parts(pieces, products):
            pass
        self._products: dict[int, list[Product]] = defaultdict(list)
        self._pieces: dict[int, list[PairedPiece]] = defaultdict(list)
        for product in products:
            self._products[self._find(product.full_axis)].append(product)
        for piece in pieces:
            self._pieces[self._find(piece.full_axis)].append(piece)
        self._maps: dict[int, Tensor] = {}

    def axes_of(self, weight: Tensor) -> WeightAxes:
        """Return what the axes of one of the student's weights are."""
        axes = self._student.axes_of(weight)
        residual = self._find(self._residual)
        return WeightAxes(
            residual=tuple(i for i, axis in enumerate(axes) if self._find(axis) == residual),
            positions=tuple(self._map(self._find(axis)) for axis in axes),
            is_scale=weight.ndim == 1 and id(weight) not in self._student.added,
        )

    def _find(self, axis: int) -> int:
        while self._parents[axis] != axis:
            self._parents[axis] = self._parents[self._parents[axis]]
            axis = self._parents[axis]
        return axis

    def _union(self, one: int, other: int) -> bool:
        """Make two classes one; return whether they were two. Axes of size 1 are broadcast, so they have no class."""
        one, other = sorted((self._find(one), self._find(other)))
        if one == other or self._sizes[one] != self._sizes[other] or self._sizes[one] == (1, 1):
            return False
        self._parents[other] = one
        return True

    def _split_view(self, before: tuple[int, ...], after: tuple[int, ...]) -> Iterator[Product]:
        """Join the axes that a view keeps, and return those that it splits or merges."""
        old = [axis for axis in before if self._sizes[axis] != (1, 1)]
        new = [axis for axis in after if self._sizes[axis] != (1, 1)]
        while old and new:
            olds, news = [old.pop(0)], [new.pop(0)]
            while (size := self._total(olds)) != (new_size := self._total(news)):
                if size[1] < new_size[1] and old:
                    olds.append(old.pop(0))
                elif size[1] > new_size[1] and new:
                    news.append(new.pop(0))
                elif old:
                    olds.append(old.pop(0))
                elif new:
                    news.append(new.pop(0))
                else:
                    return
            if len(olds) == len(news) == 1:
                self._union(olds[0], news[0])
            elif len(olds) == 1:
                yield Product(olds[0], tuple(news))
            elif len(news) == 1:
                yield Product(news[0], tuple(olds))
            else:
                self._sizes.append(self._total(olds))
                self._parents.append(len(self._parents))
                yield Product(len(self._parents) - 1, tuple(olds))
                yield Product(len(self._parents) - 1, tuple(news))

    def _total(self, axes: Sequence[int]) -> tuple[int, int]:
        sizes = [self._sizes[axis] for axis in axes]
        return math.prod(own for own, _ in sizes), math.prod(theirs for _, theirs in sizes)

    def _join_parts(self, pieces: Sequence[PairedPiece], products: Sequence[Product]) -> bool:
        """Join the factors of equal sizes of the same class, and its pieces of equal positions; return whether any."""
        known: dict[object, tuple[int, ...]] = {}
        keyed: list[tuple[object, tuple[int, ...]]] = [
            ((self._find(product.full_axis), *(self._sizes[factor] for factor in product.factors)), product.factors)
            for product in products
        ]
        keyed += [
            ((self._find(p.full_axis), tuple(p.positions), tuple(p.teacher_positions)), (p.part,)) for p in pieces
        ]
        joined = False
        for key, parts in keyed:
            for one, other in zip(known.setdefault(key, parts), parts, strict=True):
                joined |= self._union(one, other)
        return joined

    def _map(self, axis: int) -> Tensor:
        """Return the teacher's positions of a class of axes."""
        size, teacher_size = self._sizes[axis]
        if axis not in self._maps:
            self._maps[axis] = torch.arange(size)  # also the answer if the axis is a part of itself
            if size != teacher_size and axis != self._find(self._residual):
                positions = self._map_of_pieces(axis)
                self._maps[axis] = self._map_of_factors(axis) if positions is None else positions
        return self._maps[axis]

    def _map_of_pieces(self, axis: int) -> Tensor | None:
        """Return the positions of an axis that is cut into pieces, which are mapped one by one; None if it is not."""
        size, teacher_size = self._sizes[axis]
        positions = torch.full((size,), -1)
        covered = torch.zeros(teacher_size, dtype=torch.bool)
        for piece in sorted(self._pieces[axis], key=lambda piece: -len(piece.teacher_positions)):
            own, theirs = torch.tensor([*piece.positions]).long(), torch.tensor([*piece.teacher_positions]).long()
            is_part = len(own) > 0 and len(theirs) < teacher_size
            if not is_part or (positions[own] >= 0).any() or covered[theirs].any():
                continue
            part = self._find(piece.part)
            fits = self._sizes[part] == (len(own), len(theirs))
            positions[own] = theirs[self._map(part) if fits else torch.arange(len(own))]
            covered[theirs] = True
        return positions if (positions >= 0).all() and covered.all() else None

    def _map_of_factors(self, axis: int) -> Tensor:
        """Return the positions of an axis that is a product of others, such as heads and head size."""
        size, _ = self._sizes[axis]
        for product in self._products[axis]:
            positions = torch.zeros(1, dtype=torch.long)
            for factor in product.factors:
                positions = (positions[:, None] * self._sizes[factor][1] + self._map(self._find(factor))).flatten()
            if len(positions) == size:
                return positions
        return torch.arange(size)
