"""Runs edited source in a live process: every function of the file gets its new code.

A file's original text is kept together with all edits that are live in it. Whenever an
edit comes or goes, the text with all of them is compiled, and the `__code__` of each live
function of the file is set to the code that belongs at its place, or back to its own.
Nothing is changed until everything has been checked.
"""

from __future__ import annotations

import inspect
import io
import linecache
import os
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from ranum.errors import PatchError
from ranum.repair._alive import functions_in, hold_all
from ranum.repair._splice import Merged, Splice, Text, merge, read_text

if TYPE_CHECKING:
    from ranum.analysis.capture.tensorflow.bridge import Traces

Path = tuple[int, ...]
"""Place of a code object in its file: which nested code object, level by level."""

_UNSET = object()
_lock = threading.RLock()
_files: dict[str, _LiveFile] = {}
_watched: list[Traces] = []  # one while an edit is live in a process with TensorFlow


@dataclass(frozen=True, slots=True)
class Installation:
    """What became of edits that were made live.

    Attributes:
        functions: Qualified names of the functions whose code was edited.
        is_pending: True if a call of one of them is under way; it goes on with the old code.
        remove: Takes the edits out again; does nothing the second time.
    """

    functions: tuple[str, ...]
    is_pending: bool
    remove: Callable[[], None]


@dataclass(slots=True)
class _LiveFile:
    """One file with live edits."""

    file: str
    text: Text
    original: dict[Path, CodeType]
    edits: list[tuple[object, Splice]] = field(default_factory=list)
    # Code objects met in the process, by identity; which of them are the user's, by place.
    known: dict[int, tuple[Path, CodeType]] = field(default_factory=dict)
    own: dict[Path, CodeType] = field(default_factory=dict)
    ours: set[int] = field(default_factory=set)
    codes_before: WeakKeyDictionary[FunctionType, CodeType] = field(
        default_factory=WeakKeyDictionary
    )
    lines_before: Any = _UNSET

    def learn(self, code: CodeType, path: Path, *, is_own: bool) -> None:
        for place, nested in _walk(code, path):
            self.known[id(nested)] = (place, nested)
            if is_own:
                self.own.setdefault(place, nested)
            else:
                self.ours.add(id(nested))

    def before(self, function: FunctionType, path: Path) -> CodeType:
        """The code that a live function had, or would have got, without any edit."""
        code = function.__code__
        if function in self.codes_before:
            return self.codes_before[function]
        return self.own.get(path, self.original[path]) if id(code) in self.ours else code


@dataclass(slots=True)
class _Plan:
    """A change of one file that has passed every check."""

    live: _LiveFile
    edits: list[tuple[object, Splice]]
    merged: Merged
    changes: list[tuple[FunctionType, CodeType, CodeType]]  # code to set; code without edits
    codes: CodeType


def current_text(file: str) -> tuple[Text, Merged, tuple[Splice, ...]] | None:
    """Original text, running text and live splices of a file; None if it has no live edits."""
    with _lock:
        live = _files.get(file)
        if live is None:
            return None
        splices = tuple(splice for _, splice in live.edits)
        return live.text, merge(live.text, splices), splices


def install(edits: Mapping[str, tuple[Text, Sequence[Sequence[Splice]]]]) -> Installation:
    """Makes edits of one or more files live, all or none.

    Args:
        edits: By absolute path, the text that the edits were made for, and the splices of each.

    Raises:
        PatchError: If any of them cannot be made live; nothing was changed.
    """
    token = object()
    with _lock, _traces_watched():
        plans, names, pending = [], list[str](), False
        files = {file: _file(file, text) for file, (text, _) in edits.items()}
        alive = _alive_in(files)
        for file, (_, groups) in edits.items():
            live = files[file]
            functions = _functions(live, alive[file])
            for group in groups:
                for path in _edited(live, group):
                    name = live.original[path].co_qualname
                    _check_live(live, functions, path, name)
                    names.append(name)
                    pending = pending or _is_running(live, functions, path)
            added = [(token, splice) for group in groups for splice in group]
            plans.append(_plan(live, [*live.edits, *added], functions))
        _commit(plans)

    def remove() -> None:
        with _lock, _traces_watched():
            kept = {
                file: [edit for edit in live.edits if edit[0] is not token]
                for file, live in _files.items()
                if any(edit[0] is token for edit in live.edits)
            }
            known = {file: _swapped(_files[file]) for file, rest in kept.items() if not rest}
            alive = _alive_in([file for file in kept if known.get(file) is None])
            plans = []
            for file, rest in kept.items():
                functions = _functions(_files[file], known.get(file) or alive[file])
                plans.append(_plan(_files[file], rest, functions))
            _commit(plans)

    return Installation(tuple(dict.fromkeys(names)), pending, remove)


# --- from text to code ---------------------------------------------------------------------


def _file(file: str, text: Text) -> _LiveFile:
    live = _files.get(file)
    is_on_disk = os.path.isfile(file)
    now = live.text if live is not None and not is_on_disk else read_text(file)
    if now.content != text.content or (live is not None and live.text.content != text.content):
        raise PatchError(
            f"{file} was changed on disk after the edit was made; make the edit again, and "
            "restart the run if the file was changed after it was imported."
        )
    if live is not None:
        return live
    return _LiveFile(file, text, dict(_walk(_compile(text, file))))


def _compile(text: Text, file: str) -> CodeType:
    try:
        # `optimize` is the interpreter's; a user's cell may await at top level.
        flags = _top_level_await if file.startswith("<") else 0
        code: CodeType = compile(text.content, file, "exec", flags=flags, dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        raise PatchError(f"{file} with the edit in it does not compile: {error}.") from error
    return code


_top_level_await = 0x2000  # ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


def _walk(code: CodeType, path: Path = ()) -> Iterator[tuple[Path, CodeType]]:
    yield path, code
    nested = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    for number, inner in enumerate(nested):
        yield from _walk(inner, (*path, number))


def _edited(live: _LiveFile, splices: Sequence[Splice]) -> list[Path]:
    """Where one edit alone changes what runs, nested functions apart."""
    after = _walk(_compile(merge(live.text, splices).text, live.file))
    new = dict(after)
    _check_shape(live, new)
    edited = [path for path, code in live.original.items() if _alone(code) != _alone(new[path])]
    if not edited:
        raise PatchError(f"The edit of {live.file} does not change what the code does.")
    for path in edited:
        if not live.original[path].co_flags & inspect.CO_OPTIMIZED:
            raise PatchError(
                f"The expression in {live.file} runs once, at import, outside of any function: "
                "there is nothing left to patch. Apply the diff and run again, or move the "
                "expression into a function."
            )
    return edited


def _check_shape(live: _LiveFile, new: Mapping[Path, CodeType]) -> None:
    names = {path: code.co_qualname for path, code in live.original.items()}
    if names != {path: code.co_qualname for path, code in new.items()}:
        raise PatchError(
            f"The edit of {live.file} adds or removes a nested function or comprehension, which "
            "cannot be exchanged while it runs; apply the diff and run again."
        )
    for path, code in live.original.items():
        if code.co_freevars != new[path].co_freevars:
            changed = set(code.co_freevars) ^ set(new[path].co_freevars)
            raise PatchError(
                f"The edit of {live.file} changes the variables that {code.co_qualname} takes "
                f"from the function around it ({', '.join(sorted(changed))}), which cannot be "
                "exchanged while it runs; apply the diff and run again."
            )


def _alone(code: CodeType) -> CodeType:
    """The code without positions and without the code nested in it."""
    return _without_positions(code, nested=lambda inner: inner.co_qualname)


def _without_positions(code: CodeType, nested: Callable[[CodeType], Any]) -> CodeType:
    consts = (nested(c) if isinstance(c, CodeType) else c for c in code.co_consts)
    return code.replace(co_consts=tuple(consts), co_filename="", co_firstlineno=1, co_linetable=b"")


def _bare(code: CodeType) -> CodeType:
    return _without_positions(code, nested=_bare)


def _is_same(code: CodeType, other: CodeType, *, columns: bool = False) -> bool:
    """True if two code objects do the same on the same lines (and columns)."""
    if _bare(code) != _bare(other):
        return False
    mine, others = dict(_walk(code)), dict(_walk(other))
    if columns:
        return all(list(mine[p].co_positions()) == list(others[p].co_positions()) for p in mine)
    return all(list(_lines(mine[p])) == list(_lines(others[p])) for p in mine)


def _lines(code: CodeType) -> Iterator[int | None]:
    return (position[0] for position in code.co_positions())


# --- the functions that are alive ----------------------------------------------------------


@dataclass(slots=True)
class _Functions:
    """The live functions of one file, by place; and the places where one does not match."""

    by_path: dict[Path, list[FunctionType]] = field(default_factory=dict)
    strangers: list[FunctionType] = field(default_factory=list)
    ambiguous: set[Path] = field(default_factory=set)


def _functions(live: _LiveFile, alive: Iterable[FunctionType]) -> _Functions:
    """The functions of the file that are alive, each at its place."""
    result = _Functions()
    places: dict[tuple[str, int], list[Path]] = {}
    for path, code in live.original.items():
        places.setdefault((code.co_qualname, code.co_firstlineno), []).append(path)
    for function in alive:
        code = function.__code__
        known = live.known.get(id(code))
        if known is not None:
            result.by_path.setdefault(known[0], []).append(function)
            continue
        candidates = places.get((code.co_qualname, code.co_firstlineno), [])
        matches = [path for path in candidates if _is_same(code, live.original[path])]
        if len(matches) > 1:
            exact = [p for p in matches if _is_same(code, live.original[p], columns=True)]
            matches = exact if len(exact) == 1 else matches
            if len(matches) > 1:
                result.ambiguous.update(matches)
        if not matches:
            result.strangers.append(function)
            continue
        live.learn(code, matches[0], is_own=True)
        result.by_path.setdefault(matches[0], []).append(function)
    return result


def _alive_in(files: Collection[str]) -> dict[str, list[FunctionType]]:
    """The live functions of each file; what TensorFlow has traced is found in the same look."""
    missing = [traces for traces in _watched if not traces.is_complete]
    if not files and not missing:
        return {}
    found, traced = functions_in(files, *(traces.kind for traces in missing))
    for traces in missing:
        traces.complete(traced)
    return found


def _swapped(live: _LiveFile) -> list[FunctionType] | None:
    """All functions that run code of ours; None if they cannot be told without a search."""
    functions = [one for one in live.codes_before if id(one.__code__) in live.ours]
    codes = [code for number, (_, code) in live.known.items() if number in live.ours]
    return functions if functions and hold_all(functions, codes) else None


def _check_live(live: _LiveFile, functions: _Functions, path: Path, name: str) -> None:
    """Refuses if no live function leads to the edited code, or a live one is not this text."""
    chain = [path[:depth] for depth in range(len(path), 0, -1)]
    if functions.ambiguous.intersection(chain):
        raise PatchError(
            f"{live.file} has several functions named {name} on one line, and Python recorded no "
            "columns to tell them apart; run without -X no_debug_ranges."
        )
    if not any(functions.by_path.get(place) for place in chain):
        names = {live.original[place].co_qualname for place in chain}
        if any(function.__code__.co_qualname in names for function in functions.strangers):
            raise PatchError(
                f"The running code of {name} is not what stands in {live.file}: the file was "
                "changed after it was imported, or the code was rewritten on import. Restart the "
                "run, or apply the diff by hand."
            )
        raise PatchError(
            f"No live function runs {name} of {live.file}: it was not imported in this process, "
            "its functions are gone, or gc.freeze() hides them. Apply the diff and run again."
        )
    for function in functions.by_path.get(path, ()):
        if _is_scripted(function):
            raise PatchError(
                f"{name} is compiled by torch.jit.script, which no longer runs its Python code. "
                "Apply the diff and script it again, or script it only after patching."
            )


def _is_scripted(function: FunctionType) -> bool:
    # Private, and the only record that torch keeps of what it scripted.
    try:
        if torch.jit._state._try_get_jit_cached_function(function) is not None:
            return True
        classes = list(torch.jit._recursive.concrete_type_store.type_store)
    except AttributeError:
        return False
    return any(
        value is function
        for cls in classes
        for base in cls.__mro__
        for value in vars(base).values()
    )


def _is_running(live: _LiveFile, functions: _Functions, path: Path) -> bool:
    """True if a call under way keeps the old code."""
    held = {path}
    if not functions.by_path.get(path):  # made anew by a function around it, maybe under way
        held.update(path[:depth] for depth in range(1, len(path)))
    frames = list(sys._current_frames().values())
    while frames:  # emptied: a frame that holds itself would keep the stack alive
        frame = frames.pop()
        known = live.known.get(id(frame.f_code))
        if known is not None and known[0] in held:
            return True
        if frame.f_back is not None:
            frames.append(frame.f_back)
        del frame
    return False


# --- planning and making a change ----------------------------------------------------------


def _plan(live: _LiveFile, edits: list[tuple[object, Splice]], functions: _Functions) -> _Plan:
    merged = merge(live.text, [splice for _, splice in edits])
    module = _compile(merged.text, live.file)
    new = dict(_walk(module))
    _check_shape(live, new)
    changes = []
    for path, at_path in functions.by_path.items():
        is_changed = not _is_same(new[path], live.original[path], columns=True)
        for function in at_path:
            own = live.before(function, path)
            code = new[path] if is_changed else own
            if code is not function.__code__:
                changes.append((function, code, own))
    return _Plan(live, edits, merged, changes, module)


def _commit(plans: Iterable[_Plan]) -> None:
    plans, done = list(plans), list[tuple[FunctionType, CodeType]]()
    try:
        for plan in plans:
            for function, code, _ in plan.changes:
                done.append((function, function.__code__))
                function.__code__ = code
    except Exception as error:
        for function, code in reversed(done):
            function.__code__ = code
        raise PatchError(f"The new code was not accepted: {error}; nothing was changed.") from error
    for plan in plans:
        live = plan.live
        live.edits = plan.edits
        live.learn(plan.codes, (), is_own=False)
        for function, _, own in plan.changes:
            live.codes_before.setdefault(function, own)
        _show_lines(live, plan.merged.text)
        if plan.edits:
            _files[live.file] = live
        else:
            _files.pop(live.file, None)
    if done and "torch._dynamo" in sys.modules:
        # Compiled graphs may have the old code inlined without a guard on it.
        torch.compiler.reset()
    for traces in _watched if done else ():
        traces.forget()


@contextmanager
def _traces_watched() -> Iterator[None]:
    """Knows what TensorFlow has traced, from here until the last live edit is gone."""
    if not _watched and "tensorflow" in sys.modules:
        from ranum.analysis.capture.tensorflow.bridge import Traces

        _watched.append(Traces())
    try:
        yield
    finally:
        while _watched and not _files:
            _watched.pop().close()


def _show_lines(live: _LiveFile, text: Text) -> None:
    """Lets tracebacks, and the recorder, read the text that runs."""
    if not live.edits:
        if live.lines_before is None:
            linecache.cache.pop(live.file, None)
        else:
            linecache.cache[live.file] = live.lines_before
        if set(_files) <= {live.file}:
            linecache.updatecache = _plain_updatecache
        return
    lines = io.StringIO(text.content, newline=None).readlines()
    if live.lines_before is _UNSET:
        live.lines_before = linecache.cache.get(live.file)
        linecache.updatecache = _updatecache
    # Without a time of change, linecache keeps an entry although the file is older.
    linecache.cache[live.file] = (len(text.content), None, lines, live.file)


_plain_updatecache = linecache.updatecache


def _updatecache(filename: str, module_globals: dict[str, Any] | None = None) -> list[str]:
    """Keeps the lines that run: TensorFlow reads the file's before it converts a function."""
    if filename in _files:
        return list(linecache.getlines(filename))
    return _plain_updatecache(filename, module_globals)
