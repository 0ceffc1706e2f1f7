"""Matrix products and what is made of them."""

from __future__ import annotations

import torch
from torch import Tensor

from ranum.analysis.capture.onnx.operators._common import sized
from ranum.analysis.capture.onnx.registry import lowering
from ranum.analysis.transfer._common import broadcast_shapes


def _check_product(a: Tensor, b: Tensor) -> None:
    rows = a.shape[-2] if a.dim() > 1 else 1
    columns = b.shape[-1] if b.dim() > 1 else 1
    sized((*broadcast_shapes(a.shape[:-2], b.shape[:-2]), rows, columns))


@lowering("MatMul")
def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product, broadcast over leading dimensions."""
    _check_product(a, b)
    return torch.matmul(a, b)


@lowering("Gemm")
def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803 - ONNX's names
    transB: int = 0,  # noqa: N803
    broadcast: int = 1,
) -> Tensor:
    """Alpha a b + beta c."""
    a, b = (a.t() if transA else a), (b.t() if transB else b)
    _check_product(a, b)
    if not a.is_floating_point():
        product = torch.matmul(a, b) * int(alpha)
        return product if c is None else product + c * int(beta)
    if c is not None:
        return torch.addmm(c, a, b, beta=beta, alpha=alpha)
    product = torch.mm(a, b)
    return product if alpha == 1.0 else product * alpha


@lowering("Einsum")
def einsum(*operands: Tensor, equation: str) -> Tensor:
    """Sums of products by an equation."""
    sizes: dict[str, int] = {}
    left, _, right = equation.replace(" ", "").partition("->")
    for term, operand in zip(left.split(","), operands, strict=True):
        if "..." not in term:
            sizes.update(zip(term, operand.shape, strict=True))
    if "..." not in equation and right:
        sized([sizes[letter] for letter in right])
    return torch.einsum(equation, *operands)


@lowering("Det")
def det(x: Tensor) -> Tensor:
    """Determinant of the last two dimensions."""
    return torch.det(x)
