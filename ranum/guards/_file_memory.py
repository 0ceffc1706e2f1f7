"""A snapshot's tensors in a file, where memory is scarce."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ranum.guards._memory import Copy, Memory, are_equal, bad_names, bit_sums, own_part
from ranum.guards._shards import layout_of


class FileMemory(Memory):
    """The tensors of one snapshot, in a file without a name: it goes away with the process.

    Tensors that are not strided stay in memory.

    Args:
        folder: Where the file is; that of `tempfile` if None.
    """

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__(on_host=True)
        self._file: Any = tempfile.TemporaryFile(  # noqa: SIM115 - open as long as this lives
            prefix="ranum-", dir=folder, buffering=0
        )
        self._closing = weakref.finalize(self, self._file.close)
        self._live: list[Tensor] = []
        self._places: dict[int, tuple[int, Copy]] = {}
        self._end = 0
        self._bad: set[int] = set()
        self._file_sums: list[Tensor] = []

    def recycle(self) -> None:
        """The file may be written again."""
        super().recycle()
        self._live, self._places, self._bad, self._end = [], {}, set(), 0
        self._file_sums = []

    def store(self, live: Tensor) -> Copy:
        """A place in the file, which has the values of `live` after `flush`."""
        part = own_part(live)
        if part.layout is not torch.strided:
            return super().store(live)
        copied = Copy(torch.empty_like(part, device="meta"), live.device, layout_of(live))
        self._places[id(copied)] = (self._end, copied)
        self._live.append(part)
        self._end += part.nbytes
        return copied

    @torch.no_grad()
    def flush(self) -> None:
        """Writes what was stored.

        Raises:
            OSError: If there is no room; the file holds nothing then.
        """
        super().flush()
        self._file.seek(0)
        try:
            for (_, copied), live in zip(self._places.values(), self._live, strict=True):
                whole = live.to("cpu").contiguous()
                self._file_sums += bit_sums([whole])
                if bad_names([("", whole)]):
                    self._bad.add(id(copied))
                _write(self._file, whole)
        except BaseException:
            self.recycle()
            self._file.truncate(0)
            raise
        self._live = []

    def is_intact(self) -> bool:
        """False if the file does not hold the bits that were written, or cannot be read."""
        try:
            sums = bit_sums(self._read(copied) for _, copied in self._places.values())
        except OSError:
            return False
        return are_equal(self._file_sums, sums) and super().is_intact()

    def write_to(self, pairs: Iterable[tuple[Tensor, Copy]]) -> None:
        """Puts copies back into tensors in use."""
        pairs = list(pairs)
        super().write_to(pair for pair in pairs if id(pair[1]) not in self._places)
        with torch.no_grad():
            for target, copied in pairs:
                if id(copied) in self._places:
                    target.copy_(self._read(copied))

    def bad(self, named: Sequence[tuple[str, Copy]]) -> list[str]:
        """Names of copies that were not finite."""
        in_memory = [(name, copied) for name, copied in named if id(copied) not in self._places]
        bad = [name for name, copied in named if id(copied) in self._bad]
        return [*super().bad(in_memory), *bad]

    def close(self) -> None:
        """Removes the file."""
        super().close()
        self._closing()

    def _read(self, copied: Copy) -> Tensor:
        place, _ = self._places[id(copied)]
        size = copied.tensor.nbytes
        data = torch.empty(size, dtype=torch.uint8)
        self._file.seek(place)
        view = data.numpy().data
        while view.nbytes:
            count = self._file.readinto(view)
            if not count:
                raise OSError(f"the snapshot's file ends {view.nbytes} bytes early")
            view = view[count:]
        return data.view(copied.tensor.dtype).reshape(copied.tensor.shape)


def _write(file: Any, whole: Tensor) -> None:
    view = whole.reshape(-1).view(torch.uint8).numpy().data
    while view.nbytes:
        view = view[file.write(view) :]
