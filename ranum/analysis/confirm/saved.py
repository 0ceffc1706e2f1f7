"""Writes a witness as a test: a pytest file that fails today, and passes once the fix is in.

The file needs torch and the user's own code, not Ranum. Tensors are inside it, or, if they are
large, in a file of the same name beside it.
"""

from __future__ import annotations

import base64
import importlib
import inspect
import io
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ranum._untouched import untouched
from ranum.analysis.capture.torch import free_values
from ranum.analysis.result import Context, Defect, Witness
from ranum.errors import ArgumentError

INLINE = 60_000
"""Characters of tensors that are still written into the file."""
_PLAIN = (bool, int, float, str, type(None), torch.dtype)


def save_test(witness: Witness, path: str | Path, make: str | None = None) -> Path:
    """Writes the file, and runs it once to see that it fails.

    Args:
        witness: From `confirm`.
        path: Where to; must end in ".py", and begin with "test_" for pytest to find it.
        make: "module:function" of a function that returns what was analysed. By default a
            function is imported, and a module is made by its class again, with arguments
            that are read off attributes of the same names.

    Raises:
        ArgumentError: If the path is no Python file, the target cannot be made again, or the
            file that was written does not fail.
    """
    target = Path(path)
    if target.suffix != ".py":
        raise ArgumentError(f"path must end in .py; got {str(target)!r}.")
    if witness.defect is None or witness.defect.context is None:
        raise ArgumentError("witness must come from confirm; this one has lost its defect.")
    defect, context = witness.defect, witness.defect.context
    recipe = recipe_of(context, target.parent, make)
    payload = io.BytesIO()
    batch = context.program.batch(dict(witness.inputs))
    torch.save((module_state(recipe, context, witness.weights), batch), payload)
    packed = base64.b85encode(zlib.compress(payload.getvalue(), 9)).decode()
    beside = target.with_suffix(".pt")
    inline = len(packed) <= INLINE
    text = _text(defect, witness, recipe, packed if inline else None)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    if not inline:
        beside.write_bytes(payload.getvalue())
    problem = _fails(text, target, recipe)
    if problem:
        target.unlink()
        if not inline:
            beside.unlink()
        raise ArgumentError(
            f"make must return what was analysed, so that it fails again; {problem}"
        )
    return target


# --- how the target is made again ----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a test gets at the user's program.

    Attributes:
        root: Folder that must be on `sys.path`, relative to the test.
        module: Name of the module to import.
        target: Expression of the target, in terms of `user`, the module.
        loss: Expression of the loss function; "" if the target returns the loss.
        holders: Modules whose state is set, by expression; "target" for the target itself.
        live: The same modules in this process.
    """

    root: str
    module: str
    target: str
    loss: str
    holders: Mapping[str, nn.Module]
    is_shared: bool


def recipe_of(context: Context, folder: Path, make: str | None) -> Recipe:
    """How a file in a folder makes the target again; see `save_test`."""
    target, loss = context.program.target, context.program.loss
    if make is not None:
        name, separator, function = make.partition(":")
        if not separator or not callable(getattr(importlib.import_module(name), function, None)):
            raise ArgumentError(f"make must be 'module:function'; got {make!r}.")
        user = importlib.import_module(name)
        expression = f"user.{function}()"
        holders = {"target": target} if isinstance(target, nn.Module) else {}
    elif isinstance(target, nn.Module):
        user = _module_of(type(target))
        expression = _constructed(target, user)
        holders = {"target": target}
    elif inspect.isroutine(target):
        user = _module_of(target)
        expression = _named(target, user)
        holders = dict(_globals(target, user))
    else:
        raise ArgumentError(
            f"make must be given for a target of type {type(target).__name__}: 'module:function' "
            "of a function that returns it."
        )
    root, name = _importable(user)
    return Recipe(
        root=os.path.relpath(root, folder.resolve()),
        module=name,
        target=expression,
        loss="" if loss is None else _named(loss, user),
        holders=holders,
        is_shared=bool(holders) and "target" not in holders,
    )


def _module_of(thing: Any) -> Any:
    module = sys.modules.get(thing.__module__)
    if module is None or not getattr(module, "__file__", None):
        raise ArgumentError(f"make must be given: {thing.__qualname__} is not defined in a file.")
    return module


def _importable(module: Any) -> tuple[str, str]:
    """The folder to search, and the name to import."""
    file = Path(module.__file__).resolve()
    if module.__name__ == "__main__":
        return str(file.parent), file.stem
    depth = module.__name__.count(".") + (file.name == "__init__.py")
    return str(file.parents[depth]), module.__name__


def _named(thing: Any, user: Any) -> str:
    """The expression that finds a function or class in a module."""
    name = getattr(thing, "__qualname__", type(thing).__name__)
    found: Any = user
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is not thing:
        raise ArgumentError(f"make must be given: {name} cannot be imported from {user.__name__}.")
    return f"user.{name}"


def _constructed(model: nn.Module, user: Any) -> str:
    """A call of the model's class, with arguments found among its attributes."""
    name = _named(type(model), user)
    written = []
    for parameter in inspect.signature(type(model)).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        value = getattr(model, parameter.name, _Missing)
        if _is_plain(value):
            written.append(f"{parameter.name}={value!r}")
        elif parameter.default is parameter.empty:
            raise ArgumentError(
                f"make must be given: {type(model).__name__} needs {parameter.name!r}, which is "
                "no attribute of the model."
            )
    return f"{name}({', '.join(written)})"


class _Missing:
    """No attribute."""


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


def _globals(function: Callable[..., Any], user: Any) -> Iterator[tuple[str, nn.Module]]:
    """The modules that a function reads, as expressions."""
    for name, value in free_values(function):
        if not isinstance(value, nn.Module):
            continue
        if id(vars(user).get(name)) != id(value):
            raise ArgumentError(
                f"make must be given: {name!r}, which the function reads, is no global of "
                f"{user.__name__}."
            )
        yield f"user.{name}", value


# --- what goes into the file ---------------------------------------------------------------


def module_state(
    recipe: Recipe, context: Context, weights: Mapping[str, Tensor]
) -> dict[str, dict[str, Tensor]]:
    """State of each module with some weights in it."""
    moved = {id(context.program.parameters[name]): tensor for name, tensor in weights.items()}
    placed: set[int] = set()
    states = {}
    for expression, module in recipe.holders.items():
        state = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if id(parameter) in moved:
                state[name] = moved[id(parameter)].clone()
                placed.add(id(parameter))
        states[expression] = state
    if len(placed) < len(moved):
        raise ArgumentError("make must be given: some weights belong to no module of the target.")
    return states


def _text(defect: Defect, witness: Witness, recipe: Recipe, packed: str | None) -> str:
    source = defect.source
    file = Path(source.file)
    text: str = (
        environment()
        .get_template("witness.py.jinja")
        .render(
            code=defect.code,
            expression=" ".join((source.expression or defect.op).split()),
            place=f"{file.name}:{source.line}",
            outcome=witness.outcome.replace("gradient not finite", "a gradient that is not finite"),
            name=re.sub(r"\W+", "_", f"{defect.op}_at_{file.stem}_{source.line}"),
            root=repr(recipe.root),
            module=repr(recipe.module),
            target=recipe.target,
            holders=list(recipe.holders),
            op=defect.op,
            call=written_call(recipe),
            gradient_only=defect.gradient_only,
            seed=witness.seed,
            packed=packed and [repr(packed[i : i + 88]) for i in range(0, len(packed), 88)],
        )
    )
    return text


def environment() -> Any:
    """The templates beside this file."""
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("ranum.analysis.confirm"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,
    )


def written_call(recipe: Recipe) -> str:
    """One step on `batch`, as an expression."""
    target = recipe.holders.get("target")
    is_lightning = callable(getattr(target, "training_step", None))
    call = "target.training_step(*batch, 0)" if is_lightning else "target(*batch)"
    return f"{recipe.loss}({call})" if recipe.loss else call


# --- the test of the test ------------------------------------------------------------------


def _fails(text: str, path: Path, recipe: Recipe) -> str:
    """Why the file does not do what it is for; "" if it fails as it should."""
    space: dict[str, Any] = {"__file__": str(path.resolve()), "__name__": path.stem}
    searched = list(sys.path)
    kept = nn.ModuleList(recipe.holders.values()) if recipe.is_shared else None
    try:
        with untouched(kept), torch.enable_grad():
            exec(compile(text, str(path), "exec"), space)
            next(value for name, value in space.items() if name.startswith("test_"))()
    except AssertionError:
        return ""
    except Exception as error:
        return f"the test raised {type(error).__name__}: {error}"
    finally:
        sys.path[:] = searched
    return "the test passed."
