"""Which user expression is running now: file, line, columns, function and module path.

The recorder asks it for every operator before training; the culprit search asks it again
when a step has failed. A *user* frame is one outside torch, Lightning, Ranum and the
standard library; code of other packages (a model taken from a library, say) counts as the
user's, because that is where the operator was written.
"""

from __future__ import annotations

import ast
import linecache
import os
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from types import CodeType, FrameType
from typing import Any

import torch

_SKIPPED_PACKAGES = (
    "torch",
    "lightning",
    "lightning_fabric",
    "lightning_utilities",
    "pytorch_lightning",
    "torchmetrics",
    "keras",
    "tensorflow",
    "accelerate",
)
_OWN_ROOT = os.path.dirname(os.path.abspath(__file__)) + os.sep
_STDLIB = os.path.realpath(sysconfig.get_path("stdlib")) + os.sep
_SITE_PACKAGES = tuple(
    os.path.realpath(path) + os.sep
    for path in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
)


@dataclass(frozen=True, slots=True)
class Source:
    """A place in somebody's code.

    Attributes:
        file: Absolute path, or a name in angle brackets when there is no file.
        line: First line, from 1; 0 when unknown.
        end_line: Last line of the expression.
        column: First column as a UTF-8 byte offset from 0, as in `ast`; -1 when unknown.
        end_column: Column after the last one; -1 when unknown.
        function: Qualified name of the function that holds the expression.
        module: Path of the innermost `nn.Module` running, "" for the root, None outside one.
        lines: The lines of the expression as they stood when it ran; a live patch may change
            them later. Empty where they could not be read.
        node: Name of the operator in a graph that was not written in Python (an ONNX node, a
            TensorFlow operation), "" otherwise.
    """

    file: str
    line: int
    end_line: int
    column: int
    end_column: int
    function: str = ""
    module: str | None = None
    lines: tuple[str, ...] = field(default=(), compare=False, repr=False)
    node: str = ""

    @property
    def expression(self) -> str:
        """The source text of the expression, or "" where the source cannot be read."""
        lines = self.lines or source_lines(self.file, self.line, self.end_line)
        return _segment(lines, self.column, self.end_column)

    @property
    def location(self) -> str:
        """`file:line`, or `file:node`; files inside the working directory are shown relative."""
        place = str(self.line) if self.line else self.node
        return f"{display_path(self.file)}:{place}" if place else display_path(self.file)

    @property
    def is_known(self) -> bool:
        """True if the place has a file and a line, or names a node of a graph."""
        return self.line > 0 or self.node != ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "file": self.file,
            "line": self.line,
            "end_line": self.end_line,
            "column": self.column,
            "end_column": self.end_column,
            "function": self.function,
            "module": self.module,
            "node": self.node,
            "expression": self.expression,
        }

    def __str__(self) -> str:
        expression = self.expression
        return f"{self.location} `{expression}`" if expression else self.location


UNKNOWN = Source(file="<unknown>", line=0, end_line=0, column=-1, end_column=-1)


def display_path(file: str) -> str:
    """The path relative to the working directory where that is shorter to read."""
    if file.startswith("<"):
        return file
    try:
        relative = os.path.relpath(file)
    except (ValueError, OSError):  # another drive, or a working directory that is gone
        return file
    return file if relative.startswith("..") else relative


def user_source(start: FrameType | None = None) -> Source:
    """The innermost user expression on the stack of the calling thread.

    Args:
        start: Frame to begin at; the caller's by default.

    Returns:
        The place given to `located` while such a block runs in this thread; `UNKNOWN` when
        no frame on the stack belongs to a user.
    """
    place: Source | None = getattr(_running, "place", None)
    if place is not None:
        return place
    frame: FrameType | None = start if start is not None else sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if is_user_file(code.co_filename):
            return _source_of(code, frame.f_lasti, current_module())
        frame = frame.f_back
    return UNKNOWN


def traceback_source(traceback: Any) -> Source:
    """The innermost user expression of a traceback, or `UNKNOWN`."""
    found = UNKNOWN
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if is_user_file(code.co_filename):
            found = _source_of(code, traceback.tb_lasti, None)
        traceback = traceback.tb_next
    return found


_PLACES_LIMIT = 1 << 14
_places: dict[tuple[int, int, str | None], tuple[CodeType, Source]] = {}
"""By identity of the code, which takes long to hash; each entry keeps its own alive."""


def _source_of(code: CodeType, lasti: int, module: str | None) -> Source:
    known = _places.get((id(code), lasti, module))
    if known is not None:
        return known[1]
    line, end_line, column, end_column = _position(code, lasti)
    first = line or code.co_firstlineno
    last = end_line or first
    start, end = (-1 if end is None else end for end in (column, end_column))
    path = _absolute(code.co_filename)
    source = Source(
        file=path,
        line=first,
        end_line=last,
        column=start,
        end_column=end,
        function=code.co_qualname,
        module=module,
        lines=source_lines(path, first, last),
    )
    if len(_places) >= _PLACES_LIMIT:
        _places.clear()
    _places[id(code), lasti, module] = (code, source)
    return source


def _position(code: CodeType, lasti: int) -> tuple[int | None, int | None, int | None, int | None]:
    for index, position in enumerate(code.co_positions()):
        if index == lasti // 2:
            return position
    return (None, None, None, None)


@lru_cache(maxsize=1024)
def _absolute(file: str) -> str:
    return file if file.startswith("<") else os.path.abspath(file)


@lru_cache(maxsize=4096)
def is_user_file(file: str) -> bool:
    """True for code outside torch, Lightning, Ranum and the standard library."""
    if file.startswith("<"):
        # `<stdin>`, `<ipython-input-3>` are a user's; `<frozen ...>`, `<string>`,
        # `<eval_with_key>` are machinery (generated dataclass or fx code).
        return not file.startswith(("<frozen", "<string", "<eval", "<__array"))
    path = os.path.realpath(file)
    if path.startswith(_OWN_ROOT):
        return False
    for root in _SITE_PACKAGES:
        if path.startswith(root):
            return path[len(root) :].split(os.sep, 1)[0] not in _SKIPPED_PACKAGES
    return not path.startswith(_STDLIB)


def is_installed(file: str) -> bool:
    """True for a file of an installed package or of the standard library."""
    path = os.path.realpath(file)
    return path.startswith((*_SITE_PACKAGES, _STDLIB))


def source_lines(file: str, first: int, last: int) -> tuple[str, ...]:
    """Lines of a file as they are now, without their ends; empty if they cannot be read."""
    lines = linecache.getlines(file)
    if not 0 < first <= len(lines):
        return ()
    return tuple(line.rstrip("\r\n") for line in lines[first - 1 : last])


def _segment(lines: tuple[str, ...], column: int, end_column: int) -> str:
    if not lines:
        return ""
    if column < 0 or end_column < 0:
        return lines[0].strip()
    wanted = [line.encode() for line in lines]
    wanted[-1] = wanted[-1][:end_column]
    wanted[0] = wanted[0][column:]
    return _one_line(b"\n".join(wanted).decode(errors="replace").strip())


def _one_line(text: str) -> str:
    if "\n" not in text:
        return text
    try:
        return ast.unparse(ast.parse(text, mode="eval"))
    except (SyntaxError, ValueError):
        return " ".join(text.split())


# --- which nn.Module is running ------------------------------------------------------------

_running = threading.local()


@contextmanager
def located(place: Source) -> Iterator[None]:
    """Makes `place` the running expression of this thread.

    For graphs that are carried out operator by operator, where the Python stack shows the
    interpreter instead of the user's model.
    """
    outer = getattr(_running, "place", None)
    _running.place = place
    try:
        yield
    finally:
        _running.place = outer


def current_module() -> str | None:
    """Path of the innermost running module inside `module_scope`, else None."""
    stack = getattr(_running, "stack", None)
    return stack[-1] if stack else None


def _own_name(module: torch.nn.Module) -> str:
    name = getattr(module, "name", None)
    return name if isinstance(name, str) and name else type(module).__name__


@contextmanager
def module_scope(model: torch.nn.Module) -> Iterator[dict[int, str]]:
    """Keeps track of the running submodule of `model`, by name, in this thread.

    Uses torch's global module hooks, so it sees modules whose `forward` is patched, and
    leaves no hook behind. A module that is not part of `model` shows as its own `name`, which
    Keras layers have, or its class name.

    Yields:
        The path of each module of `model` by its `id`.
    """
    names = {id(module): name for name, module in model.named_modules()}
    stack: list[str] = []
    outer = getattr(_running, "stack", None)
    _running.stack = stack

    def enter(module: torch.nn.Module, args: Any) -> None:
        stack.append(names[id(module)] if id(module) in names else _own_name(module))

    def leave(module: torch.nn.Module, args: Any, output: Any) -> None:
        if stack:
            stack.pop()

    before = torch.nn.modules.module.register_module_forward_pre_hook(enter)
    after = torch.nn.modules.module.register_module_forward_hook(leave, always_call=True)
    try:
        yield names
    finally:
        before.remove()
        after.remove()
        _running.stack = outer
