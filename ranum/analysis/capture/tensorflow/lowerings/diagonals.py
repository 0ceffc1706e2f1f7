"""Diagonals of matrices: taken out, put in, and set.

TensorFlow packs a band of diagonals as rows `[..., diagonals, length]`, the highest first, and
fills the shorter ones up. Each operator is one lookup: for every place of its result, where
the element comes from, or -1 where nothing does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ranum.analysis.capture.tensorflow.machine import Call
from ranum.analysis.capture.tensorflow.values import integers


@dataclass(frozen=True, slots=True)
class _Band:
    """The diagonals `lowest` to `highest` of matrices `[rows, columns]`, 0 the main one.

    Attributes:
        align: On which side the shorter rows lie, above the main diagonal and below it:
            "RIGHT_LEFT".
    """

    rows: int
    columns: int
    lowest: int
    highest: int
    align: str

    @property
    def count(self) -> int:
        return self.highest - self.lowest + 1

    @property
    def length(self) -> int:
        """Length of the longest diagonal."""
        return min(self.rows + min(self.highest, 0), self.columns - max(self.lowest, 0))

    def places(self) -> tuple[Any, Any]:
        """For every element, its place in the packed rows and in the matrix, both flat."""
        above, _, below = self.align.partition("_")
        packed, places = [], []
        for number in range(self.count):
            diagonal = self.highest - number
            row, column = max(-diagonal, 0), max(diagonal, 0)
            own = min(self.rows - row, self.columns - column)
            side = above if diagonal >= 0 else below
            start = number * self.length + (self.length - own if side == "RIGHT" else 0)
            steps = np.arange(own)
            packed.append(start + steps)
            places.append(row * self.columns + column + steps * (self.columns + 1))
        return np.concatenate(packed), np.concatenate(places)


def diagonal(call: Call, x: Tensor, *rest: Tensor) -> Tensor:
    """`MatrixDiagPart`: `[..., rows, columns]` to `[..., diagonals, length]`; one loses its 1."""
    lowest, highest = _ends(rest[:1])
    band = _Band(x.shape[-2], x.shape[-1], lowest, highest, _alignment(call))
    if band == _main(band.rows, band.columns, band.align):
        return torch.diagonal(x, dim1=-2, dim2=-1)
    padding = rest[1] if len(rest) > 1 else x.new_zeros(())
    packed, places = band.places()
    where = np.full(band.count * band.length, -1)
    where[packed] = places
    result = _picked(x.flatten(-2), where, padding)
    if band.count == 1:
        return result
    return result.reshape(*result.shape[:-1], band.count, band.length)


def to_diagonal(call: Call, x: Tensor, *rest: Tensor) -> Tensor:
    """`MatrixDiag`: packed diagonals to matrices, `padding_value` beside them."""
    lowest, highest = _ends(rest[:1])
    rows, columns = (integers(one)[0] for one in rest[1:3]) if len(rest) > 2 else (-1, -1)
    at_least = x.shape[-1] - min(highest, 0), x.shape[-1] + max(lowest, 0)
    if rows < 0 and columns < 0:
        rows = columns = max(at_least)
    rows, columns = rows if rows >= 0 else at_least[0], columns if columns >= 0 else at_least[1]
    band = _Band(rows, columns, lowest, highest, _alignment(call))
    padding = rest[3] if len(rest) > 3 else x.new_zeros(())
    if band == _main(x.shape[-1], x.shape[-1], band.align) and not padding.any():
        return torch.diag_embed(x)
    packed = x if band.count == 1 else x.flatten(-2)
    result = _picked(packed, _spread(band), padding)
    return result.reshape(*result.shape[:-1], rows, columns)


def set_diagonal(call: Call, x: Tensor, diagonals: Tensor, *rest: Tensor) -> Tensor:
    """`MatrixSetDiag`: matrices `[..., rows, columns]` with other diagonals."""
    lowest, highest = _ends(rest)
    band = _Band(x.shape[-2], x.shape[-1], lowest, highest, _alignment(call))
    if band == _main(band.rows, band.columns, band.align):
        return torch.diagonal_scatter(x, diagonals, dim1=-2, dim2=-1)
    packed = diagonals if band.count == 1 else diagonals.flatten(-2)
    return _picked(packed, _spread(band), x.flatten(-2)).reshape(x.shape)


def tensor_diagonal(call: Call, x: Tensor) -> Tensor:
    """`Diag` of a vector `[n]`: a matrix `[n, n]`.

    Raises:
        NotImplementedError: For a tensor of more dimensions.
    """
    if x.dim() != 1:
        raise NotImplementedError("Diag of a tensor that is no vector")
    return torch.diag_embed(x)


def _main(rows: int, columns: int, align: str) -> _Band:
    return _Band(rows, columns, 0, 0, align)


def _ends(k: Sequence[Tensor]) -> tuple[int, int]:
    """Lowest and highest diagonal; the main one alone where none is named."""
    numbers = integers(k[0]) if k else [0]
    return numbers[0], numbers[-1]


def _alignment(call: Call) -> str:
    """The second versions of the operators, without the attribute, align to the left."""
    return str(call.get("align", "LEFT_LEFT"))


def _spread(band: _Band) -> Any:
    """For every place of a matrix, the place of its element in the packed rows, or -1."""
    packed, places = band.places()
    where = np.full(band.rows * band.columns, -1)
    where[places] = packed
    return where


def _picked(flat: Tensor, where: Any, otherwise: Tensor) -> Tensor:
    """`flat[..., where]`, and `otherwise` where that is -1."""
    chosen = torch.from_numpy(where)
    found = flat.index_select(-1, chosen.clamp(min=0))
    return torch.where(chosen >= 0, found, otherwise)


LOWERINGS: dict[str, Callable[..., Any]] = {
    "Diag": tensor_diagonal,
    "MatrixDiag": to_diagonal,
    "MatrixDiagPart": diagonal,
    "MatrixDiagPartV2": diagonal,
    "MatrixDiagPartV3": diagonal,
    "MatrixDiagV2": to_diagonal,
    "MatrixDiagV3": to_diagonal,
    "MatrixSetDiag": set_diagonal,
    "MatrixSetDiagV2": set_diagonal,
    "MatrixSetDiagV3": set_diagonal,
}
