"""What carrying out a model may cost: a file may ask for more than any machine has."""

from __future__ import annotations

import os
import sys

from ranum.errors import ArgumentError

STEP_LIMIT = 2_000_000
"""Nodes carried out in one run, those of loops counted each time."""
WORK_LIMIT = 1 << 44
"""Multiplications in one run: some minutes on one core. A language model of seven billion weights
needs them for 2500 tokens."""
MEMORY_SHARE = 0.75
"""The part of the memory, free when a run begins, that it may take."""


class Budget:
    """Nodes, multiplications and memory left to one run of a model.

    Single tensors are limited where they are made; this stops many that are allowed each.
    Where the memory of the process cannot be read (other systems than Linux), the first two count.
    """

    def __init__(self) -> None:
        self._nodes = 0
        self._work = 0
        self._start = resident_bytes()
        self._free = free_bytes()

    def spend(self, name: str) -> None:
        """Counts one more node.

        Raises:
            ArgumentError: If the run has carried out too many, or holds too much.
        """
        self._nodes += 1
        if self._nodes > STEP_LIMIT:
            raise ArgumentError(f"the model carries out more than {STEP_LIMIT} nodes.")
        if self._start is None or self._free is None:
            return
        taken = (resident_bytes() or 0) - self._start
        if taken > MEMORY_SHARE * self._free:
            raise ArgumentError(
                f"the model holds {taken / 2**30:.1f} GiB when it comes to node {name!r}; "
                f"{self._free / 2**30:.1f} GiB were free, of which it may take "
                f"{MEMORY_SHARE:.0%}. Give it smaller inputs (`sizes=`), or more memory."
            )

    def work(self, name: str, multiplications: int) -> None:
        """Counts what a node is about to compute.

        Raises:
            ArgumentError: If the run would compute too much.
        """
        self._work += multiplications
        if self._work > WORK_LIMIT:
            raise ArgumentError(
                f"the model would carry out more than {WORK_LIMIT:.1g} multiplications with node "
                f"{name!r}, which alone needs about {multiplications:.1g}. Give it smaller inputs "
                "(`sizes=`)."
            )


def resident_bytes() -> int | None:
    """Memory that the process holds now; None where that cannot be read."""
    if not sys.platform.startswith("linux"):
        return None
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def free_bytes() -> int | None:
    """Memory that could still be had; None where that cannot be read."""
    if not sys.platform.startswith("linux"):
        return None
    with open("/proc/meminfo") as file:
        sizes = dict(line.split(":", 1) for line in file)
    return int(sizes["MemAvailable"].split()[0]) * 1024
