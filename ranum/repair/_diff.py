"""Edits of users' files as one unified diff."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ranum.errors import PatchError
from ranum.repair._splice import Splice, Text, merge

if TYPE_CHECKING:
    from ranum.repair._edit import Edit


def merged_diff(edits: Iterable[Edit], root: str | os.PathLike[str] | None = None) -> str:
    """Several edits, also of one file or line, as one unified diff.

    Written to a file in the encoding of the edited files and without translation of line
    ends, `git apply` and `patch -p1` take it.

    Args:
        edits: The edits.
        root: Directory that the paths in the diff are relative to; the working directory by
            default. The path of a file outside of it is shown from `/` on.

    Raises:
        PatchError: If two edits overlap, or were made for different states of a file.
    """
    return "".join(
        _diff(file, text, merge(text, splices).text, root)
        for file, (text, splices) in edits_by_file(edits).items()
    )


def edits_by_file(edits: Iterable[Edit]) -> dict[str, tuple[Text, list[Splice]]]:
    """For each file, its text and the splices to make in it.

    Raises:
        PatchError: If two edits were made for different states of a file.
    """
    files: dict[str, tuple[Text, list[Splice]]] = {}
    for edit in edits:
        text, splices = files.setdefault(edit.file, (edit.text, []))
        if text.content != edit.text.content:
            raise PatchError(
                f"{edit.file} was changed on disk between two edits of it; make them again."
            )
        splices += (edit.splice, *edit.others)
    return files


def _diff(file: str, old: Text, new: Text, root: str | os.PathLike[str] | None) -> str:
    before, after = (
        re.findall(r"[^\n]*\n|[^\n]+", text.mark + text.content) for text in (old, new)
    )
    name = _relative(file, root)
    header = name + "\t" if " " in name else name  # ends the name where it holds spaces
    lines = list(difflib.unified_diff(before, after, "a", "b"))
    if not lines:
        return ""
    body = (
        line if line.endswith("\n") else line + "\n\\ No newline at end of file\n"
        for line in lines[2:]
    )
    return f"--- a/{header}\n+++ b/{header}\n" + "".join(body)


def _relative(file: str, root: str | os.PathLike[str] | None) -> str:
    if file.startswith("<"):
        return file
    start = os.path.realpath(os.getcwd() if root is None else root)
    try:
        path = os.path.relpath(os.path.realpath(file), start)
    except ValueError:  # another drive
        path = os.pardir
    if path.split(os.sep, 1)[0] == os.pardir:
        path = os.path.splitdrive(file)[1].lstrip(os.sep)
    return path.replace(os.sep, "/")
