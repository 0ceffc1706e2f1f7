"""What Keras trains on, as batches: datasets, and arrays that `fit` would cut into batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader

EXAMPLE = 32
"""Rows of whole arrays that are the example: what `fit` makes a batch of by default."""
_DATASETS = frozenset({"DatasetV2", "PyDataset"})


def is_dataset(value: Any) -> bool:
    """True for what gives batches: a dataset of TensorFlow or Keras, a loader, a generator."""
    return isinstance(value, (DataLoader, Iterator)) or any(
        cls.__name__ in _DATASETS and cls.__module__.partition(".")[0] in ("tensorflow", "keras")
        for cls in type(value).__mro__
    )


def keras_batches(data: Any) -> Any:
    """Data for a Keras model: whole arrays `(x, y)` are two batches, an example and the rest."""
    leaves = tree_leaves(data)
    arrays = isinstance(data, (tuple, dict)) and all(map(_is_array, leaves))
    rows = {leaf.shape[0] for leaf in leaves} if arrays else set()
    if len(rows) != 1:
        return data
    parts = [tree_map(lambda leaf: leaf[:EXAMPLE], data)]
    if max(rows) > EXAMPLE:
        parts.append(tree_map(lambda leaf: leaf[EXAMPLE:], data))
    return parts


def _is_array(leaf: Any) -> bool:
    is_array = isinstance(leaf, Tensor) or (hasattr(leaf, "dtype") and hasattr(leaf, "shape"))
    return is_array and len(leaf.shape) > 0
