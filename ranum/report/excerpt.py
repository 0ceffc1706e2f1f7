"""A few lines of the user's source with the expression in question marked."""

from __future__ import annotations

import linecache
from dataclasses import dataclass

from ranum.report.words import clean
from ranum.source import Source


@dataclass(frozen=True, slots=True)
class Line:
    """One line of source, dedented.

    Attributes:
        number: Line number from 1.
        text: The line without its end, tabs and control characters replaced.
        start: First marked character; equals `end` where nothing is marked.
        end: Character after the last marked one.
    """

    number: int
    text: str
    start: int = 0
    end: int = 0

    @property
    def is_marked(self) -> bool:
        """True if a part of the line belongs to the expression."""
        return self.end > self.start

    @property
    def parts(self) -> tuple[str, str, str]:
        """Text before, inside and after the mark."""
        return self.text[: self.start], self.text[self.start : self.end], self.text[self.end :]

    def window(self, width: int) -> Line:
        """The line cut to `width` characters around the mark, with `...` where text is left out."""
        if len(self.text) <= width or width < 8:
            return self
        room = width - 6
        first = 0 if self.end <= width - 3 else max(0, min(self.start - 8, len(self.text) - room))
        if first <= 3:
            cut = self.text[: width - 3] + "..."
            return Line(self.number, cut, self.start, min(self.end, width - 3))
        middle = self.text[first : first + room]
        tail = "..." if first + room < len(self.text) else ""
        start = 3 + max(self.start - first, 0)
        return Line(
            self.number,
            "..." + middle + tail,
            start,
            max(start, min(3 + self.end - first, 3 + len(middle))),
        )


def excerpt(source: Source, around: int = 0, limit: int = 12) -> tuple[Line, ...]:
    """The lines of an expression with `around` more on each side; empty if unreadable.

    Args:
        source: Where the expression stands.
        around: Lines before and after it.
        limit: Longest expression shown, in lines; the rest of a longer one is left out.
    """
    if not source.is_known:
        return ()
    lines = linecache.getlines(source.file)
    if source.lines:  # as they were when they ran, whatever stands there now
        first = source.line - 1
        lines = [*lines[:first], *source.lines, *lines[first + len(source.lines) :]]
    if source.line > len(lines):
        return ()
    last = min(max(source.end_line, source.line), source.line + limit - 1)
    first_shown, last_shown = max(source.line - around, 1), min(last + around, len(lines))
    found = []
    for line in range(first_shown, last_shown + 1):
        text = lines[line - 1].rstrip("\r\n")
        start, end = (0, 0)
        if source.line <= line <= last:
            start, end = _columns(source, line, text)
        found.append(_shown(line, text, start, end))
    return _dedented(found)


def _columns(source: Source, line: int, text: str) -> tuple[int, int]:
    """Marked characters of a line; `Source` counts UTF-8 bytes."""
    start = len(text) - len(text.lstrip())
    end = len(text.rstrip())
    encoded = text.encode(errors="surrogatepass")
    if source.column >= 0 and line == source.line:
        start = len(encoded[: source.column].decode(errors="replace"))
    if source.end_column >= 0 and line == source.end_line:
        end = len(encoded[: source.end_column].decode(errors="replace"))
    return start, max(start, end)


def _shown(number: int, text: str, start: int, end: int) -> Line:
    """The line cleaned; the mark moves with tabs that grow."""
    return Line(number, clean(text), len(clean(text[:start])), len(clean(text[:end])))


def _dedented(lines: list[Line]) -> tuple[Line, ...]:
    margins = [len(line.text) - len(line.text.lstrip()) for line in lines if line.text.strip()]
    margin = min(margins, default=0)
    return tuple(
        Line(
            line.number,
            line.text[margin:].rstrip(),
            max(line.start - margin, 0),
            max(line.end - margin, 0),
        )
        for line in lines
    )
