"""What each TensorFlow operator does, in torch: one file per family, one table for all."""

from __future__ import annotations

from collections.abc import Mapping

from ranum.analysis.capture.tensorflow.lowerings import (
    backward,
    contraction,
    control,
    diagonals,
    elementwise,
    image,
    indexing,
    network,
    random,
    reduction,
    shape,
)
from ranum.analysis.capture.tensorflow.machine import Lowering


def _table() -> dict[str, Lowering]:
    table: dict[str, Lowering] = {}
    for family in (
        backward,
        contraction,
        control,
        diagonals,
        elementwise,
        image,
        indexing,
        network,
        random,
        reduction,
        shape,
    ):
        twice = table.keys() & family.LOWERINGS.keys()
        if twice:
            raise ValueError(f"lowered twice: {sorted(twice)}")
        table.update(family.LOWERINGS)
    return table


LOWERINGS: Mapping[str, Lowering] = _table()
"""The lowering of each operator type: takes a `Call` and the operands, returns the results."""
