"""Source text as bytes: where a line and column is, and how several insertions make one text.

Python counts columns in UTF-8 bytes, so all offsets here do too, whatever the encoding of
the file. Line ends are kept as they are.
"""

from __future__ import annotations

import io
import linecache
import os
import re
import sys
import tokenize
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType

from ranum.errors import PatchError

_LINE_END = re.compile(rb"\r\n|\n|\r")  # what Python's tokenizer takes for one, and nothing else


@dataclass(frozen=True)
class Text:
    """A source text and its line table.

    Attributes:
        content: The text, with its own line ends, without byte order mark.
        mark: The byte order mark, "" for nearly every file.
    """

    content: str
    mark: str = ""

    @cached_property
    def data(self) -> bytes:
        """The text in UTF-8."""
        return self.content.encode()

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *(match.end() for match in _LINE_END.finditer(self.data))]

    def offset(self, line: int, column: int) -> int:
        """Byte offset of a line (from 1) and column (UTF-8 bytes, from 0)."""
        if not 0 < line <= len(self._starts):
            return -1
        return self._starts[line - 1] + column

    def line(self, offset: int) -> int:
        """Line, from 1, of a byte offset."""
        return bisect_right(self._starts, offset)

    def part(self, start: int, end: int) -> str:
        """The text between two byte offsets."""
        return self.data[start:end].decode()


@dataclass(frozen=True, slots=True)
class Splice:
    """Text put around, or instead of, the bytes `start:end` of a source text."""

    start: int
    end: int
    before: str = ""
    after: str = ""
    instead: str | None = None

    def is_blocked_by(self, other: Splice) -> bool:
        """True if the two cannot both be made: one replaces what the other touches."""
        if self == other or self.end <= other.start or other.end <= self.start:
            return False
        if self.instead is None and other.instead is None:
            return False
        for inner, outer in ((self, other), (other, self)):
            if outer.instead is None and inner.instead is not None:
                strictly = (outer.start, outer.end) != (inner.start, inner.end)
                return not (strictly and outer.start <= inner.start and inner.end <= outer.end)
        return True


@dataclass(frozen=True, slots=True)
class Merged:
    """A text with splices in it, and the way from its offsets back to the original's."""

    text: Text
    runs: tuple[tuple[int, int, int, int, bool], ...]
    """Start and end in the new text, start and end in the original, and whether it is a copy."""

    def original(self, offset: int, *, is_end: bool) -> int:
        """The offset in the original text of an offset in the new one; -1 if it has none."""
        copies = [run[:3] for run in self.runs if run[-1]]
        for start, end, old_start in copies if is_end else reversed(copies):
            if start <= offset <= end:
                return old_start + offset - start
        for start, end, old_start, old_end, _ in self.runs:
            if offset == (end if is_end else start):
                return old_end if is_end else old_start
        return -1


def merge(text: Text, splices: Iterable[Splice]) -> Merged:
    """Makes all splices in one text.

    Around one place the inner expression's splice stays inside the outer's; of two splices
    around the same expression the later one ends up outside. Equal splices are made once.

    Raises:
        PatchError: If one splice replaces what another one touches.
    """
    chosen = list(dict.fromkeys(splices))
    for number, splice in enumerate(chosen):
        if any(splice.is_blocked_by(other) for other in chosen[:number]):
            raise PatchError(
                f"The edit of `{text.part(splice.start, splice.end)}` overlaps with another edit "
                "of the same expression; undo that one first, or merge the two by hand."
            )
    # (position, 0 closes | 1 opens | 2 replaces, nesting, order), old end, new text
    events: list[tuple[tuple[int, int, int, int], int, str]] = []
    for order, splice in enumerate(chosen):
        start, end = splice.start, splice.end
        events.append(((end, 0, -start, order), end, splice.after))
        events.append(((start, 1, -end, -order), start, splice.before))
        if splice.instead is not None:
            events.append(((start, 2, 0, order), end, splice.instead))
    data, pieces, runs = text.data, list[bytes](), list[tuple[int, int, int, int, bool]]()
    done = size = 0

    def put(piece: bytes, old_start: int, old_end: int, *, is_copy: bool) -> None:
        nonlocal size
        if piece or old_end > old_start:
            runs.append((size, size + len(piece), old_start, old_end, is_copy))
            pieces.append(piece)
            size += len(piece)

    for (position, *_), skip_to, new in sorted(events):
        put(data[done:position], done, position, is_copy=True)
        put(new.encode(), position, skip_to, is_copy=False)
        done = max(done, position, skip_to)
    put(data[done:], done, len(data), is_copy=True)
    return Merged(Text(b"".join(pieces).decode(), text.mark), tuple(runs))


def read_text(file: str) -> Text:
    """The source of a file on disk, or of a notebook cell or archive member by `linecache`.

    Raises:
        PatchError: If there is no Python source to be had.
    """
    if file.endswith((".so", ".pyd", ".dll")):
        raise PatchError(f"{file} is compiled code, not Python source. {_INSTEAD}")
    if os.path.isfile(file):
        try:
            data = Path(file).read_bytes()
            encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
            content = data.decode(encoding)
        except (OSError, SyntaxError, UnicodeDecodeError) as error:
            raise PatchError(f"{file} cannot be read as Python source: {error}. {_INSTEAD}") from (
                error
            )
        return Text(content, "\ufeff" if encoding == "utf-8-sig" else "")
    module = module_of(file)
    lines = linecache.getlines(file, None if module is None else vars(module))
    if not lines:
        raise PatchError(
            f"There is no source text for {file}: the code was made by exec, or only its "
            f"compiled form is installed. {_INSTEAD}"
        )
    return Text("".join(lines))


def module_of(file: str) -> ModuleType | None:
    """The imported module that was loaded from a file."""
    name = os.path.basename(file)
    for module in list(sys.modules.values()):
        loaded = vars(module).get("__file__") if isinstance(module, ModuleType) else None
        if isinstance(loaded, str) and loaded.endswith(name) and os.path.abspath(loaded) == file:
            return module
    return None


_INSTEAD = "Use module_clip to clip the input or output of the module instead."
