"""How PyTorch, TensorFlow and Keras spell the same functions."""

from __future__ import annotations

import ast
from typing import Literal

from ranum.errors import PatchError
from ranum.repair._operand import Names

Library = Literal["torch", "tensorflow", "keras"]

_HOMES = {"F": "torch.nn.functional", "ops": "keras.ops", "tf": "tensorflow"}
_NAMES: dict[str, tuple[str, str, str]] = {
    "clip": ("", "tf.clip_by_value", "ops.clip"),
    "log_softmax": ("torch.log_softmax", "tf.nn.log_softmax", "ops.log_softmax"),
    "logaddexp": ("torch.logaddexp", "", "ops.logaddexp"),
    "logsigmoid": ("F.logsigmoid", "tf.math.log_sigmoid", "ops.log_sigmoid"),
    "logsumexp": ("torch.logsumexp", "tf.reduce_logsumexp", "ops.logsumexp"),
    "maximum": ("torch.maximum", "tf.maximum", "ops.maximum"),
    "minimum": ("torch.minimum", "tf.minimum", "ops.minimum"),
    "exp": ("torch.exp", "tf.exp", "ops.exp"),
    "sigmoid": ("torch.sigmoid", "tf.sigmoid", "ops.sigmoid"),
    "softmax": ("torch.softmax", "tf.nn.softmax", "ops.softmax"),
    "softplus": ("F.softplus", "tf.math.softplus", "ops.softplus"),
    "tanh": ("torch.tanh", "tf.tanh", "ops.tanh"),
    "where": ("torch.where", "tf.where", "ops.where"),
    "cross_entropy": (
        "F.binary_cross_entropy_with_logits",
        "tf.nn.sigmoid_cross_entropy_with_logits",
        "",
    ),
    "normalize": ("F.normalize", "tf.math.l2_normalize", "ops.normalize"),
    "math.log": ("math.log", "math.log", "math.log"),
    "finfo": ("torch.finfo", "", ""),
}
"""What a function is called in PyTorch, TensorFlow and Keras; "" where it has none."""
_COLUMNS: tuple[Library, ...] = ("torch", "tensorflow", "keras")


def library(names: Names, expression: ast.AST, *, is_graph: bool) -> Library:
    """The library that an expression is written in.

    Args:
        names: Of the file.
        expression: Decides by the functions that it calls.
        is_graph: True if its operators are a TensorFlow graph's.
    """
    paths = {name: _plain(path) for name, path in names.modules()}
    for part in ast.walk(expression):
        if isinstance(part, ast.Call):
            root: ast.AST = part.func
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name):
                path = paths.get(root.id) or names.home(root.id)
                for prefix in ("torch", "tensorflow.keras", "keras", "tensorflow"):
                    if f"{path}.".startswith(prefix + "."):
                        return "keras" if "keras" in prefix else prefix  # type: ignore[return-value]
    used = {path.partition(".")[0] for path in paths.values()}
    order: tuple[Library, ...] = ("tensorflow", "keras") if is_graph else ("torch", "keras")
    return next((one for one in order if one in used), order[0])


def spelled(names: Names, library: Library, function: str) -> str:
    """How a file would call a function: "torch.log_softmax".

    Raises:
        PatchError: If the library has no such function, or the file no name for the library.
    """
    path = _NAMES[function][_COLUMNS.index(library)] if function in _NAMES else function
    alias, _, rest = path.partition(".")
    home = _HOMES.get(alias, alias)
    if not path:
        raise PatchError(f"{library} has no {function}.")
    for name, meaning in names.modules():
        if _plain(meaning) == home:
            return f"{name}.{rest}"
    for name, meaning in names.modules():
        if home.startswith(_plain(meaning) + "."):
            return f"{name}.{home.removeprefix(_plain(meaning) + '.')}.{rest}"
    raise PatchError(f"the file has no name for {home}; import it.")


def _plain(path: str) -> str:
    """The public path of a module: "tensorflow.math", not "tensorflow._api.v2.math"."""
    return path.replace("._api.v2", "").replace("keras._tf_keras.keras", "tensorflow.keras")
