"""One row per TensorFlow operator and situation: what it is called with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf

raw = tf.raw_ops


@dataclass(frozen=True)
class Row:
    """An operator, its operands, and its attributes.

    `fixed` operands are constants of the graph; the others are fed, and differentiated if they
    are float.
    """

    name: str
    operands: dict[str, Any]
    attributes: dict[str, Any] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)
    tolerance: float = 1e-5
    gradients: bool = True
    outputs: slice = field(default_factory=lambda: slice(None))

    @property
    def label(self) -> str:
        details = [f"{key}={value}" for key, value in self.attributes.items()]
        return "-".join([self.name, *details])

    def call(self, operands: dict[str, Any]) -> list[Any]:
        function: Callable[..., Any] = getattr(raw, self.name)
        result = function(**operands, **self.fixed, **self.attributes)
        results = list(result) if isinstance(result, (tuple, list)) else [result]
        return results[self.outputs]


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype("f")


def uniform(*shape: int, low: float = 0.0, high: float = 1.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, shape).astype("f")


def floats(*numbers: float) -> np.ndarray:
    return np.array(numbers, "f")


def ints(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int32)


INFINITE, MISSING = float("inf"), float("nan")
CORNERS = floats(-INFINITE, -100, -6, -1, -0.5, -1e-20, 0, 1e-20, 0.5, 1, 6, 100, INFINITE)
ROWS: list[Row] = []


def add(name: str, operands: dict[str, Any], **options: Any) -> None:
    ROWS.append(Row(name, operands, **options))


# --- functions of one element --------------------------------------------------------------

for name in [
    "Abs",
    "Neg",
    "Sign",
    "Sigmoid",
    "Tanh",
    "Exp",
    "Expm1",
    "Erf",
    "Erfc",
    "Atan",
    "Asinh",
    "Sinh",
    "Cosh",
    "Square",
    "Floor",
    "Ceil",
    "Rint",
    "Round",
    "Softsign",
]:
    add(name, {"features" if name == "Softsign" else "x": np.append(normal(20), CORNERS[1:-1])})
for name in ["Log", "Log1p", "Sqrt", "Rsqrt", "Reciprocal", "Inv"]:
    add(name, {"x": np.append(uniform(20, low=0.1, high=9), CORNERS)})
for name in ["Sin", "Cos", "Tan"]:
    add(name, {"x": normal(20, scale=1)}, tolerance=3e-5)
for name in ["Asin", "Acos", "Atanh"]:
    add(name, {"x": np.append(uniform(20, low=-0.9, high=0.9), floats(-1, 0, 1, 1.5))})
add("Acosh", {"x": np.append(uniform(20, low=1.1, high=9), floats(1, 0.5))})
add("Erfinv", {"x": np.append(uniform(20, low=-0.9, high=0.9), floats(-1, 0, 1))}, tolerance=3e-5)
add("Ndtri", {"x": uniform(20, low=0.02, high=0.98)}, tolerance=3e-5)
add("Lgamma", {"x": uniform(20, low=0.1, high=9)}, tolerance=3e-5)
add("Digamma", {"x": uniform(20, low=0.3, high=9)}, tolerance=1e-4)
for name in ["BesselI0e", "BesselI1e"]:
    add(name, {"x": normal(20)}, tolerance=1e-4)
for name in ["IsNan", "IsInf", "IsFinite"]:
    add(name, {"x": np.append(CORNERS, floats(MISSING))})
add("Selu", {"features": floats(-100, -6, -1, -1e-3, 0, 1e-3, 1, 6, 100)})
for name in ["Relu", "Relu6", "Elu", "Softplus", "LeakyRelu"]:
    add(name, {"features": np.append(normal(20), CORNERS[1:-1])})
add("LeakyRelu", {"features": CORNERS[1:-1]}, attributes={"alpha": 0.0})
for name in ["Softmax", "LogSoftmax"]:
    add(name, {"logits": normal(3, 5)})
    add(name, {"logits": floats(1, 200, -200, 3)[None]})
add("Cast", {"x": normal(6, scale=9)}, attributes={"DstT": tf.int32})
add("Cast", {"x": normal(6, scale=9)}, attributes={"DstT": tf.float64})
add("Cast", {"x": normal(6, scale=9)}, attributes={"DstT": tf.bfloat16})
add("Cast", {"x": ints(0, 1, 5)}, attributes={"DstT": tf.bool})
add("Bitcast", {"input": normal(6)}, attributes={"type": tf.int32})
add("LogicalNot", {"x": np.array([True, False])})
add("Invert", {"x": ints(1, 2, 5)})
add("Abs", {"x": ints(1, -2, 5)})
add("Floor", {"x": normal(5)})

# --- functions of two elements -------------------------------------------------------------

TIES_X = floats(1, 2, 3, 0, 0, -1, 5, 0)
TIES_Y = floats(1, 3, 2, 0, 2, -1, 0, -3)
for name in [
    "Add",
    "AddV2",
    "Sub",
    "Mul",
    "Maximum",
    "Minimum",
    "SquaredDifference",
    "RealDiv",
    "Div",
    "DivNoNan",
]:
    add(name, {"x": normal(3, 4), "y": normal(4, seed=1)})
    add(name, {"x": TIES_X, "y": TIES_Y})
    add(name, {"x": TIES_X}, fixed={"y": np.float32(0)})
    add(name, {"y": TIES_X}, fixed={"x": np.float32(0)})
for name in ["MulNoNan", "Xdivy", "Xlogy", "Xlog1py"]:
    add(name, {"x": normal(3, 4), "y": uniform(4, low=0.1, high=2, seed=1)})
    add(name, {"x": floats(0, 0, 1, 2), "y": floats(0, 1, 0, 3)})
add("DivNoNan", {"x": normal(3, 4)}, fixed={"y": np.float32(3)})
add("DivNoNan", {"x": floats(1, INFINITE, 0)}, fixed={"y": floats(0, 0, 0)})
add("MulNoNan", {"x": floats(INFINITE, MISSING, 1), "y": floats(0, 0, 2)}, gradients=False)
add("Atan2", {"y": normal(6), "x": normal(6, seed=1)})
add("Atan2", {"y": floats(0, 1, 0, -1), "x": floats(0, 0, -1, 0)})
add("Pow", {"x": uniform(6, low=0.1, high=3), "y": normal(6, seed=1)})
add("Pow", {"x": floats(0, 0, 0, 0, -2, -2, 1, 4), "y": floats(0, 1, 2, 0.5, 2, 3, 0, 0.5)})
for exponent in (-1.0, 0.0, 0.5, 1.0, 2.0, 3.0):
    add("Pow", {"x": floats(-2, -1, 0, 0.5, 3)}, fixed={"y": np.float32(exponent)})
add("Pow", {"x": ints(1, 2, 3), "y": ints(2, 3, 4)})
add("FloorMod", {"x": floats(5, -5, 5, -5, 1), "y": floats(3, 3, -3, -3, 1)})
add("FloorMod", {"x": ints(5, -5, 5, -5), "y": ints(3, 3, -3, -3)})
add("FloorDiv", {"x": floats(5, -5, 5, -5), "y": floats(3, 3, -3, -3)})
add("FloorDiv", {"x": ints(5, -5, 5, -5), "y": ints(3, 3, -3, -3)})
add("TruncateDiv", {"x": ints(5, -5, 5, -5), "y": ints(3, 3, -3, -3)})
add("TruncateMod", {"x": ints(5, -5, 5, -5), "y": ints(3, 3, -3, -3)})
add("Div", {"x": ints(5, -5, 5, -5), "y": ints(3, 3, -3, -3)})
add("Igamma", {"a": uniform(5, low=1, high=3), "x": uniform(5, low=1, high=3)}, gradients=False)
add("Igammac", {"a": uniform(5, low=1, high=3), "x": uniform(5, low=1, high=3)}, gradients=False)
add("NextAfter", {"x1": floats(1, 2), "x2": floats(2, 1)}, gradients=False, tolerance=0)
for name in ["Equal", "NotEqual", "Less", "LessEqual", "Greater", "GreaterEqual"]:
    add(name, {"x": TIES_X, "y": TIES_Y})
for name in ["LogicalAnd", "LogicalOr"]:
    add(name, {"x": np.array([True, True, False]), "y": np.array([True, False, False])})
for name in ["BitwiseAnd", "BitwiseOr", "BitwiseXor", "LeftShift", "RightShift"]:
    add(name, {"x": ints(5, 12, 7), "y": ints(3, 2, 1)})
add("ApproximateEqual", {"x": floats(1, 2), "y": floats(1.000001, 2.1)})
add("ClipByValue", {"t": TIES_X}, fixed={"clip_value_min": np.float32(0), "clip_value_max": 2.0})
add("AddN", {}, fixed={"inputs": [normal(3), normal(3, seed=1), normal(3, seed=2)]})
CONDITION = np.array([True, False, True])
add("SelectV2", {"t": normal(2, 3), "e": normal(3, seed=1)}, fixed={"condition": CONDITION})
add(
    "SelectV2",
    {"t": floats(1, 2, 3), "e": floats(MISSING, 1, INFINITE)},
    fixed={"condition": CONDITION},
)
add("Select", {"x": normal(3, 2), "y": normal(3, 2, seed=1)}, fixed={"condition": CONDITION})
add("Complex", {"real": normal(3), "imag": normal(3, seed=1)}, gradients=False)

# --- reductions ----------------------------------------------------------------------------

for name in ["Sum", "Mean", "Max", "Min", "Prod", "EuclideanNorm"]:
    for axes in ([0], [1, 2], [-1], [], [0, 1, 2]):
        for keep in (False, True):
            add(
                name,
                {"input": normal(2, 3, 4)},
                fixed={"axis": np.array(axes, np.int32)},
                attributes={"keep_dims": keep},
            )
TIED = np.array([[1, 1, 0], [2, 0, 2]], "f")
for name in ["Max", "Min", "Prod", "EuclideanNorm"]:
    add(name, {"input": TIED}, fixed={"axis": ints(1)})
    add(name, {"input": np.zeros((2, 3), "f")}, fixed={"axis": ints(1)})
for name in ["All", "Any"]:
    add(name, {"input": TIED > 0}, fixed={"axis": ints(1)})
add("Mean", {"input": ints(1, 2, 4)}, fixed={"axis": ints(0)})
AT_ENDS = {"y": floats(0, INFINITE, 0, INFINITE), "dy": floats(0, 0, 1, 1)}
for name in ["InvGrad", "ReciprocalGrad", "RsqrtGrad", "SqrtGrad"]:
    add(name, AT_ENDS, gradients=False)
for name in ["InvGrad", "ReciprocalGrad", "RsqrtGrad", "SigmoidGrad", "SqrtGrad", "TanhGrad"]:
    add(name, {"y": uniform(5, low=0.1), "dy": normal(5)})
add("ConcatOffset", {}, fixed={"concat_dim": np.int32(1), "shape": [ints(2, 3), ints(2, 1)]})
add("L2Loss", {"t": normal(3, 4)})
for name in ["ArgMax", "ArgMin"]:
    add(name, {"input": TIED}, fixed={"dimension": np.int32(1)})
for name in ["Cumsum", "Cumprod", "CumulativeLogsumexp"]:
    for exclusive in (False, True):
        for reverse in (False, True):
            add(
                name,
                {"x": normal(3, 4)},
                fixed={"axis": np.int32(1)},
                attributes={"exclusive": exclusive, "reverse": reverse},
                gradients=name != "CumulativeLogsumexp",
            )
add("TopKV2", {"input": normal(3, 6)}, fixed={"k": np.int32(3)})
add("TopKV2", {"input": floats(1, 2, 2, 1)}, fixed={"k": np.int32(3)})
add("InTopKV2", {"predictions": normal(3, 6), "targets": ints(0, 2, 5)}, fixed={"k": np.int32(3)})
IDS = ints(0, 0, 2, 2, 2)
for name in ["Sum", "Mean", "Max", "Min", "Prod"]:
    add(f"Segment{name}", {"data": normal(5, 3)}, fixed={"segment_ids": IDS})
    if name != "Mean":
        add(
            f"UnsortedSegment{name}",
            {"data": normal(5, 3)},
            fixed={"segment_ids": ints(2, 0, -1, 0, 2), "num_segments": np.int32(4)},
        )
add(
    "DenseBincount",
    {"input": ints(0, 2, 2, 5), "weights": normal(4)},
    fixed={"size": np.int32(4)},
    gradients=False,
)

# --- shapes --------------------------------------------------------------------------------

CUBE = normal(2, 3, 4)
add("Reshape", {"tensor": CUBE}, fixed={"shape": ints(6, -1)})
add("ExpandDims", {"input": CUBE}, fixed={"axis": np.int32(-2)})
add("Squeeze", {"input": normal(1, 3, 1)})
add("Squeeze", {"input": normal(1, 3, 1)}, attributes={"axis": [2]})
add("Transpose", {"x": CUBE}, fixed={"perm": ints(2, 0, 1)})
add("ConcatV2", {}, fixed={"values": [CUBE, normal(2, 1, 4)], "axis": np.int32(1)})
add("Pack", {}, fixed={"values": [CUBE, CUBE]}, attributes={"axis": 1})
add("Unpack", {"value": CUBE}, attributes={"num": 3, "axis": 1})
add("Split", {"value": CUBE}, fixed={"axis": np.int32(2)}, attributes={"num_split": 2})
add(
    "SplitV",
    {"value": CUBE},
    fixed={"size_splits": ints(1, -1), "axis": np.int32(1)},
    attributes={"num_split": 2},
)
add("Tile", {"input": CUBE}, fixed={"multiples": ints(2, 1, 3)})
add("BroadcastTo", {"input": normal(3, 1)}, fixed={"shape": ints(2, 3, 4)})
add("BroadcastArgs", {"s0": ints(3, 1), "s1": ints(2, 1, 4)})
add("BroadcastGradientArgs", {"s0": ints(3, 1), "s1": ints(2, 1, 4)})
add("BroadcastGradientArgs", {"s0": ints(1, 4), "s1": ints(4)})
add("BroadcastGradientArgs", {"s0": ints(1, 4), "s1": ints(1, 4)})
add("BroadcastGradientArgs", {"s0": ints(1, 4), "s1": ints(1, 1)})
PADS = np.array([[0, 0], [1, 2], [2, 0]], np.int32)
add("Pad", {"input": CUBE}, fixed={"paddings": PADS})
add("PadV2", {"input": CUBE}, fixed={"paddings": PADS, "constant_values": np.float32(3)})
for mode in ("REFLECT", "SYMMETRIC"):
    add("MirrorPad", {"input": CUBE}, fixed={"paddings": PADS}, attributes={"mode": mode})
    add(
        "MirrorPadGrad",
        {"input": normal(2, 6, 6)},
        fixed={"paddings": PADS},
        attributes={"mode": mode},
    )
add("ReverseV2", {"tensor": CUBE}, fixed={"axis": ints(0, -1)})
add(
    "ReverseSequence",
    {"input": CUBE},
    fixed={"seq_lengths": ints(2, 3)},
    attributes={"seq_dim": 1, "batch_dim": 0},
)
add("Roll", {"input": CUBE}, fixed={"shift": ints(1, -2), "axis": ints(0, 2)})
add("Slice", {"input": CUBE}, fixed={"begin": ints(0, 1, 2), "size": ints(-1, 2, 1)})
add("Shape", {"input": CUBE})
add("Shape", {"input": CUBE}, attributes={"out_type": tf.int64})
add("Size", {"input": CUBE})
add("Rank", {"input": CUBE})
add("ZerosLike", {"x": CUBE})
add("OnesLike", {"x": CUBE})
add("Fill", {"value": np.float32(2)}, fixed={"dims": ints(2, 3)})
add("Range", {}, fixed={"start": np.int32(1), "limit": np.int32(9), "delta": np.int32(3)})
add(
    "LinSpace",
    {"start": np.float32(1), "stop": np.float32(3)},
    fixed={"num": np.int32(5)},
    gradients=False,
)
add("StopGradient", {"input": CUBE})
add("Identity", {"input": CUBE})
add("EnsureShape", {"input": CUBE}, attributes={"shape": [2, 3, 4]})
SQUARE = normal(2, 4, 4)
for below, above in ((0, 0), (-1, 0), (1, 2), (0, -1)):
    add(
        "MatrixBandPart",
        {"input": SQUARE},
        fixed={"num_lower": np.int64(below), "num_upper": np.int64(above)},
    )
add("MatrixDiagPart", {"input": SQUARE})
add("MatrixDiag", {"diagonal": normal(2, 3)})
add("MatrixSetDiag", {"input": SQUARE, "diagonal": normal(2, 4)})
add("Diag", {"diagonal": normal(3)})
TALL, WIDE = normal(2, 5, 3), normal(2, 3, 5)
for matrix in (TALL, WIDE):
    for align in ("RIGHT_LEFT", "LEFT_RIGHT", "LEFT_LEFT", "RIGHT_RIGHT"):
        for k in (ints(-1, 1), ints(1, 2), ints(-2, -1), ints(1), ints(-1), ints(-2, 2)):
            band = {"k": k, "padding_value": np.float32(7)}
            add("MatrixDiagPartV3", {"input": matrix}, fixed=band, attributes={"align": align})
            packed = raw.MatrixDiagPartV3(input=matrix, **band, align=align).numpy()
            add(
                "MatrixSetDiagV3",
                {"input": matrix, "diagonal": -packed},
                fixed={"k": k},
                attributes={"align": align},
            )
            add(
                "MatrixDiagV3",
                {"diagonal": packed},
                fixed=band | {"num_rows": matrix.shape[1], "num_cols": matrix.shape[2]},
                attributes={"align": align},
            )
# TensorFlow's gradients of the second versions take the rows for aligned as in the third.
BAND = {"k": ints(-1, 2), "padding_value": np.float32(7)}
add("MatrixDiagPartV2", {"input": TALL}, fixed=BAND, gradients=False)
PACKED = raw.MatrixDiagPartV2(input=TALL, **BAND).numpy()
add(
    "MatrixSetDiagV2", {"input": TALL, "diagonal": -PACKED}, fixed={"k": BAND["k"]}, gradients=False
)
for rows, columns in ((-1, -1), (5, -1), (-1, 3), (5, 3)):
    size = {"num_rows": rows, "num_cols": columns}
    add("MatrixDiagV2", {"diagonal": PACKED}, fixed=BAND | size, gradients=False)
IMAGE = normal(2, 4, 6, 8)
add("DepthToSpace", {"input": IMAGE}, attributes={"block_size": 2})
add("SpaceToDepth", {"input": IMAGE}, attributes={"block_size": 2})
add(
    "SpaceToBatchND",
    {"input": IMAGE},
    fixed={"block_shape": ints(2, 3), "paddings": np.array([[1, 1], [0, 3]], np.int32)},
)
add(
    "BatchToSpaceND",
    {"input": normal(12, 2, 3, 1)},
    fixed={"block_shape": ints(2, 3), "crops": np.array([[1, 0], [0, 2]], np.int32)},
)

# --- indices -------------------------------------------------------------------------------

TABLE = normal(5, 3)
add("GatherV2", {"params": TABLE}, fixed={"indices": ints(4, 0, 0), "axis": np.int32(0)})
add(
    "GatherV2",
    {"params": normal(2, 5, 3)},
    fixed={"indices": np.array([[0, 2], [1, 1]], np.int32), "axis": np.int32(1)},
)
add(
    "GatherV2",
    {"params": normal(2, 4, 5, 3)},
    fixed={"indices": np.array([[0, 2], [1, 1]], np.int32), "axis": np.int32(2)},
    attributes={"batch_dims": 1},
)
add("GatherNd", {"params": CUBE}, fixed={"indices": np.array([[0, 1], [1, 2]], np.int32)})
PLACES = np.array([[0], [3], [0]], np.int32)
add("ScatterNd", {"updates": normal(3, 2)}, fixed={"indices": PLACES, "shape": ints(4, 2)})
for name in ["TensorScatterAdd", "TensorScatterSub"]:
    add(name, {"tensor": TABLE, "updates": normal(3, 3)}, fixed={"indices": PLACES})
add(
    "TensorScatterUpdate", {"tensor": TABLE, "updates": normal(2, 3)}, fixed={"indices": PLACES[:2]}
)
for masks in (
    {},
    {"begin_mask": 1, "end_mask": 4},
    {"shrink_axis_mask": 2},
    {"new_axis_mask": 1},
    {"ellipsis_mask": 1, "shrink_axis_mask": 4},
):
    add(
        "StridedSlice",
        {"input": normal(4, 5, 6)},
        fixed={"begin": ints(1, 2, 0), "end": ints(3, 5, 4), "strides": ints(1, 2, 1)},
        attributes=masks,
    )
add(
    "StridedSlice",
    {"input": normal(4, 5)},
    fixed={"begin": ints(-1, 4), "end": ints(-5, 0), "strides": ints(-1, -2)},
)
for axis in (-1, 0, 1):
    add(
        "OneHot",
        {"indices": np.array([[0, 2], [5, -1]], np.int32)},
        fixed={"depth": np.int32(4), "on_value": np.float32(2), "off_value": np.float32(-1)},
        attributes={"axis": axis},
    )
add("Where", {"condition": TIED > 0})
add("InvertPermutation", {"x": ints(2, 0, 1)})
add("Unique", {"x": ints(5, 1, 5, 3, 1)})
add("DynamicStitch", {}, fixed={"indices": [ints(0, 2), ints(1)], "data": [TABLE[:2], TABLE[2:3]]})
add(
    "DynamicPartition",
    {"data": TABLE},
    fixed={"partitions": ints(1, 0, 1, 1, 0)},
    attributes={"num_partitions": 2},
)
add("Bucketize", {"input": floats(-2, -1, 0.5, 1, 7)}, attributes={"boundaries": [-1.0, 1.0, 3.0]})
add("LowerBound", {"sorted_inputs": floats(1, 2, 2, 3)[None], "values": floats(2, 0)[None]})
add("UpperBound", {"sorted_inputs": floats(1, 2, 2, 3)[None], "values": floats(2, 0)[None]})

# --- contractions --------------------------------------------------------------------------

add("MatMul", {"a": normal(3, 4), "b": normal(4, 5)})
add(
    "MatMul",
    {"a": normal(4, 3), "b": normal(5, 4)},
    attributes={"transpose_a": True, "transpose_b": True},
)
add("BatchMatMulV2", {"x": normal(2, 3, 4), "y": normal(1, 4, 5)})
add(
    "BatchMatMulV2",
    {"x": normal(2, 4, 3), "y": normal(2, 5, 4)},
    attributes={"adj_x": True, "adj_y": True},
)
add("BiasAdd", {"value": IMAGE, "bias": normal(8)})
add("BiasAdd", {"value": IMAGE, "bias": normal(4)}, attributes={"data_format": "NCHW"})
add("BiasAddGrad", {"out_backprop": IMAGE}, gradients=False)
for size in (7, 8):
    for padding in ("SAME", "VALID"):
        for stride in (1, 2, 3):
            add(
                "Conv2D",
                {"input": normal(2, size, 6, 4), "filter": normal(3, 2, 4, 5)},
                attributes={"strides": [1, stride, stride, 1], "padding": padding},
            )
            add(
                "DepthwiseConv2dNative",
                {"input": normal(2, size, 6, 4), "filter": normal(3, 2, 4, 2)},
                attributes={"strides": [1, stride, stride, 1], "padding": padding},
            )
            add(
                "MaxPool",
                {"input": normal(2, size, 6, 3)},
                attributes={
                    "ksize": [1, 3, 2, 1],
                    "strides": [1, stride, stride, 1],
                    "padding": padding,
                },
            )
            add(
                "AvgPool",
                {"value": normal(2, size, 6, 3)},
                attributes={
                    "ksize": [1, 3, 2, 1],
                    "strides": [1, stride, stride, 1],
                    "padding": padding,
                },
            )
            output = [
                -(-(side if padding == "SAME" else side - kernel + 1) // stride)
                for side, kernel in ((size, 3), (6, 2))
            ]
            add(
                "Conv2DBackpropInput",
                {"filter": normal(3, 2, 4, 5), "out_backprop": normal(2, *output, 5)},
                fixed={"input_sizes": ints(2, size, 6, 4)},
                attributes={"strides": [1, stride, stride, 1], "padding": padding},
            )
            add(
                "Conv2DBackpropFilter",
                {"input": normal(2, size, 6, 4), "out_backprop": normal(2, *output, 5)},
                fixed={"filter_sizes": ints(3, 2, 4, 5)},
                attributes={"strides": [1, stride, stride, 1], "padding": padding},
                gradients=False,
            )
            window = {"ksize": [1, 3, 2, 1], "strides": [1, stride, stride, 1], "padding": padding}
            pooled = raw.MaxPool(input=normal(2, size, 6, 3), **window).numpy()
            around = {"orig_input": normal(2, size, 6, 3), "orig_output": pooled}
            add(
                "MaxPoolGrad",
                {"grad": normal(*pooled.shape, seed=1)},
                fixed=around,
                attributes=window,
            )
            add(
                "MaxPoolGradGrad",
                {"grad": normal(2, size, 6, 3, seed=1)},
                fixed=around,
                attributes=window,
            )
            add(
                "AvgPoolGrad",
                {"grad": normal(*pooled.shape, seed=1)},
                fixed={"orig_input_shape": ints(2, size, 6, 3)},
                attributes=window,
            )
            add(
                "DepthwiseConv2dNativeBackpropFilter",
                {"input": normal(2, size, 6, 4), "out_backprop": normal(2, *output, 8)},
                fixed={"filter_sizes": ints(3, 2, 4, 2)},
                attributes={"strides": [1, stride, stride, 1], "padding": padding},
            )
add(
    "MaxPool",
    {"input": np.zeros((1, 4, 4, 1), "f")},
    attributes={"ksize": [1, 3, 3, 1], "strides": [1, 1, 1, 1], "padding": "SAME"},
)
add(
    "Conv2D",
    {"input": normal(2, 9, 9, 4), "filter": normal(3, 3, 4, 5)},
    attributes={"strides": [1, 1, 1, 1], "padding": "SAME", "dilations": [1, 2, 2, 1]},
    gradients=False,
)
add(
    "Conv2D",
    {"input": normal(2, 9, 9, 4), "filter": normal(3, 3, 4, 5)},
    attributes={
        "strides": [1, 2, 2, 1],
        "padding": "EXPLICIT",
        "explicit_paddings": [0, 0, 1, 2, 0, 1, 0, 0],
    },
)
add(
    "Conv3D",
    {"input": normal(1, 5, 6, 7, 2), "filter": normal(3, 2, 2, 2, 3)},
    attributes={"strides": [1, 2, 1, 1, 1], "padding": "SAME"},
)
add(
    "MaxPool3D",
    {"input": normal(1, 5, 6, 7, 2)},
    attributes={"ksize": [1, 2, 2, 2, 1], "strides": [1, 2, 2, 2, 1], "padding": "SAME"},
)
add(
    "AvgPool3D",
    {"input": normal(1, 5, 6, 7, 2)},
    attributes={"ksize": [1, 2, 2, 2, 1], "strides": [1, 2, 2, 2, 1], "padding": "SAME"},
)
CUBES = {"ksize": [1, 2, 2, 2, 1], "strides": [1, 2, 2, 2, 1], "padding": "SAME"}
POOLED = raw.MaxPool3D(input=normal(1, 5, 6, 7, 2), **CUBES).numpy()
add(
    "MaxPool3DGrad",
    {"grad": normal(*POOLED.shape, seed=1)},
    fixed={"orig_input": normal(1, 5, 6, 7, 2), "orig_output": POOLED},
    attributes=CUBES,
)
add(
    "MaxPool3DGradGrad",
    {"grad": normal(1, 5, 6, 7, 2, seed=1)},
    fixed={"orig_input": normal(1, 5, 6, 7, 2), "orig_output": POOLED},
    attributes=CUBES,
)
add(
    "AvgPool3DGrad",
    {"grad": normal(*POOLED.shape, seed=1)},
    fixed={"orig_input_shape": ints(1, 5, 6, 7, 2)},
    attributes=CUBES,
)
add(
    "Conv3DBackpropFilterV2",
    {"input": normal(1, 5, 6, 7, 2), "out_backprop": normal(1, 3, 6, 7, 3)},
    fixed={"filter_sizes": ints(3, 2, 2, 2, 3)},
    attributes={"strides": [1, 2, 1, 1, 1], "padding": "SAME"},
    gradients=False,
)
add(
    "Cholesky",
    {"input": (SQUARE @ SQUARE.transpose(0, 2, 1) + 4 * np.eye(4)).astype("f")},
    tolerance=1e-4,
)
add("MatrixInverse", {"input": SQUARE + 4 * np.eye(4, dtype="f")}, tolerance=1e-4)
add("MatrixDeterminant", {"input": SQUARE}, tolerance=1e-4)
add(
    "MatrixSolve",
    {"matrix": SQUARE + 4 * np.eye(4, dtype="f"), "rhs": normal(2, 4, 2)},
    tolerance=1e-4,
)

# --- networks ------------------------------------------------------------------------------

LOGITS = np.concatenate([normal(3, 5), floats(200, -200, 0, 1, 2)[None]])
add(
    "SparseSoftmaxCrossEntropyWithLogits",
    {"features": LOGITS},
    fixed={"labels": ints(0, 4, 2, 1)},
    outputs=slice(1),
)
add(
    "SoftmaxCrossEntropyWithLogits",
    {"features": LOGITS, "labels": uniform(4, 5)},
    outputs=slice(1),
)
add(
    "SoftmaxCrossEntropyWithLogits",
    {"features": LOGITS, "labels": np.eye(5, dtype="f")[:4]},
    gradients=False,
)
BATCH = normal(4, 3, 3, 2)
for training in (True, False):
    add(
        "FusedBatchNormV3",
        {"x": BATCH, "scale": normal(2), "offset": normal(2, seed=1)},
        fixed={"mean": normal(2, seed=2), "variance": uniform(2, low=1, high=2)},
        attributes={"is_training": training, "epsilon": 1e-3},
        outputs=slice(1),
        tolerance=1e-4,
    )
    add(
        "FusedBatchNormGradV3",
        {"y_backprop": normal(4, 3, 3, 2, seed=3), "x": BATCH, "scale": normal(2)},
        fixed={
            "reserve_space_1": BATCH.mean((0, 1, 2)),
            "reserve_space_2": BATCH.var((0, 1, 2)),
            "reserve_space_3": floats(),
        },
        attributes={"is_training": training, "epsilon": 1e-3},
        outputs=slice(3),
        tolerance=1e-4,
    )
add("LRN", {"input": normal(2, 2, 2, 7)}, tolerance=1e-4)
CHANNELS = {"input_image": normal(2, 2, 2, 7), "output_image": normal(2, 2, 2, 7, seed=1)}
add("LRNGrad", {"input_grads": normal(2, 2, 2, 7, seed=2)}, fixed=CHANNELS, gradients=False)
for name in ["Relu", "Relu6", "LeakyRelu", "Softplus", "Softsign"]:
    add(f"{name}Grad", {"gradients": normal(8), "features": TIES_X}, gradients=False)
for name in ["Elu", "Selu"]:
    add(f"{name}Grad", {"gradients": normal(8), "outputs": TIES_X}, gradients=False)
for corners in ({}, {"align_corners": True}, {"half_pixel_centers": True}):
    for sizes in ((8, 3), (2, 12), (1, 1)):
        add(
            "ResizeNearestNeighbor",
            {"images": IMAGE},
            fixed={"size": ints(*sizes)},
            attributes=corners,
        )
        add("ResizeBilinear", {"images": IMAGE}, fixed={"size": ints(*sizes)}, attributes=corners)
        add(
            "ResizeBilinearGrad",
            {"grads": normal(2, *sizes, 8)},
            fixed={"original_image": IMAGE},
            attributes=corners,
        )
        add(
            "ResizeNearestNeighborGrad",
            {"grads": normal(2, *sizes, 8)},
            fixed={"size": ints(4, 6)},
            attributes=corners,
            gradients=False,
        )
