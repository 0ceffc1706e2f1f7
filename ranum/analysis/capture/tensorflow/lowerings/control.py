"""Constants, variables, calls, branches, loops and lists of tensors, carried out concretely."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ranum.analysis.capture.tensorflow.machine import Call, Variable, branch_index, truth
from ranum.analysis.capture.tensorflow.values import DTYPES, VARIANT, integers
from ranum.errors import ArgumentError


def constant(call: Call) -> Any:
    """A tensor that is part of the graph."""
    return call["value"]


def placeholder(call: Call) -> Any:
    """An input that nobody fed."""
    raise ArgumentError(f"target reads the placeholder {call.operation.name!r}, which has no value")


# --- variables -----------------------------------------------------------------------------


def read(call: Call, variable: Variable) -> Any:
    """What the variable holds now."""
    if not isinstance(variable, Variable):
        raise ArgumentError(f"target reads the resource of {call.operation.name!r}, no variable")
    return variable.tensor


def assign(call: Call, variable: Variable, value: Tensor) -> tuple[Any, ...]:
    """Another value, for the rest of the step."""
    variable.assign(value)
    return ()


def assign_add(call: Call, variable: Variable, value: Tensor) -> tuple[Any, ...]:
    """A value added, for the rest of the step."""
    variable.assign(variable.tensor.detach() + value)
    return ()


def assign_sub(call: Call, variable: Variable, value: Tensor) -> tuple[Any, ...]:
    """A value taken away, for the rest of the step."""
    variable.assign(variable.tensor.detach() - value)
    return ()


def is_initialized(call: Call, variable: Variable) -> Tensor:
    """Always: variables bring their values."""
    return torch.tensor(True)


def variable_shape(call: Call, variable: Variable) -> Tensor:
    """Sizes of the variable."""
    return torch.tensor(variable.tensor.shape, dtype=DTYPES[call.get("out_type", 3)])


def gather_variable(call: Call, variable: Variable, indices: Tensor) -> Tensor:
    """`ResourceGather`: rows of a variable."""
    table = variable.tensor
    if table.dim() == 2 and call.get("batch_dims", 0) == 0:
        return torch.nn.functional.embedding(indices.long(), table)
    from ranum.analysis.capture.tensorflow.lowerings.indexing import gather

    return gather(call, table, indices)


# --- functions -----------------------------------------------------------------------------


def partitioned_call(call: Call, *operands: Any) -> tuple[Any, ...]:
    """A call of a function."""
    return call.machine.call(call["f"], operands, call.constant, effects=call.awaited)


def branch(call: Call, condition: Any, *operands: Any) -> tuple[Any, ...]:
    """`If`: the branch that the condition chooses."""
    name = call["then_branch"] if truth(condition) else call["else_branch"]
    return call.machine.call(name, operands, call.constant[1:], effects=call.awaited)


def case(call: Call, index: Any, *operands: Any) -> tuple[Any, ...]:
    """The branch of a number; the last one where there is no such branch."""
    branches = call["branches"]
    number = branch_index(index)
    number = number if 0 <= number < len(branches) else len(branches) - 1
    name = branches[number]
    return call.machine.call(name, operands, call.constant[1:], effects=call.awaited)


def while_loop(call: Call, *operands: Any) -> tuple[Any, ...]:
    """As many rounds as the condition wants."""
    machine = call.machine
    return tuple(
        machine.loop(
            lambda state: machine.call(call["cond"], state)[0],
            lambda state: machine.call(call["body"], state),
            list(operands),
        )
    )


# --- lists ---------------------------------------------------------------------------------


class TensorList:
    """TensorFlow's list of tensors: a value, never changed in place."""

    def __init__(self, items: Sequence[Any], shape: Sequence[int] | None, dtype: int) -> None:
        self.items = list(items)
        self.shape = None if shape is None else list(shape)
        self.dtype = dtype

    def replaced(self, items: Sequence[Any]) -> TensorList:
        """A list of the same kind with other items."""
        return TensorList(items, self.shape, self.dtype)

    def item(self, position: int, wanted: Sequence[int] | None = None) -> Any:
        """An item; zeros where none has been put."""
        found = self.items[position]
        if found is not None or self.dtype == VARIANT:
            return found
        sizes = _merged(self.shape, wanted)
        known = next((item.shape for item in self.items if item is not None), None)
        if any(size < 0 for size in sizes) and known is not None:
            sizes = list(known)
        return torch.zeros(sizes, dtype=DTYPES[self.dtype])


def _merged(shape: Sequence[int] | None, wanted: Sequence[int] | None) -> list[int]:
    if shape is None or wanted is None or len(shape) != len(wanted):
        return list(wanted or shape or [])
    return [other if size < 0 else size for size, other in zip(shape, wanted, strict=True)]


def _shape(tensor: Tensor) -> list[int] | None:
    return None if tensor.dim() == 0 else integers(tensor)


def reserve(call: Call, shape: Tensor, count: Tensor) -> TensorList:
    """A list of empty places."""
    return TensorList([None] * int(count), _shape(shape), call["element_dtype"])


def empty_list(call: Call, shape: Tensor, limit: Tensor) -> TensorList:
    """A list without items."""
    return TensorList([], _shape(shape), call["element_dtype"])


def from_tensor(call: Call, x: Tensor, shape: Tensor) -> TensorList:
    """The slices of a tensor along its first dimension."""
    return TensorList(list(x.unbind(0)), list(x.shape[1:]), call["element_dtype"])


def stack(call: Call, items: TensorList, shape: Tensor) -> Tensor:
    """All items along a new first dimension."""
    wanted = _shape(shape)
    if not items.items:
        return torch.zeros([0, *_merged(items.shape, wanted)], dtype=DTYPES[items.dtype])
    return torch.stack([items.item(place, wanted) for place in range(len(items.items))])


def concatenate(
    call: Call, items: TensorList, shape: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """All items along their first dimension, and how long each was."""
    parts = [items.item(place) for place in range(len(items.items))]
    sizes = torch.tensor([len(part) for part in parts], dtype=torch.int64)
    return torch.cat(parts), sizes


def split(call: Call, x: Tensor, shape: Tensor, lengths: Tensor) -> TensorList:
    """Parts of a tensor along its first dimension."""
    return TensorList(torch.split(x, integers(lengths)), _shape(shape), call["element_dtype"])


def get_item(call: Call, items: TensorList, index: Tensor, shape: Tensor) -> Any:
    """One item."""
    return items.item(int(index), _shape(shape))


def set_item(call: Call, items: TensorList, index: Tensor, item: Any) -> TensorList:
    """A list with another item."""
    place = int(index)
    grown = items.items + [None] * (place + 1 - len(items.items))
    return items.replaced([*grown[:place], item, *grown[place + 1 :]])


def push(call: Call, items: TensorList, item: Any) -> TensorList:
    """A list with one more item."""
    return items.replaced([*items.items, item])


def pop(call: Call, items: TensorList, shape: Tensor) -> tuple[TensorList, Any]:
    """A list without its last item, and that item."""
    last = len(items.items) - 1
    return items.replaced(items.items[:-1]), items.item(last, _shape(shape))


def length(call: Call, items: TensorList) -> Tensor:
    """How many places there are."""
    return torch.tensor(len(items.items), dtype=torch.int32)


def element_shape(call: Call, items: TensorList) -> Tensor:
    """Sizes that all items share; -1 where unknown."""
    shape = -1 if items.shape is None else items.shape
    return torch.tensor(shape, dtype=DTYPES[call.get("shape_type", 3)])


def gather_items(call: Call, items: TensorList, indices: Tensor, shape: Tensor) -> Tensor:
    """Some items along a new first dimension."""
    wanted = _shape(shape)
    return torch.stack([items.item(place, wanted) for place in integers(indices)])


def scatter_items(
    call: Call, x: Tensor, indices: Tensor, shape: Tensor, count: Tensor | None = None
) -> TensorList:
    """The slices of a tensor put at places of a new list."""
    places = integers(indices)
    total = max(places, default=-1) + 1
    total = max(total, -1 if count is None else int(count))
    items: list[Any] = [None] * total
    for place, item in zip(places, x.unbind(0), strict=True):
        items[place] = item
    return TensorList(items, _shape(shape), call["element_dtype"])


def resize(call: Call, items: TensorList, count: Tensor) -> TensorList:
    """Fewer places, or more."""
    total = int(count)
    return items.replaced(items.items[:total] + [None] * (total - len(items.items)))


LOWERINGS: dict[str, Callable[..., Any]] = {
    "AssignAddVariableOp": assign_add,
    "AssignSubVariableOp": assign_sub,
    "AssignVariableOp": assign,
    "Case": case,
    "Const": constant,
    "EmptyTensorList": empty_list,
    "If": branch,
    "PartitionedCall": partitioned_call,
    "Placeholder": placeholder,
    "ReadVariableOp": read,
    "ResourceGather": gather_variable,
    "StatefulPartitionedCall": partitioned_call,
    "StatelessCase": case,
    "StatelessIf": branch,
    "StatelessWhile": while_loop,
    "TensorListConcatV2": concatenate,
    "TensorListElementShape": element_shape,
    "TensorListFromTensor": from_tensor,
    "TensorListGather": gather_items,
    "TensorListGetItem": get_item,
    "TensorListLength": length,
    "TensorListPopBack": pop,
    "TensorListPushBack": push,
    "TensorListReserve": reserve,
    "TensorListResize": resize,
    "TensorListScatter": scatter_items,
    "TensorListScatterV2": scatter_items,
    "TensorListSetItem": set_item,
    "TensorListSplit": split,
    "TensorListStack": stack,
    "VarIsInitializedOp": is_initialized,
    "VariableShape": variable_shape,
    "While": while_loop,
}
