"""Finds the operator that made a step go bad, by running the step again under a microscope.

Every operator of the replay is looked at, forward and backward: were its inputs finite, is
its output? One that turned finite into non-finite values is a suspect. Bad values are then
followed from operator to operator, so that only a suspect whose values reached the loss or
a gradient is named, and infinities that the user asked for (masks) are not blamed.

All use of private torch interfaces by the guards is in this file.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from ranum._dispatch import DispatchMode
from ranum._untouched import eager, untouched
from ranum.errors import RanumWarning
from ranum.guards._shards import local
from ranum.guards.types import Culprit, Extremes
from ranum.source import UNKNOWN, Source, module_scope, user_source

_UNINITIALISED = frozenset(
    {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided",
     "resize", "resize_as"}
)  # fmt: skip
_MASKED = frozenset(
    {"_softmax", "_log_softmax", "_safe_softmax", "logsumexp", "logcumsumexp",
     "_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu",
     "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"}
)  # fmt: skip
"""Operators that are given -inf on purpose and fail only where everything is masked."""

_C: Any = torch._C
_autograd: Any = torch.autograd

Origins = frozenset[int]
_INNOCENT: Origins = frozenset()


def find_culprit(
    run: Callable[[], Any] | None,
    *,
    model: nn.Module,
    batch: Any = None,
    strict: bool = False,
) -> Culprit | None:
    """The first operator whose non-finite output reached the loss or a gradient.

    The replay starts from the random numbers and buffers of now; the caller sets them to
    what they were before the failed step. Gradients, buffers, attributes and training flags
    of the model's modules and all random numbers are put back afterwards.

    A batch, parameter or buffer that is not finite is named instead of the operator that
    met it. -inf in a batch or a buffer counts as a mask: it is named only if nothing else
    is to blame.

    Not seen: arithmetic outside torch (numpy), and operators inside compiled graphs that
    cannot fall back to eager mode.

    Args:
        run: Runs forward, loss and backward, and returns the loss or a list of losses. None
            if the step cannot be run again; then only batch and weights are looked at.
        model: The model being trained.
        batch: What the step was given: tensors, nested in containers.
        strict: Raise what `run` raises, instead of giving up with a `RanumWarning`.

    Returns:
        None if the replay is finite: the failure was not reproduced, or was not about
        non-finite numbers.
    """
    microscope = _Microscope()
    microscope.expect(named_tensors(batch, "batch"), "data")
    microscope.expect(((name, _at_hand(p)) for name, p in model.named_parameters()), "weights")
    microscope.expect(model.named_buffers(), "weights")
    if run is None:
        return microscope.first_leaf()
    try:
        with untouched(model), eager(), module_scope(model), torch.enable_grad():
            with microscope:
                losses = run()
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            return microscope.verdict(losses, gradients)
    except Exception as error:
        if strict:
            raise
        warnings.warn(
            f"the failed step could not be run again ({type(error).__name__}: {error}); "
            "the operator that failed is not named.",
            RanumWarning,
            stacklevel=2,
        )
        return None


def _at_hand(parameter: Tensor) -> Tensor:
    """What operators meet of a weight: of a sharded one, the part of this process."""
    part = local(parameter)
    return part if part is parameter else nn.Parameter(part, requires_grad=False)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a forward operator stands, for the backward operators that belong to it."""

    op: str
    source: Source
    operands: tuple[Extremes, ...]


@dataclass(slots=True)
class _Suspect:
    """Something that made non-finite values.

    Attributes:
        culprit: What to report.
        is_deliberate: The values were asked for; to blame only if nobody else is.
        is_met: An operator has read the values; for leaves, the report holds where.
    """

    culprit: Culprit
    is_deliberate: bool = False
    is_met: bool = True


@dataclass(frozen=True, slots=True)
class _Call:
    """One operator's call: what went in, looked at before it ran.

    Attributes:
        op: Its own name; `place` has the forward operator's in the backward pass.
        place: Where to report it.
        operands: Numeric tensors with their extremes.
        scalars: Non-finite numbers among the arguments.
    """

    op: str
    place: _Place
    operands: tuple[tuple[Extremes, Tensor], ...]
    scalars: tuple[float, ...]

    @property
    def bad(self) -> list[tuple[Extremes, Tensor]]:
        """The operands that were not finite."""
        return [(seen, tensor) for seen, tensor in self.operands if _is_bad(seen)]

    @property
    def has_nan(self) -> bool:
        """True if a NaN went in."""
        return any(seen.nan for seen, _ in self.operands) or any(map(math.isnan, self.scalars))


class _Microscope(DispatchMode):
    """Looks at every operator's inputs and outputs; follows bad values by their memory."""

    def __init__(self) -> None:
        super().__init__()
        self._suspects: list[_Suspect] = []
        self._origins: dict[int, tuple[Any, Origins]] = {}
        self._escaped: Origins = _INNOCENT
        self._places: dict[int, _Place] = {}

    # --- the hook --------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operator between two looks."""
        kwargs = kwargs or {}
        if _is_view(func):
            result = func(*args, **kwargs)
            if torch.is_grad_enabled():
                self._remember(_Place(_name(func), user_source(), ()))
            return result
        operands = tuple(
            (look(name, tensor), tensor) for name, tensor in _operands(func, args, kwargs)
        )
        result = func(*args, **kwargs)
        op = _name(func)
        place = self._place(op, tuple(seen for seen, _ in operands))
        scalars = tuple(leaf for leaf in tree_leaves((args, kwargs)) if _is_bad_number(leaf))
        outputs = [*_tensors(result), *_written(func, args, kwargs)]
        self._judge(_Call(op, place, operands, scalars), outputs)
        return result

    def _judge(self, call: _Call, outputs: Iterable[Tensor]) -> None:
        if call.op == "_local_scalar_dense":
            self._escaped |= self._blamed(call)
            return
        for output in outputs:
            if call.op in _UNINITIALISED:
                self._mark(output, _INNOCENT)
            elif _is_real(output):
                seen = look("output", output)
                if _is_bad(seen):
                    self._mark(output, self._responsible(call, output, seen))

    def _responsible(self, call: _Call, output: Tensor, seen: Extremes) -> Origins:
        """Who is to blame for a bad output: those behind bad inputs, or this operator."""
        if not call.bad and not call.scalars:
            # An operator without operands makes what it was told to make.
            return self._accuse(call.place, output, seen, is_deliberate=not call.operands)
        origins = self._blamed(call)
        if call.scalars:
            origins |= self._escaped or self._accuse(call.place, output, seen, is_deliberate=True)
        if seen.nan and not call.has_nan and self._is_misuse(call.op, origins):
            return self._accuse(call.place, output, seen)
        return origins

    def _is_misuse(self, op: str, origins: Origins) -> bool:
        """True if a NaN came from nothing but deliberate infinities, by this operator's doing."""
        suspects = [self._suspects[index] for index in origins]
        if not suspects or not all(suspect.is_deliberate for suspect in suspects):
            return False
        made = all(suspect.culprit.cause == "operator" for suspect in suspects)
        return made or op in _MASKED

    def _blamed(self, call: _Call) -> Origins:
        origins = _INNOCENT
        for seen, tensor in call.bad:
            known = self._origins.get(_key(tensor))
            origins |= self._meet(tensor, seen) if known is None else known[1]
        for index in origins:
            suspect = self._suspects[index]
            if not suspect.is_met:
                suspect.is_met = True
                place = call.place
                suspect.culprit = replace(suspect.culprit, op=place.op, source=place.source)
        return origins

    def _meet(self, tensor: Tensor, seen: Extremes) -> Origins:
        """A bad tensor that no operator of this step has made: it came from outside."""
        self._expect(f"argument {seen.name}", tensor, seen, "data", is_mask=not seen.nan)
        return self._origins[_key(tensor)][1]

    def _accuse(
        self, place: _Place, output: Tensor, seen: Extremes, *, is_deliberate: bool = False
    ) -> Origins:
        culprit = Culprit(
            op=place.op,
            phase="backward" if _C._current_autograd_node() is not None else "forward",
            source=place.source,
            operands=place.operands,
            output=seen,
            outcome=_outcome(output, seen),
        )
        self._suspects.append(_Suspect(culprit, is_deliberate))
        return frozenset({len(self._suspects) - 1})

    # --- memory ----------------------------------------------------------------------------

    def _mark(self, tensor: Tensor, origins: Origins) -> None:
        key = _key(tensor)
        known = self._origins.get(key)
        if known is None:
            # The weak reference keeps the address from being given to other memory.
            self._origins[key] = (_weak(tensor), origins)
        else:
            self._origins[key] = (known[0], known[1] | origins)

    # --- leaves ----------------------------------------------------------------------------

    def expect(self, tensors: Iterable[tuple[str, Tensor]], cause: Any) -> None:
        """Looks at tensors that exist before the step."""
        for name, tensor in tensors:
            if not _is_real(tensor):
                continue
            seen = look(name, tensor)
            if _is_bad(seen):
                is_mask = not isinstance(tensor, nn.Parameter) and _outcome(tensor, seen) == "-Inf"
                self._expect(name, tensor, seen, cause, is_mask=is_mask)

    def _expect(
        self, name: str, tensor: Tensor, seen: Extremes, cause: Any, *, is_mask: bool
    ) -> None:
        culprit = Culprit(
            op="",
            phase="forward",
            source=UNKNOWN,
            output=seen,
            outcome=_outcome(tensor, seen),
            cause=cause,
            name=name,
        )
        self._suspects.append(_Suspect(culprit, is_deliberate=is_mask, is_met=False))
        self._mark(tensor, frozenset({len(self._suspects) - 1}))

    def first_leaf(self) -> Culprit | None:
        """The first bad tensor that existed before the step and is no mask."""
        return next((s.culprit for s in self._suspects if not s.is_deliberate), None)

    # --- places ----------------------------------------------------------------------------

    def _place(self, op: str, operands: tuple[Extremes, ...]) -> _Place:
        node = _C._current_autograd_node()
        if node is None:
            place = _Place(op, user_source(), operands)
        else:
            place = self._backward_place(op, operands, node)
        self._remember(place)
        return place

    def _backward_place(self, op: str, operands: tuple[Extremes, ...], node: Any) -> _Place:
        inside = _source_inside_backward()
        if inside is not None:  # a checkpoint's second forward, a custom Function's backward
            return _Place(op, inside, operands)
        return self._places.get(node._sequence_nr()) or _Place(op, user_source(), operands)

    def _remember(self, place: _Place) -> None:
        if torch.is_grad_enabled():
            # Autograd's node for this operator has been made already; it took this number.
            self._places.setdefault(_autograd._get_sequence_nr() - 1, place)

    # --- the verdict -----------------------------------------------------------------------

    def verdict(self, losses: Any, gradients: Sequence[Tensor]) -> Culprit | None:
        """Whoever is first behind a bad loss, else behind a bad gradient."""
        leaves = tree_leaves(losses)
        numbers = any(_is_bad_number(leaf) for leaf in leaves)
        is_bad, origins = self._behind(_tensors(leaves))
        if numbers:
            origins |= self._escaped
        if not (is_bad or numbers):
            is_bad, origins = self._behind(gradients)
            if not is_bad:
                return None
        return self._first(origins) or self.first_leaf()

    def _behind(self, tensors: Iterable[Tensor]) -> tuple[bool, Origins]:
        is_bad, origins = False, _INNOCENT
        for tensor in tensors:
            if _is_real(tensor) and _is_bad(look("value", tensor)):
                is_bad = True
                origins |= self._origins.get(_key(tensor), (None, _INNOCENT))[1]
        return is_bad, origins

    def _first(self, origins: Origins) -> Culprit | None:
        for is_deliberate in (False, True):
            for index in sorted(origins):
                if self._suspects[index].is_deliberate is is_deliberate:
                    return self._suspects[index].culprit
        return None


# --- looking at tensors --------------------------------------------------------------------


@torch.no_grad()
def look(name: str, tensor: Tensor) -> Extremes:
    """The extremes of a tensor's finite elements, and how many are not finite."""
    data = _elements(tensor)
    if not data.numel():
        return Extremes(name=name, lower=None, upper=None, nan=0, inf=0, size=0)
    lower, upper = torch.stack(torch.aminmax(data)).tolist()
    nan = inf = 0
    if not (math.isfinite(lower) and math.isfinite(upper)):
        nan, inf = torch.stack((data.isnan().sum(), data.isinf().sum())).tolist()
        finite = data[data.isfinite()]
        lower = upper = None
        if finite.numel():
            lower, upper = torch.stack(torch.aminmax(finite)).tolist()
    return Extremes(
        name=name,
        lower=None if lower is None else float(lower),
        upper=None if upper is None else float(upper),
        nan=nan,
        inf=inf,
        size=data.numel(),
    )


def _elements(tensor: Tensor) -> Tensor:
    """The elements as a plain strided tensor of a dtype that can be compared."""
    data = tensor.detach()
    if hasattr(data, "to_local"):
        data = data.to_local()
    if data.layout is not torch.strided:
        data = data.coalesce().values() if data.layout is torch.sparse_coo else data.to_dense()
    if data.is_complex():
        data = torch.view_as_real(data.resolve_conj())
    elif data.is_floating_point() and data.element_size() == 1:
        data = data.float()
    return data


def _outcome(tensor: Tensor, seen: Extremes) -> str:
    if seen.nan:
        return "NaN"
    return "Inf" if bool((_elements(tensor) == math.inf).any()) else "-Inf"


def _is_bad(seen: Extremes) -> bool:
    return seen.nan > 0 or seen.inf > 0


def _is_real(tensor: Any) -> bool:
    """True if the tensor's elements can be non-finite and can be looked at."""
    return (
        isinstance(tensor, Tensor)
        and (tensor.is_floating_point() or tensor.is_complex())
        and not tensor.is_meta
        and not nn.parameter.is_lazy(tensor)
    )


def _is_bad_number(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _weak(tensor: Tensor) -> Any:
    return StorageWeakRef(tensor.untyped_storage()) if _has_storage(tensor) else tensor


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if _has_storage(tensor) else id(tensor)


def _has_storage(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not hasattr(tensor, "to_local")


def named_tensors(value: Any, name: str, _depth: int = 8) -> Iterator[tuple[str, Tensor]]:
    """Tensors in nested containers and data objects, each with a name as Python would write it."""
    if isinstance(value, Tensor):
        yield name, value
    elif _depth == 0 or isinstance(value, (str, bytes, nn.Module)):
        return
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from named_tensors(item, f"{name}[{key!r}]", _depth - 1)
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        for field_name in value._fields:
            yield from named_tensors(getattr(value, field_name), f"{name}.{field_name}", _depth - 1)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from named_tensors(item, f"{name}[{index}]", _depth - 1)
    elif is_dataclass(value) and not isinstance(value, type):
        for entry in fields(value):
            item = getattr(value, entry.name, None)
            yield from named_tensors(item, f"{name}.{entry.name}", _depth - 1)


# --- looking at operators ------------------------------------------------------------------


def _name(func: Any) -> str:
    """`aten.add_.Tensor` -> "add"; operators of other libraries keep their namespace."""
    namespace, _, name = func._schema.name.partition("::")
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    if name == "_to_copy":
        name = "cast"
    return name if namespace == "aten" else f"{namespace}::{name}"


def _is_view(func: Any) -> bool:
    """True if the operator only looks at its argument's memory in another way."""
    schema = func._schema
    return not schema.is_mutable and any(value.alias_info is not None for value in schema.returns)


def _operands(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The operator's numeric tensors with their schema names; `self` is `x`."""
    schema = func._schema.arguments
    pairs = [(schema[index].name, value) for index, value in enumerate(args)]
    for name, value in [*pairs, *kwargs.items()]:
        shown = "x" if name in ("self", "_self") else name
        tensors = _tensors(value)
        for index, tensor in enumerate(tensors):
            if tensor.is_meta or tensor.dtype is torch.bool or tensor.is_quantized:
                continue
            yield (shown if isinstance(value, Tensor) else f"{shown}[{index}]"), tensor


def _written(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """Tensors that an in-place operator has written to but perhaps not returned."""
    if not func._schema.is_mutable:
        return []
    written: list[Tensor] = []
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[index] if index < len(args) else kwargs.get(argument.name)
            written += _tensors(value)
    return written


def _source_inside_backward() -> Source | None:
    """The user's expression, if user code runs inside the backward pass; else None."""
    engine: FrameType | None = sys._getframe(1)
    while engine is not None and engine.f_code.co_name != "_engine_run_backward":
        engine = engine.f_back
    here = user_source()
    if not here.is_known:
        return None
    outside = UNKNOWN if engine is None else user_source(engine)
    return None if here == outside else here


# --- leaving no trace ----------------------------------------------------------------------
