"""Clamps as hooks of a module, where its source is out of reach.

The hooks are plain objects of this module, so that a model can be pickled with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only, tree_map_with_path

from ranum.errors import PatchError
from ranum.repair.patch import AppliedPatch
from ranum.repair.preconditions.places import Kind, Pair


@dataclass(frozen=True)
class ClampInputs:
    """Clamps arguments of a module before it runs.

    Attributes:
        names: Of its positional arguments.
        ranges: By input name, "x" or "batch[0]".
    """

    names: tuple[str, ...]
    ranges: Mapping[str, Pair]

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """The arguments, clamped."""

        def clamped(path: tuple[Any, ...], leaf: Any) -> Any:
            first = getattr(path[0], "idx", getattr(path[0], "key", None))
            name = first if isinstance(first, str) else self._name(int(first or 0))
            pair = self.ranges.get(name + "".join(str(key) for key in path[1:]))
            return leaf if pair is None or not isinstance(leaf, Tensor) else leaf.clamp(*pair)

        return tree_map_with_path(clamped, args), tree_map_with_path(clamped, kwargs)

    def _name(self, position: int) -> str:
        return self.names[position] if position < len(self.names) else f"args[{position}]"


@dataclass(frozen=True)
class ClampWeights:
    """Clamps parameters of a module in place before it runs.

    Attributes:
        ranges: By parameter name.
    """

    ranges: Mapping[str, Pair]

    def __call__(self, module: nn.Module, args: Any) -> None:
        """Moves what lies outside to the nearer end."""
        for name, pair in self.ranges.items():
            module.get_parameter(name).data.clamp_(*pair)


@dataclass(frozen=True)
class ClampOutputs:
    """Clamps all floating-point tensors that a module returns.

    Attributes:
        pair: The range.
    """

    pair: Pair

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """The output, clamped."""
        return tree_map_only(
            Tensor, lambda x: x.clamp(*self.pair) if x.is_floating_point() else x, output
        )


def hook_clamps(
    module: nn.Module, names: tuple[str, ...], ranges: Mapping[tuple[Kind, str], Pair]
) -> AppliedPatch:
    """Puts the clamps on a module, until the patch is undone.

    Args:
        module: Is changed; its state dict is not.
        names: Of its positional arguments.
        ranges: By kind of place and name.

    Raises:
        PatchError: If the module takes no hooks, or has no such parameter.
    """
    handles: list[Any] = []

    def undo() -> None:
        for handle in handles:
            handle.remove()

    inputs, weights, outputs = (
        {name: pair for (kind, name), pair in ranges.items() if kind == wanted}
        for wanted in ("input", "weight", "output")
    )
    try:
        for name in weights:
            module.get_parameter(name)
        for path, pair in outputs.items():
            part = module.get_submodule(path)
            handles.append(part.register_forward_hook(ClampOutputs(pair)))
        if weights:
            handles.append(module.register_forward_pre_hook(ClampWeights(weights)))
        if inputs:
            hook = ClampInputs(names, inputs)
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    except (AttributeError, RuntimeError) as error:
        undo()
        raise PatchError(f"{type(module).__name__} cannot be hooked: {error}") from error
    return AppliedPatch(undo, functions=(type(module).__name__,))


def outside(parameter: Tensor, pair: Pair) -> int:
    """How many elements lie outside a range."""
    with torch.no_grad():
        return int(((parameter < pair[0]) | (parameter > pair[1])).sum())
