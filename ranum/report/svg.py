"""Drawing helpers: scales, ticks and lines as SVG text, coloured by the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

Point = tuple[float, float | None]
"""x and y; a y that is None or not finite makes a gap."""


def tag(name: str, content: str = "", /, **attributes: Any) -> str:
    """One element. Attribute names: `class_` is class, `stroke_width` is stroke-width."""
    text = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{_attribute(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return f"<{name}{text}>{content}</{name}>" if content else f"<{name}{text}/>"


def label(x: float, y: float, content: str, **attributes: Any) -> str:
    """A text element; the content is escaped."""
    return tag("text", escape(content), x=x, y=y, **attributes)


def titled(name: str, title: str, **attributes: Any) -> str:
    """An element with a tooltip, which is also what a screen reader says."""
    return tag(name, f"<title>{escape(title)}</title>", **attributes)


def figure(
    width: float, height: float, parts: Iterable[str], *, title: str, text: str, name: str
) -> str:
    """A whole drawing.

    Args:
        width: Of the drawing in user units; it scales with the page.
        height: In the same units.
        parts: Elements, drawn in order.
        title: What it shows, for screen readers.
        text: What is to be seen in it, in a sentence.
        name: Unique in the page, for the references from the drawing to its title.
    """
    head = f'<title id="{name}-title">{escape(title)}</title>' + (
        f'<desc id="{name}-text">{escape(text)}</desc>'
    )
    return tag(
        "svg",
        head + "".join(parts),
        viewBox=f"0 0 {_short(width)} {_short(height)}",
        role="img",
        aria_labelledby=f"{name}-title {name}-text",
        class_="figure",
    )


def _attribute(value: Any) -> str:
    return _short(value) if isinstance(value, float) else escape(str(value))


def _short(value: float) -> str:
    """One decimal is a tenth of a pixel."""
    return f"{value:.1f}".removesuffix(".0")


def tick_text(value: float) -> str:
    """A tick's number; `1e5` beyond four digits."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.6g}"
    mantissa, _, exponent = f"{value:.3e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


# --- scales ----------------------------------------------------------------------------------


def symlog(value: float, unit: float = 1.0) -> float:
    """sign(v) log10(1 + |v| / unit): linear around 0, logarithmic beyond `unit`."""
    return math.copysign(math.log10(1 + min(abs(value) / unit, 1e308)), value)


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps numbers to a coordinate.

    Attributes:
        lower: Number at `start`.
        upper: Number at `end`.
        start: Coordinate of `lower`.
        end: Coordinate of `upper`; may be smaller than `start`.
        kind: "linear", "log" or "symlog".
    """

    lower: float
    upper: float
    start: float
    end: float
    kind: Literal["linear", "log", "symlog"] = "linear"

    def __call__(self, value: float) -> float:
        """The coordinate; infinite and far numbers land on the nearer end."""
        low, high, here = self._flat(self.lower), self._flat(self.upper), self._flat(value)
        share = 0.5 if high == low else (here - low) / (high - low)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    def _flat(self, value: float) -> float:
        if math.isinf(value):
            return value
        if self.kind == "log":
            return math.log10(value) if value > 0 else -math.inf
        return symlog(value) if self.kind == "symlog" else value

    def ticks(self, wanted: int = 5) -> list[float]:
        """Round numbers inside the scale."""
        if self.kind == "log":
            return _decades(self.lower, self.upper, wanted)
        if self.kind == "symlog":
            return [
                tick for tick in _signed_decades(self, wanted) if self.lower <= tick <= self.upper
            ]
        return _linear_ticks(self.lower, self.upper, wanted)


def fitted(
    values: Iterable[float | None],
    start: float,
    end: float,
    *,
    kind: Literal["linear", "log", "symlog", "auto"] = "auto",
) -> Scale:
    """A scale that holds all finite values.

    "auto" is linear, unless the values span more than three decades: then logarithmic, or
    symlog where some are not positive.
    """
    finite = [value for value in values if value is not None and math.isfinite(value)]
    positive = [value for value in finite if value > 0]
    if kind == "log":
        finite = positive
    lower, upper = min(finite, default=0.0), max(finite, default=1.0)
    if kind == "auto":
        kind = "linear"
        if positive and max(positive) > 1e3 * min(positive) and upper > 10:
            kind = "log" if len(positive) == len(finite) else "symlog"
        elif finite and max(abs(lower), abs(upper)) > 1e4:
            kind = "symlog"
    if kind == "log":
        lower, upper = min(positive, default=0.1), max(positive, default=1.0)
        lower, upper = 10.0 ** math.floor(math.log10(lower)), _next_power(upper)
    elif kind == "linear":
        if lower > 0 and lower < 0.6 * upper:
            lower = 0.0
        room = (upper - lower) * 0.06 or abs(upper) * 0.1 or 1.0
        lower, upper = (lower if lower == 0 else lower - room), upper + room
    return Scale(lower, upper, start, end, kind)


def _next_power(value: float) -> float:
    power = math.ceil(math.log10(value))
    return 10.0 ** min(power, 308)


def _decades(lower: float, upper: float, wanted: int) -> list[float]:
    first = math.ceil(math.log10(max(lower, 1e-307)) - 1e-9)
    last = math.floor(math.log10(max(upper, 1e-307)) + 1e-9)
    stride = max(1, math.ceil((last - first) / max(wanted, 1)))
    return [10.0**power for power in range(first, last + 1, stride)]


def _signed_decades(scale: Scale, wanted: int) -> list[float]:
    """0 and powers of ten on both sides, none next to 0, where the scale is nearly linear."""
    reach = max(abs(scale.lower), abs(scale.upper), 10.0)
    sides = 1 if scale.lower >= 0 or scale.upper <= 0 else 2
    stride = max(1, math.ceil(math.log10(reach) * sides / max(wanted - 1, 1)))
    powers = [10.0**power for power in range(stride, math.floor(math.log10(reach)) + 1, stride)]
    return [-power for power in reversed(powers)] + [0.0] + powers


def _linear_ticks(lower: float, upper: float, wanted: int) -> list[float]:
    rough = (upper - lower) / max(wanted, 1)
    if not rough > 0 or not math.isfinite(rough):
        return [lower]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(lower / step - 1e-9)
    return [round(first + i) * step for i in range(int((upper - first * step) / step + 1e-9) + 1)]


# --- lines -----------------------------------------------------------------------------------


def thinned(points: Sequence[Point], most: int = 600) -> list[Point]:
    """At most about `most` points that look the same: the extremes of each bucket, and gaps.

    Steps that go back (after a rollback) stay in the order they happened.
    """
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / (most // 3))
    kept: list[Point] = []
    for start in range(0, len(points), size):
        bucket = points[start : start + size]
        chosen = {0, len(bucket) - 1}
        drawn = [i for i, (_, y) in enumerate(bucket) if _is_drawn(y)]
        if drawn:
            chosen |= {min(drawn, key=lambda i: bucket[i][1] or 0.0)}
            chosen |= {max(drawn, key=lambda i: bucket[i][1] or 0.0)}
        gaps = [i for i in range(len(bucket)) if i not in drawn]
        kept += [bucket[i] for i in sorted(chosen | set(gaps[:1]))]
    return kept


def polyline(points: Sequence[Point], x: Scale, y: Scale) -> str:
    """Path data `M..L..` with a new part after each gap and wherever x goes back."""
    parts: list[str] = []
    before: float | None = None
    alone = False
    for here, value in points:
        if not _is_drawn(value) or (y.kind == "log" and (value or 0.0) <= 0):
            parts += ["h.1"] if alone else []
            before, alone = None, False
            continue
        starts = before is None or here < before
        if starts and alone:
            parts.append("h.1")
        place = f"{_short(x(here))} {_short(y(value or 0.0))}"
        parts.append(f"{'M' if starts else 'L'}{place}")
        before, alone = here, starts
    parts += ["h.1"] if alone else []
    return "".join(parts)


def _is_drawn(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
