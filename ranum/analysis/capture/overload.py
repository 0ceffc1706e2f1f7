"""What the schema of an operator says, worked out once for each ATen overload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

_SHAPE_ONLY = frozenset(
    {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided",
     "zeros", "zeros_like", "ones", "ones_like", "new_zeros", "new_ones", "_efficientzerotensor",
     "arange", "scalar_tensor", "eye", "linspace", "tril_indices", "triu_indices"}
)  # fmt: skip
_NOT_NUMERIC = frozenset(
    {"layout", "device", "pin_memory", "memory_format", "non_blocking", "generator",
     "implicit", "names"}
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Overload:
    """One overload. Argument names are canonical: the schema's, but `self` is called `x`.

    Attributes:
        function: The overload itself.
        functional: The overload that computes the same without writing to its arguments, or
            None.
        name: `aten.add_.Tensor` -> "add"; other libraries' operators keep their namespace.
        defaults: Default of every argument, in order.
        positional: Arguments that may come without their name.
        names: Canonical name by schema name.
        tensors: Arguments that may hold tensors.
        written: Arguments that are written to.
        kept: Arguments that say what is computed, not where and how; outputs are none.
        is_mutable: True if some argument is written to.
        is_random: True for operators that draw random numbers.
        reads_values: False for factories: their result depends on shapes only, never on an
            operand's data.
    """

    function: Any
    functional: Any
    name: str
    defaults: dict[str, Any]
    positional: tuple[str, ...]
    names: dict[str, str]
    tensors: tuple[str, ...]
    written: tuple[str, ...]
    kept: tuple[str, ...]
    is_mutable: bool
    is_random: bool
    reads_values: bool

    def bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments by name, defaults filled in."""
        bound = self.defaults.copy()
        bound.update(zip(self.positional, args, strict=False))
        for name, value in kwargs.items():
            bound[self.names[name]] = value
        return bound

    def operands(self, bound: Mapping[str, Any]) -> list[Tensor]:
        """All tensors among bound arguments, lists included, in order."""
        return _tensors_in(bound, self.tensors)

    def overwritten(self, bound: Mapping[str, Any]) -> list[Tensor]:
        """The tensors among bound arguments that are written to."""
        return _tensors_in(bound, self.written) if self.written else []


def overload(function: Any) -> Overload:
    """What is known of an overload, such as `torch.ops.aten.add_.Tensor`."""
    known = _known.get(id(function))
    if known is None:
        known = _known[id(function)] = _of(function)
    return known


_known: dict[int, Overload] = {}
"""By identity, since overloads take long to hash; each is kept alive by its entry."""


def is_tensor(item: Any) -> bool:
    """True for tensors; much quicker than `isinstance` for what is none."""
    kind = type(item)
    if kind in _TENSORS:
        return True
    return kind not in _PLAIN and isinstance(item, Tensor)


_TENSORS = frozenset({Tensor, Parameter})
_PLAIN = frozenset(
    {int, float, bool, str, complex, type(None), list, tuple, dict, torch.Size, torch.dtype,
     torch.device, torch.layout, torch.memory_format}
)  # fmt: skip


def _tensors_in(bound: Mapping[str, Any], names: Sequence[str]) -> list[Tensor]:
    tensors: list[Tensor] = []
    for name in names:
        item = bound[name]
        if is_tensor(item):
            tensors.append(item)
        elif isinstance(item, (list, tuple)):
            tensors.extend(each for each in item if is_tensor(each))
    return tensors


def _of(function: Any) -> Overload:
    schema = function._schema
    arguments = schema.arguments
    names = {argument.name: _canonical(argument.name) for argument in arguments}
    namespace, _, name = schema.name.partition("::")
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    name = name if namespace == "aten" else f"{namespace}::{name}"
    return Overload(
        function=function,
        functional=_functional(function),
        name=name,
        defaults={
            names[argument.name]: argument.default_value if argument.has_default_value() else None
            for argument in arguments
        },
        positional=tuple(names[each.name] for each in arguments if not each.kwarg_only),
        names=names,
        tensors=tuple(names[each.name] for each in arguments if "Tensor" in str(each.type)),
        written=tuple(
            names[argument.name]
            for argument in arguments
            if argument.alias_info is not None and argument.alias_info.is_write
        ),
        kept=tuple(
            names[argument.name]
            for argument in arguments
            if argument.name not in _NOT_NUMERIC and not argument.is_out
        ),
        is_mutable=schema.is_mutable,
        is_random=torch.Tag.nondeterministic_seeded in function.tags,
        reads_values=name not in _SHAPE_ONLY,
    )


def _canonical(name: str) -> str:
    return "x" if name in ("self", "_self") else name


def _functional(function: Any) -> Any:
    schema = function._schema
    if not schema.is_mutable:
        return function
    namespace, _, name = schema.name.partition("::")
    packet = getattr(getattr(torch.ops, namespace), name.rstrip("_"), None)
    variant = schema.overload_name or "default"
    if packet is None or variant not in packet.overloads():
        return None
    return getattr(packet, variant)
