"""Clamps as lines at the entry of the user's step: `x = x.clamp(min=0.0, max=1.0)`.

An input is clamped on its way in. A weight is clamped in place, outside of what autograd sees,
before it is read: `self.fc.weight.data.clamp_(min=-2.0, max=2.0)`. It stays the optimizer's own
parameter under its own name, unlike one with a parametrization, whose model can no longer be
pickled and whose checkpoints have other keys. Whatever moved the weight, be it an optimizer or a
loaded checkpoint, the step runs with it inside its range.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

from torch import Tensor, nn

from ranum.analysis.capture.lightning import is_lightning_module
from ranum.analysis.capture.program import Program
from ranum.errors import PatchError
from ranum.repair import _codeswap
from ranum.repair._library import library, spelled
from ranum.repair._operand import Names
from ranum.repair._splice import Splice, Text, merge, read_text
from ranum.repair.patch import Edit, limits_call, number_text
from ranum.repair.preconditions.places import Pair, Place
from ranum.source import Source, is_installed, is_user_file

_Function = ast.FunctionDef | ast.AsyncFunctionDef


def entry_edit(program: Program, place: Place, pair: Pair) -> Edit:
    """The clamp of one place as an edit of the function that the step begins with.

    Args:
        program: The step.
        place: The input or weight.
        pair: The range to keep.

    Raises:
        PatchError: If that function has no source, or does not know the place by a name.
    """
    if place.kind == "output":
        raise PatchError(
            f"{place.name} is clamped by a hook; in code, write .clamp(min=..., max=...) behind "
            "its call."
        )
    function = _entry(program)
    lower, upper = (
        None if end == whole else end for end, whole in zip(pair, place.full, strict=True)
    )
    ends = {"min": lower, "max": upper}
    bounds = ", ".join(f"{n}={number_text(end)}" for n, end in ends.items() if end is not None)
    is_lowered = program.origin is not None

    def line(tree: ast.Module, node: ast.AST) -> str:
        if place.kind == "weight":
            if is_lowered:
                raise PatchError(
                    f"{place.name} is a variable of TensorFlow: assign it clipped after each step."
                )
            return f"{_weight_words(program, function, place.name)}.data.clamp_({bounds})"
        if not is_lowered:
            return _input_line(function, place.name, lambda x: f"{x}.clamp({bounds})")
        names = Names(tree, function.__code__.co_filename)
        written = library(names, node, is_graph=True)
        call, limits = limits_call(lower, upper)
        clip = spelled(names, written, call)
        return _input_line(function, place.name, lambda x: f"{clip}({x}, {limits})")

    return first_line_edit(function, line)


def _entry(program: Program) -> FunctionType:
    target: Any = program.target
    if is_lightning_module(target):
        kind = program.description.rpartition(".")[2]
        target = getattr(target, kind, None)
    elif isinstance(target, nn.Module):
        target = target.forward
    function = inspect.unwrap(getattr(target, "__func__", target)) if target is not None else None
    if not isinstance(function, FunctionType):
        raise PatchError(
            f"{program.description} is no Python function of yours; clamp where you feed it."
        )
    file = function.__code__.co_filename
    if not is_user_file(file) or is_installed(file):
        raise PatchError(f"{function.__qualname__} belongs to an installed package.")
    return function


# --- what is written --------------------------------------------------------------------------


def _input_line(function: FunctionType, name: str, clamped: Callable[[str], str]) -> str:
    match = re.fullmatch(r"(\w+)(?:\[(?:(\d+)|'(\w+)')\])?", name)
    own = function.__code__.co_varnames[: function.__code__.co_argcount]
    if match is None or match[1] not in own:
        raise PatchError(f"{name} is no argument of {function.__qualname__}, nor an item of one.")
    whole, number, key = match.groups()
    if number is not None:
        before, after = f"*{whole}[:{number}], " if int(number) else "", int(number) + 1
        item = clamped(f"{whole}[{number}]")
        return f"{whole} = ({before}{item}, *{whole}[{after}:])"
    if key is not None:
        item = clamped(f'{whole}["{key}"]')
        return f'{whole} = {{**{whole}, "{key}": {item}}}'
    return f"{whole} = {clamped(whole)}"


def _weight_words(program: Program, function: FunctionType, name: str) -> str:
    wanted = program.parameters[name]
    for owner, value in _owners(program, function):
        if value is wanted:
            return owner
        if isinstance(value, nn.Module):
            for path, parameter in value.named_parameters():
                if parameter is wanted:
                    return owner + _attributes(value, path)
    raise PatchError(f"{function.__qualname__} has no name that leads to {name}.")


def _owners(program: Program, function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Modules and tensors that the function can name."""
    if isinstance(program.target, nn.Module):
        yield next(iter(inspect.signature(function).parameters), "self"), program.target
        return
    bound = getattr(program.target, "__self__", None)
    if bound is not None:
        yield next(iter(inspect.signature(function).parameters), "self"), bound
    variables = inspect.getclosurevars(function)
    for name, value in {**variables.globals, **variables.nonlocals}.items():
        if isinstance(value, (nn.Module, Tensor)):
            yield name, value


def _attributes(module: nn.Module, path: str) -> str:
    """How the parameter at a path is reached: `.layers[0].weight`."""
    words = ""
    here: Any = module
    for part in path.split("."):
        if isinstance(here, (nn.Sequential, nn.ModuleList, nn.ParameterList)) and part.isdigit():
            words += f"[{part}]"
        elif isinstance(here, (nn.ModuleDict, nn.ParameterDict)):
            words += f'["{part}"]'
        elif part.isidentifier():
            words += f".{part}"
        else:
            raise PatchError(f"{path} cannot be written as an attribute.")
        here = getattr(here, part, None) if not isinstance(here, nn.ParameterDict) else here[part]
    return words


# --- where it is written ----------------------------------------------------------------------


def first_line_edit(function: FunctionType, write: Callable[[ast.Module, ast.AST], str]) -> Edit:
    """A statement put first into a function, behind its docstring.

    Args:
        function: A function whose source can be read.
        write: Called with the parsed file and the function in it; returns the statement, on one
            line.

    Raises:
        PatchError: If the source cannot be read, or does not hold the function.
    """
    file = function.__code__.co_filename
    file = file if file.startswith("<") else os.path.abspath(file)
    live = _codeswap.current_text(file)
    text = read_text(file) if live is None else live[0]
    try:
        tree = ast.parse(text.content)
    except (SyntaxError, ValueError) as error:
        raise PatchError(f"{file} cannot be parsed: {error}.") from error
    node = _definition(tree, function, exactly=live is None)
    line = write(tree, node)
    first = _first_statement(node)
    start = text.offset(_first_line(first), first.col_offset)
    before = text.part(text.offset(_first_line(first), 0), start)
    end = "\r\n" if "\r\n" in text.content else "\n"
    put = f"{line}{end}{before}" if not before.strip() else f"{line}; "
    splice = Splice(start, start, before=put)
    _check(tree, node, first, ast.parse(line).body, merge(text, [splice]).text)
    source = Source(
        file=file,
        line=first.lineno,
        end_line=first.lineno,
        column=first.col_offset,
        end_column=first.col_offset,
        function=function.__qualname__,
    )
    return Edit(source=source, file=file, old="", new=line, text=text, splice=splice)


def _definition(tree: ast.Module, function: FunctionType, *, exactly: bool) -> _Function:
    name = function.__qualname__
    found = [node for path, node in _functions(tree, "") if path == name]
    if len(found) > 1 or (found and exactly):
        line = function.__code__.co_firstlineno
        found = [
            node
            for node in found
            if line == min([node.lineno, *(one.lineno for one in node.decorator_list)])
        ]
    if len(found) != 1:
        raise PatchError(
            f"{name} is not where it was in {function.__code__.co_filename}, or has no lines of "
            "its own: the file was changed after it was imported, or it is a lambda."
        )
    return found[0]


def _functions(node: ast.AST, path: str) -> Iterator[tuple[str, _Function]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, _Function):
            yield path + child.name, child
            yield from _functions(child, f"{path}{child.name}.<locals>.")
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{path}{child.name}.")
        else:
            yield from _functions(child, path)


def _first_statement(node: _Function) -> ast.stmt:
    first = node.body[0]
    is_docstring = (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    )
    if not is_docstring:
        return first
    if len(node.body) == 1:
        raise PatchError(f"{node.name} does nothing.")
    return node.body[1]


def _first_line(statement: ast.stmt) -> int:
    decorators: list[ast.expr] = getattr(statement, "decorator_list", [])
    return min([statement.lineno, *(one.lineno for one in decorators)])


def _check(
    tree: ast.Module, node: _Function, first: ast.stmt, added: list[ast.stmt], after: Text
) -> None:
    """Refuses unless the new text means the old one with the statement in it."""
    node.body[node.body.index(first) : node.body.index(first)] = added
    try:
        is_meant = ast.dump(ast.parse(after.content)) == ast.dump(tree)
    except (SyntaxError, ValueError):
        is_meant = False
    if not is_meant:
        raise PatchError(f"no line can be put into {node.name} safely; edit the file by hand.")
