"""Operators whose gradient TensorFlow defines differently from torch.

Each class computes the value with torch and TensorFlow's gradient by torch operators, so that
both are recorded. Second derivatives are not defined.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ranum.analysis.capture.opaque import opaque


def applied(function: Any, *operands: Any) -> Tensor:
    """The result of one of the functions below."""
    result: Tensor = function.apply(*operands)
    return result


def applied_all(function: Any, *operands: Any) -> tuple[Tensor, ...]:
    """The results of one of the functions below."""
    results: tuple[Tensor, ...] = function.apply(*operands)
    return results


def differentiable(tensor: Tensor) -> bool:
    """True for numbers that can have a gradient."""
    return tensor.is_floating_point() or tensor.is_complex()


def summed_to(gradient: Tensor, shape: torch.Size) -> Tensor:
    """The gradient of an operand that was broadcast: summed over what was repeated."""
    return gradient if gradient.shape == shape else gradient.sum_to_size(shape)


def unless_zero(gradient: Tensor, result: Tensor) -> Tensor:
    """0 where nothing comes from upstream, whatever is multiplied with it."""
    return torch.where(gradient == 0, torch.zeros_like(result), result)


def sqrt_gradient(y: Tensor, gradient: Tensor) -> Tensor:
    """Of y = sqrt(x): half of the gradient over y."""
    return unless_zero(gradient, gradient * 0.5 / y)


def rsqrt_gradient(y: Tensor, gradient: Tensor) -> Tensor:
    """Of y = 1 / sqrt(x): minus half of the gradient times y³."""
    return unless_zero(gradient, gradient * -0.5 * (y * y * y))


def reciprocal_gradient(y: Tensor, gradient: Tensor) -> Tensor:
    """Of y = 1 / x: minus the gradient times y²."""
    return unless_zero(gradient, -gradient * y * y)


class ByResult(torch.autograd.Function):
    """A function of single elements whose gradient is computed from its result."""

    @staticmethod
    def forward(ctx: Any, function: Any, derive: Any, x: Tensor) -> Tensor:
        """Any shape; `derive` is one of the functions above."""
        result: Tensor = function(x)
        ctx.derive = derive
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor]:
        """The gradient of x."""
        return None, None, ctx.derive(*ctx.saved_tensors, gradient)


class GuardedPower(torch.autograd.Function):
    """x ** y with dx = y x ** (y - 1), dy = x ** y log(x) where x > 0, else 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        """X and y broadcast against each other."""
        result = torch.pow(x, y)
        ctx.save_for_backward(x, y, result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of x and y."""
        x, y, result = ctx.saved_tensors
        for_x = for_y = None
        if ctx.needs_input_grad[0]:
            for_x = summed_to(gradient * y * torch.pow(x, y - 1), x.shape)
        if ctx.needs_input_grad[1]:
            positive = x > 0
            logarithm = torch.log(torch.where(positive, x, torch.ones_like(x)))
            logarithm = torch.where(positive, logarithm, torch.zeros_like(x))
            for_y = summed_to(gradient * result * logarithm, y.shape)
        return for_x, for_y


class Maximum(torch.autograd.Function):
    """The larger one of x and y; the gradient of a tie goes to x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        """X and y broadcast against each other."""
        ctx.save_for_backward(x, y)
        return torch.maximum(x, y)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of x and y."""
        x, y = ctx.saved_tensors
        return _shared_out(ctx, gradient, x >= y, x.shape, y.shape)


class Minimum(torch.autograd.Function):
    """The smaller one of x and y; the gradient of a tie goes to x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        """X and y broadcast against each other."""
        ctx.save_for_backward(x, y)
        return torch.minimum(x, y)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of x and y."""
        x, y = ctx.saved_tensors
        return _shared_out(ctx, gradient, x <= y, x.shape, y.shape)


def _shared_out(
    ctx: Any, gradient: Tensor, to_first: Tensor, first: torch.Size, second: torch.Size
) -> tuple[Tensor | None, Tensor | None]:
    nothing = torch.zeros_like(gradient)
    for_first = for_second = None
    if ctx.needs_input_grad[0]:
        for_first = summed_to(torch.where(to_first, gradient, nothing), first)
    if ctx.needs_input_grad[1]:
        for_second = summed_to(torch.where(to_first, nothing, gradient), second)
    return for_first, for_second


class MultiplyNoNan(torch.autograd.Function):
    """X y, 0 where y = 0; the gradients are such products too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        """X and y broadcast against each other."""
        ctx.save_for_backward(x, y)
        return multiplied(x, y)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of x and y."""
        x, y = ctx.saved_tensors
        for_x = for_y = None
        if ctx.needs_input_grad[0]:
            for_x = summed_to(multiplied(gradient, y), x.shape)
        if ctx.needs_input_grad[1]:
            for_y = summed_to(multiplied(x, gradient), y.shape)
        return for_x, for_y


def multiplied(x: Tensor, y: Tensor) -> Tensor:
    """X y, and 0 where y = 0 whatever x is."""
    product = x * y
    return torch.where(y == 0, torch.zeros_like(product), product)


class Angle(torch.autograd.Function):
    """atan2(y, x), whose gradient at the origin is NaN."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor) -> Tensor:
        """Y and x broadcast against each other."""
        ctx.save_for_backward(y, x)
        return torch.atan2(y, x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of y and x."""
        y, x = ctx.saved_tensors
        share = gradient / (y * y + x * x)
        return summed_to(x * share, y.shape), summed_to(-y * share, x.shape)


class XLogY(torch.autograd.Function):
    """X log(y), 0 where x = 0; dx = log(y) where x is not 0, else 0; dy = x / y, 0 where x = 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        """X and y broadcast against each other."""
        ctx.save_for_backward(x, y)
        return torch.xlogy(x, y)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of x and y."""
        x, y = ctx.saved_tensors
        for_x = for_y = None
        if ctx.needs_input_grad[0]:
            for_x = summed_to(torch.xlogy((x != 0).to(x.dtype), y) * gradient, x.shape)
        if ctx.needs_input_grad[1]:
            for_y = summed_to(divided(x, y) * gradient, y.shape)
        return for_x, for_y


class XDividedByY(torch.autograd.Function):
    """x / y, 0 where x = 0; dx = 1 / y where x is not 0, else 0; dy = -x / y², 0 where x = 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        """X and y broadcast against each other."""
        ctx.save_for_backward(x, y)
        return divided(x, y)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of x and y."""
        x, y = ctx.saved_tensors
        for_x = for_y = None
        if ctx.needs_input_grad[0]:
            for_x = summed_to(divided((x != 0).to(x.dtype), y) * gradient, x.shape)
        if ctx.needs_input_grad[1]:
            for_y = summed_to(divided(-x, y * y) * gradient, y.shape)
        return for_x, for_y


def divided(x: Tensor, y: Tensor) -> Tensor:
    """X / y, and 0 where x = 0."""
    empty = x == 0
    quotient = x / torch.where(empty, torch.ones_like(y), y)
    return torch.where(empty, torch.zeros_like(quotient), quotient)


class Selu(torch.autograd.Function):
    """`selu`, whose derivative at 0 is the one from the right."""

    ALPHA, SCALE = 1.6732632423543772, 1.0507009873554805

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Any shape."""
        result = torch.nn.functional.selu(x)
        ctx.save_for_backward(result)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Scale on the right; result + scale alpha on the left."""
        (result,) = ctx.saved_tensors
        left = gradient * (result + Selu.ALPHA * Selu.SCALE)
        return torch.where(result < 0, left, gradient * Selu.SCALE)


class SoftmaxCrossEntropy(torch.autograd.Function):
    """-Σ labels log_softmax(logits) `[N]`; dlogits = softmax - labels, even where Σ labels != 1."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits and labels `[N, C]`."""
        logarithm = torch.log_softmax(logits, -1)
        ctx.save_for_backward(logarithm, labels)
        return -(labels * logarithm).sum(-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of the logits and the labels."""
        logarithm, labels = ctx.saved_tensors
        upstream = gradient.unsqueeze(-1)
        for_logits = for_labels = None
        if ctx.needs_input_grad[0]:
            for_logits = upstream * (torch.exp(logarithm) - labels)
        if ctx.needs_input_grad[1]:
            for_labels = -upstream * logarithm
        return for_logits, for_labels


class Reread(torch.autograd.Function):
    """What a variable holds after an assignment; the gradient is the variable's."""

    @staticmethod
    def forward(ctx: Any, variable: Tensor, value: Tensor) -> Tensor:
        """Any shape; the variable gives no value."""
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient of the variable."""
        return gradient, None


class PassedOn(torch.autograd.Function):
    """Operands as they are, with a gradient that somebody else computes."""

    @staticmethod
    def forward(ctx: Any, gradient: Any, *operands: Tensor) -> tuple[Tensor, ...]:
        """Any shapes; `gradient` takes the upstream gradients and returns the operands'."""
        ctx.gradient = gradient
        ctx.needed = [differentiable(operand) for operand in operands]
        results = tuple(operand.clone() for operand in operands)
        ctx.mark_non_differentiable(*(one for one in results if not differentiable(one)))
        return results

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Nothing for the gradient function itself, then one for each operand."""
        found = ctx.gradient(upstream)
        return (None, *(one if use else None for one, use in zip(found, ctx.needed, strict=True)))


class UnreadGradient(torch.autograd.Function):
    """Operands as they are; their gradient is an operator that the analysis lists as unknown."""

    @staticmethod
    def forward(ctx: Any, *operands: Tensor) -> tuple[Tensor, ...]:
        """Any shapes."""
        results = tuple(operand.clone() for operand in operands)
        ctx.exact = [not differentiable(operand) for operand in operands]
        ctx.mark_non_differentiable(*(one for one in results if not differentiable(one)))
        return results

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        """Numbers of the right shapes; nothing is known of them."""
        found = opaque(
            "tf.custom_gradient", lambda *given: [one.clone() for one in given], upstream
        )
        return tuple(None if exact else one for one, exact in zip(found, ctx.exact, strict=True))


class EuclideanNorm(torch.autograd.Function):
    """sqrt(Σ x²) over some dimensions, kept; dx = x / (norm / upstream), NaN at 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dims: list[int]) -> Tensor:
        """Any shape; the dimensions summed over stay, with size 1."""
        norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True)
        ctx.save_for_backward(x, norm)
        result: Tensor = norm
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """The gradient of x."""
        x, norm = ctx.saved_tensors
        return x / (norm / gradient), None
