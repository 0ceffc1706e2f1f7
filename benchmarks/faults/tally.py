"""What became of runs with faults, as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.measure import heading, table

COLUMNS = ("fault", "runs", "seen", "at once", "same bits", "lost", "what was done")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run with a fault.

    Attributes:
        kind: Of the fault.
        seen: The guard, or the run, has noticed it.
        at_once: ... in the step in which it was put in: before the weights were changed by it.
        same: The run ended with the reference's bits.
        lost: It raised, hung, or ended with weights that are not finite.
        done: What was done about it, in a word or two.
        note: What else is worth knowing; "" if nothing is.
    """

    kind: str
    seen: bool
    at_once: bool
    same: bool
    lost: bool
    done: str = ""
    note: str = ""


def tell(results: Sequence[Result]) -> bool:
    """Prints the table; True if all runs ended with the reference's bits."""
    kinds = dict.fromkeys(result.kind for result in results)
    rows = [_row(kind, [one for one in results if one.kind == kind]) for kind in kinds]
    print(f"\n{heading()}.\n\n{table(COLUMNS, rows)}\n")
    good = sum(result.same for result in results)
    lost = sum(result.lost for result in results)
    print(f"{good} of {len(results)} runs end with the reference's bits; {lost} are lost.")
    for note in dict.fromkeys(one.note for one in results if one.note):
        print(f"  {note}")
    return good == len(results)


def _row(kind: str, own: Sequence[Result]) -> list[str]:
    def count(flags: Iterable[bool]) -> str:
        return str(sum(flags))

    done = Counter(one.done or "nothing" for one in own)
    return [
        kind,
        str(len(own)),
        count(one.seen for one in own),
        count(one.at_once for one in own),
        count(one.same for one in own),
        count(one.lost for one in own),
        ", ".join(f"{name} {number}" for name, number in done.most_common(3)),
    ]
