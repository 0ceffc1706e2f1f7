"""Edits made live in the running process, and the way back."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.utils import _pytree as pytree

from ranum.errors import ArgumentError, PatchError
from ranum.repair import _codeswap
from ranum.repair._diff import edits_by_file, merged_diff

if TYPE_CHECKING:
    from ranum.repair._edit import Edit


class AppliedPatch:
    """A change that is live, and the way back. Use it in a `with` block, or `undo` it.

    Attributes:
        edits: The edits that were made; empty for a module hook.
        functions: Qualified names of the functions, or class name of the module, changed.
        is_pending: True if a call of one of the functions was under way when it was patched:
            that call goes on with the old code, the next one runs the new.
    """

    def __init__(
        self,
        undo: Callable[[], None],
        *,
        functions: tuple[str, ...],
        edits: tuple[Edit, ...] = (),
        is_pending: bool = False,
    ) -> None:
        self.edits = edits
        self.functions = functions
        self.is_pending = is_pending
        self._undo: Callable[[], None] | None = undo

    @property
    def is_active(self) -> bool:
        """True until it is undone."""
        return self._undo is not None

    def diff(self, root: str | os.PathLike[str] | None = None) -> str:
        """All edits as one unified diff; "" for a module hook."""
        return merged_diff(self.edits, root)

    def undo(self) -> None:
        """Puts back what was there before; other live patches stay. Harmless a second time."""
        if self._undo is not None:
            self._undo()
            self._undo = None

    def __enter__(self) -> AppliedPatch:
        return self

    def __exit__(self, *exception: object) -> None:
        self.undo()

    def __repr__(self) -> str:
        state = "active" if self.is_active else "undone"
        return f"AppliedPatch({', '.join(self.functions)}; {state})"


def apply_edits(edits: Iterable[Edit]) -> AppliedPatch:
    """Makes edits live, all or none, and together with those that already are.

    The source with the edits in it is compiled, and every live function of the file gets the
    new code: methods, closures, lambdas and wrapped functions too, and closures that are made
    later. Tracebacks show the text that runs. A call that is under way goes on with the old
    code. Other processes (data loader workers, other ranks) are not patched. What
    `torch.compile` has compiled is compiled anew.

    Raises:
        ArgumentError: If there are no edits.
        PatchError: If an edit cannot be made live: the file was changed, the expression runs
            at import only, the function is scripted, ...; nothing was changed.
    """
    edits = tuple(edits)
    if not edits:
        raise ArgumentError("edits must hold at least one edit; got none.")
    groups = {
        file: (text, [(one.splice, *one.others) for one in edits if one.file == file])
        for file, (text, _) in edits_by_file(edits).items()
    }
    done = _codeswap.install(groups)
    return AppliedPatch(
        done.remove, functions=done.functions, edits=edits, is_pending=done.is_pending
    )


def module_clip(
    module: torch.nn.Module,
    *,
    lower: float | None = None,
    upper: float | None = None,
    where: Literal["input", "output"] = "input",
) -> AppliedPatch:
    """Clips what goes into or comes out of a module, where its source is out of reach.

    All floating-point tensors among the arguments (or results) are clamped, also those in
    tuples, lists and dicts. The hook is not part of the state dict.

    Args:
        module: The module; it is changed until the patch is undone.
        lower: Smallest value to let through.
        upper: Largest value to let through.
        where: "input" or "output".

    Raises:
        ArgumentError: If the bounds or `where` are wrong.
        PatchError: If the module takes no hooks, as a scripted one.
    """
    check_bounds(lower, upper)
    if where not in ("input", "output"):
        raise ArgumentError(f"where must be 'input' or 'output'; got {where!r}.")

    def clamped(tree: Any) -> Any:
        return pytree.tree_map_only(
            torch.Tensor,
            lambda x: x.clamp(lower, upper) if x.is_floating_point() else x,
            tree,
        )

    def before(module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        return clamped(args), clamped(kwargs)

    def after(module: torch.nn.Module, args: Any, output: Any) -> Any:
        return clamped(output)

    try:
        handle = (
            module.register_forward_pre_hook(before, with_kwargs=True)
            if where == "input"
            else module.register_forward_hook(after)
        )
    except RuntimeError as error:
        raise PatchError(
            f"{type(module).__name__} takes no hooks ({error}); clip before scripting it."
        ) from error
    return AppliedPatch(handle.remove, functions=(type(module).__name__,))


def check_bounds(lower: float | None, upper: float | None) -> None:
    if lower is None and upper is None:
        raise ArgumentError("lower or upper must be given; got neither.")
    for name, bound in (("lower", lower), ("upper", upper)):
        if bound is not None and not math.isfinite(bound):
            raise ArgumentError(f"{name} must be finite; got {bound}. Leave it out instead.")
    if lower is not None and upper is not None and lower > upper:
        raise ArgumentError(f"lower must not exceed upper; got {lower} and {upper}.")
