"""The functions of a file that are alive in this process, whatever holds them.

A function may be held by a module, a class, a closure, a partial, another thread's frame or an
object of an extension: only the garbage collector's list of objects knows all of them. One look
at that list takes a tenth of a second where TensorFlow is loaded, so there is one per patch.
"""

from __future__ import annotations

import builtins
import gc
import os
import sys
from collections import Counter
from collections.abc import Collection, Iterable
from functools import lru_cache, partial
from types import CodeType, FunctionType
from typing import Any


def functions_in(
    files: Collection[str], *kinds: type[Any]
) -> tuple[dict[str, list[FunctionType]], list[Any]]:
    """The live functions whose code comes from each of the files, and instances of `kinds`.

    Functions refer to their built-ins, instances to their class: to ask for those takes half as
    long as a look at all objects, which finds the functions with built-ins of their own
    (restricted `exec`). What `gc.freeze` has set aside is not found.

    Args:
        files: Absolute paths, or names like `<stdin>`.
        kinds: Classes whose direct instances are asked for too.
    """
    found: dict[str, list[FunctionType]] = {file: [] for file in files}
    instances: list[Any] = []
    ends = tuple({os.path.basename(file) for file in files})
    missing = set(files)
    for candidates in (partial(gc.get_referrers, builtins.__dict__, *kinds), gc.get_objects):
        instances.clear()
        for one in candidates():
            kind = type(one)
            if kind is FunctionType:
                name = one.__code__.co_filename
                if name.endswith(ends) and (file := _absolute(name)) in missing:
                    found[file].append(one)
            elif kind in kinds:
                instances.append(one)
        missing = {file for file in files if not found[file]}
        if not missing:
            break
    return found, instances


@lru_cache(maxsize=4096)
def _absolute(file: str) -> str:
    return file if file.startswith("<") else os.path.abspath(file)


def hold_all(functions: Iterable[FunctionType], codes: Collection[CodeType]) -> bool:
    """True if nothing but `functions`, and code around them, refers to the code objects.

    Then no other function runs them, and no call of one is under way. What else keeps a code
    object, a debugger say, makes it False, too.

    Args:
        functions: All functions that are known to run one of the code objects.
        codes: Each is held by this collection, by one other container, and by what was said.
    """
    held = Counter(id(function.__code__) for function in functions)
    held.update(id(one) for code in codes for one in code.co_consts if isinstance(one, CodeType))
    probe = [object()]
    other = (*probe,)  # held by two containers, and by nothing else
    (least,) = _references(probe)
    return bool(other) and all(
        count - least == held[id(code)]
        for code, count in zip(codes, _references(codes), strict=True)
    )


def _references(objects: Iterable[object]) -> list[int]:
    return [sys.getrefcount(one) for one in objects]
