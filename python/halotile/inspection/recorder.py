# SPDX-License-Identifier: MIT
"""Records what a module does to an image of one size, as a graph that runs on strips of rows. Imports torch.

The module runs once on an image without data. Every call of an operator becomes a node; its rule in the table of
`operators/` says from which rows of its operands it makes its rows.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.utils import _pytree
from torch.utils.flop_counter import flop_registry

from ..models.around import decomposed, looking
from ..models.modes import evaluating
from ..models.reach import roots_of
from ..models.untouched.copies import shell, uncompiled
from ..models.untouched.snapshot import preserved
from ..texts import named
from .following import FakeRun, is_random, same_elements, storage_of
from .operators import entry
from .operators.elementwise import pointwise_stream
from .operators.segment import Segment
from .operators.streaming import (
    DECIDES,
    IN_PLACE,
    RANDOM,
    Edge,
    NotStreamable,
    StreamNode,
    parted_rows,
    place_of,
    sources,
)
from .row_constants import rows_of_constant
from .segments import RECORDING, Segmented, assign_segment, segment_around

__all__ = ["Graph", "record"]

Tensor = torch.Tensor

UNKNOWN_VALUES = (DataDependentOutputException, DynamicOutputShapeException)
MOST_KINDS = 8  # of submodules that run as a whole
SMALL = 1 << 22  # elements of a constant that is computed while recording; larger ones are computed in a run


@dataclass(frozen=True)
class Graph:
    """What a module does to an image (1, channels, rows, columns) of one size.

    Attributes:
        image, result: first and last node.
        nodes: all nodes with rows or statistics that the result needs, in the order of their calls.
        levels: number of sweeps over the image, before the one that makes the result, that statistics need.
    """

    image: StreamNode
    result: StreamNode
    nodes: tuple[StreamNode, ...]
    levels: int


def record(
    module: torch.nn.Module, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device | None = None
) -> Graph:
    """Records a module for images of shape (channels, rows, columns). It runs in eval mode and is left unchanged.

    Args:
        device: of the images; None: that of the module's parameters.

    Raises:
        NotStreamable: it cannot run on rows, with the operator and the reason.
    """
    own = module = uncompiled(module)
    if not isinstance(module, torch.nn.Module):
        raise NotStreamable("only torch modules run on rows, not other callables")
    with looking():
        if not isinstance(module, torch.jit.ScriptModule):
            with contextlib.suppress(Exception):  # its parts may raise anything
                own = shell(module)
        with preserved([own], values=own is module):
            for _ in range(MOST_KINDS):
                recorder = Recorder(own)
                try:
                    return recorder.recorded(shape, dtype, device)
                except NotStreamable as error:
                    segments = recorder.segments_around(error) if own is not module else {}
                    if not segments:
                        raise
                    for path, segment in segments.items():
                        _replace(own, path, Segmented(segment))
    raise NotStreamable("too many kinds of its submodules cannot run on rows by their operators")


def _replace(root: torch.nn.Module, path: str, module: torch.nn.Module) -> None:
    above, _, name = path.rpartition(".")
    setattr(root.get_submodule(above), name, module)


class Recorder(FakeRun):
    """Runs a module on an image without data and makes a node of every call of an operator."""

    def __init__(self, module: torch.nn.Module):
        super().__init__(module, FakeTensorMode(allow_non_fake_inputs=True))
        self.nodes: list[StreamNode] = []
        self.node_of: dict[int, StreamNode] = {}
        self.alive: list[Tensor] = []  # so that no id is reused
        self.shapes: dict[str, tuple[int, ...] | None] = {}  # what submodules took, see `segment_around`
        self.inside: list[tuple[int, int]] | None = None  # operations and bytes of each operator in the running segment
        self.segment: Segment | None = None  # of which the next result is

    def recorded(self, shape: tuple[int, int, int], dtype: torch.dtype, device: torch.device | None) -> Graph:
        """Raises NotStreamable."""
        outer = RECORDING.set(self)
        with evaluating(roots_of(self.module)), self:
            try:
                output = self.run(shape[0], shape[1:], dtype, device)
            except NotStreamable:
                raise
            except UNKNOWN_VALUES as error:
                raise NotStreamable.of(error.func.name().partition("::")[2], self.path, DECIDES) from error
            except Exception as error:  # a model may raise anything
                raise NotStreamable(f"{place_of(self.path)} cannot be recorded: {named(error)}") from error
            finally:
                RECORDING.reset(outer)
        return self.graph(output)

    def segments_around(self, error: NotStreamable) -> dict[str, Segment]:
        """Submodules that may run as a whole, with what could not run on rows inside; empty if there are none."""
        return {} if not error.path else segment_around(self.module, error.path, self.shapes, self.nodes[0].dtype)

    def begin_segment(self) -> None:
        self.inside = []

    def end_segment(self, segment: Segment) -> None:
        flops, sizes = zip(*self.inside or [(0, 0)], strict=True)
        self.inside, self.segment = None, replace(segment, flops=sum(flops), peak=max(sizes))

    def entered(self, arguments: tuple[Any, ...]) -> None:
        one = arguments[0] if len(arguments) == 1 and isinstance(arguments[0], Tensor) else None
        again = self.path in self.shapes
        self.shapes[self.path] = None if one is None or again else tuple(one.shape)

    def begin(self, image: Tensor) -> None:
        self.nodes.clear()  # of the making of the image
        self._add(image, None, {}, None)

    def graph(self, output: Tensor) -> Graph:
        image, result = self.nodes[0], self.node_of.get(id(output))
        image.axis, image.rows = 2, image.shape[2]
        used = {id(image)} if result is None else _ancestors(result)
        for node in self.nodes[1:]:
            if id(node) in used:
                _assign(node)
        if result is None or result.axis is None:
            raise NotStreamable("the result does not depend on the image")
        if result.axis != 2 or result.outer != 1 or result.shape[0] != 1:
            raise result.refuse("rows of the result are not its third dimension")
        nodes = [node for node in self.nodes if id(node) in used]
        if result.per > 1:
            nodes.append(parted_rows(result))
        return _finished(image, nodes[-1], nodes)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():  # the model entered it
            result = decomposed(self, func, args, kwargs)
            if result is not NotImplemented:
                return result
        if self.inside is not None or self.segment is not None:
            return self._of_segment(func, args, kwargs)
        return self._called(func, args, kwargs)

    def _called(self, func: Any, args: Any, kwargs: Any) -> Any:
        name = func._schema.name.removeprefix("aten::")
        sees = any(isinstance(leaf, FakeTensor) for leaf in _pytree.tree_leaves((args, kwargs)))
        if name == "as_strided_" and sees and same_elements(*args, **kwargs):
            return args[0]
        if func._schema.is_mutable:
            if sees and self._rewritten(func, name, args, kwargs):
                return args[0]
            if sees:
                raise NotStreamable.of(name, self.path, IN_PLACE)
            return self.constant(func, args, kwargs)
        with self.fake:
            result = func(*args, **kwargs)
        outputs = [leaf for leaf in _pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
        if not sees and sum(one.numel() for one in outputs) <= SMALL:
            if is_random(func, name):
                raise NotStreamable.of(name, self.path, RANDOM)
            return self.constant(func, args, kwargs)
        given = self._given(func, args, kwargs)
        for place, tensor in enumerate(outputs):
            self._add(tensor, func, given, place if len(outputs) > 1 or isinstance(result, (list, tuple)) else None)
        return result

    def _of_segment(self, func: Any, args: Any, kwargs: Any) -> Any:
        with self.fake:
            result = func(*args, **kwargs)
        if self.inside is None:  # the copy of its result
            self._add(result, func, {"self": self.nodes[-1]}, None)
            self.nodes[-1].segment, self.segment = self.segment, None
            return result
        count = flop_registry.get(func.overloadpacket)
        tensors = [leaf for leaf in _pytree.tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
        flops = 0 if count is None else count(*args, **kwargs, out_val=result)
        self.inside.append((flops, sum(one.numel() * one.element_size() for one in tensors)))
        return result

    def _given(self, func: Any, args: Any, kwargs: Any) -> dict[str, Any]:
        """Arguments by name."""
        names = [argument.name for argument in func._schema.arguments]
        given = {one.name: one.default_value for one in func._schema.arguments}
        given |= dict(zip(names, args, strict=False)) | kwargs
        return _pytree.tree_map_only(Tensor, self._reference, given)

    def _rewritten(self, func: Any, name: str, args: Any, kwargs: Any) -> bool:
        """Records an operator that writes to its first operand as one that does not, if nothing else sees the memory:
        composite operators write to what they have just made."""
        target, overload = args[0] if args else None, func._overloadname
        plain = getattr(getattr(torch.ops.aten, name.removesuffix("_"), None), overload, None)
        if not isinstance(target, FakeTensor) or not name.endswith("_") or plain is None or plain._schema.is_mutable:
            return False
        shared = [one for one in self.alive if storage_of(one) == storage_of(target)]
        if len(shared) != 1 or shared[0] is not target or id(target) not in self.node_of:
            return False
        with self.fake:
            result = plain(*args, **kwargs)
        if (result.shape, result.dtype) != (target.shape, target.dtype):
            return False
        self._add(target, plain, self._given(plain, args, kwargs), None)
        self.alive.pop()  # it is there already
        return True

    def _add(self, tensor: Tensor, func: Any, given: dict[str, Any], output: int | None) -> None:
        node = StreamNode(
            len(self.nodes), self.path, func, given, output, tuple(tensor.shape), tensor.dtype, tensor.device
        )
        self.alive.append(tensor)
        self.node_of[id(tensor)] = node
        self.nodes.append(node)

    def _reference(self, tensor: Tensor) -> StreamNode | Tensor:
        node = self.node_of.get(id(tensor))
        if node is None and isinstance(tensor, FakeTensor):
            raise NotStreamable(f"{place_of(self.path)} uses a tensor that it did not make of the image or its weights")
        return tensor.detach() if node is None else node


# ---- from calls to rows ----------------------------------------------------------------------------------------------


def arguments_of(node: StreamNode) -> list[StreamNode]:
    return [leaf for leaf in _pytree.tree_leaves(node.arguments) if isinstance(leaf, StreamNode)]


def _ancestors(result: StreamNode) -> set[int]:
    found, waiting = {id(result)}, [result]
    while waiting:
        for source in arguments_of(waiting.pop()):
            if id(source) not in found:
                found.add(id(source))
                waiting.append(source)
    return found


# Operators of which the result is one number everywhere.
BLANK = {
    "zeros": 0,
    "ones": 1,
    "full": None,
    "new_zeros": 0,
    "zeros_like": 0,
    "new_empty": 0,
    "empty_like": 0,
    "new_ones": 1,
    "ones_like": 1,
    "new_full": None,
    "full_like": None,
}


def _assign(node: StreamNode) -> None:
    """Gives a node its rows, sources and function."""
    if node.name in BLANK:
        value = BLANK[node.name]
        value = node["fill_value"] if value is None else value
        node.func, node.arguments = torch.ops.aten.full.default, _full(node, value)
        return
    if is_random(node.func, node.name):
        raise node.refuse(RANDOM)
    if not sources(node):
        return
    if node.segment is not None:
        assign_segment(node, node.segment)
        return
    rule = entry(node.name).stream if node.func.namespace == "aten" else None
    if rule is None and torch.Tag.pointwise in node.func.tags:
        rule = pointwise_stream
    if rule is None:
        raise node.refuse("there is no rule for it")
    rule(node)
    for leaf in arguments_of(node):
        if id(leaf) in node.along and prod(leaf.shape) > SMALL:
            rows = rows_of_constant(leaf, node, node.along[id(leaf)], _assign)
            if rows is not None:
                node.by_rows[id(leaf)] = rows


def _full(node: StreamNode, value: Any) -> dict[str, Any]:
    kind = {"dtype": node.dtype, "layout": None, "device": node.device, "pin_memory": None}
    return {"size": list(node.shape), "fill_value": value, **kind}


def _finished(image: StreamNode, result: StreamNode, used: list[StreamNode]) -> Graph:
    nodes: list[StreamNode] = []
    for node in used:
        nodes += [*node.before, node]
        level = max((one.level for one in arguments_of(node)), default=0)
        for one in (*node.before, node):
            one.level = level + one.whole
        if node.statistic is not None:
            node.level = node.statistic.level
    _start_before_first_row(nodes, image)
    levels = max((node.level for node in nodes if node.whole), default=0)
    kept = tuple(node for node in nodes if node.whole or node.axis is not None)
    for place, node in enumerate(kept):
        node.number = place
    return Graph(image, result, kept, levels)


def _start_before_first_row(nodes: list[StreamNode], image: StreamNode) -> None:
    """Nodes between two rolls start before row 0, see `roll_stream`; only operators that keep rows apart may lie
    between."""
    down: dict[int, StreamNode] = {}  # by the node that starts before row 0: the roll that needs it
    for node in reversed(nodes):
        if node.turn < 0:
            if node.first > node.turn:
                raise node.refuse("it rolls the image up, and nothing rolls it down again")
            if node.first < -node.rows:
                raise node.refuse("it rolls the image by more than its height")
            continue  # zeros above the first row
        if node.first >= 0 and node.turn == 0:
            continue
        roll = node if node.turn else down[id(node)]
        if node is image or not node.edges:
            raise roll.refuse("nothing rolls the image up before it is rolled down")
        for edge in node.edges:
            if edge.source.axis is None or (not node.turn and _reaches(edge)):
                raise node.refuse("it takes rows from both sides of a rolled image")
            edge.source.first = min(edge.source.first, edge.low(node.first))
            down[id(edge.source)] = roll


def _reaches(edge: Edge) -> bool:
    """Whether rows are made of others than their own, seen in the middle of a large image."""
    return edge.high(1000 * 1024) - edge.low(1000 * 1024) > 0
