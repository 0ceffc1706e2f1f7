"""Where snapshots are kept: on the device, in host memory or on disk, by what is free."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ranum.errors import ArgumentError
from ranum.guards._file_memory import FileMemory
from ranum.guards._memory import Memory, own_part

PLACES = ("auto", "device", "host", "disk")
SHARE_OF_DEVICE = 0.25
"""Of a device's free memory, for snapshots: the rest is for activations."""
SHARE_OF_HOST = 0.5
"""Of the host's free memory: loaders and their workers have to live there too."""
SHARE_OF_DISK = 0.5
"""Of the free disk: checkpoints need theirs."""

Maker = Callable[[], Memory]


def checked_place(place: str | Path) -> str | Path:
    """One of `PLACES`, or a folder.

    Raises:
        ArgumentError: If it is neither.
    """
    if place in PLACES or (isinstance(place, (str, Path)) and Path(place).is_dir()):
        return place
    raise ArgumentError(
        f"snapshot_to must be one of {PLACES} or a folder that exists; got {place!r}."
    )


def makers(place: str | Path, nbytes: Mapping[torch.device, int]) -> list[tuple[str, Maker]]:
    """How to make the memory of a snapshot, best first, each with a word for where that is.

    More than one only for "auto": the next one where the one before turns out to be full.

    Args:
        place: One of `PLACES`, or a folder.
        nbytes: Of all snapshots together, by the device of what they copy.
    """
    known: dict[str, Maker] = {
        "device": Memory,
        "host": partial(Memory, on_host=True),
        "disk": FileMemory,
    }
    if place != "auto":
        if place in known:
            return [(str(place), known[str(place)])]
        return [("disk", partial(FileMemory, Path(place)))]
    whole = sum(nbytes.values())
    are_on_host = all(device.type == "cpu" for device in nbytes)
    fits_on_host = whole <= SHARE_OF_HOST * _or_all(available_memory())
    fits_on_disk = whole <= SHARE_OF_DISK * shutil.disk_usage(tempfile.gettempdir()).free
    order = [
        name
        for name, fits in (
            ("device", fits_on_host if are_on_host else _fit_on_devices(nbytes)),
            ("host", fits_on_host and not are_on_host),
            ("disk", fits_on_disk),
        )
        if fits
    ]
    return [(name, known[name]) for name in order or ["host"]]


def expected_bytes(
    live: Iterable[Tensor | None], optimizers: Iterable[Any], copies: int
) -> dict[torch.device, int]:
    """Of all snapshots together; an optimizer without state yet is taken for Adam.

    Args:
        live: Parameters and buffers.
        optimizers: Whose state is copied too.
        copies: Snapshots.
    """
    found: dict[torch.device, int] = {}
    states = [entry for one in optimizers for entry in one.state.values()]
    moments = [v for entry in states if isinstance(entry, dict) for v in entry.values()]
    for tensor in (*live, *moments):
        if isinstance(tensor, Tensor):
            share = 1 if states or not tensor.requires_grad else 3
            size = own_part(tensor).nbytes * share * copies
            found[tensor.device] = found.get(tensor.device, 0) + size
    return found


def available_memory() -> int | None:
    """Bytes that are free on this machine or in this container, for one of its processes."""
    free: list[int] = []
    with suppress(OSError, ValueError, AttributeError):
        free.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    with suppress(OSError, ValueError, StopIteration):
        with open("/proc/meminfo", encoding="ascii") as file:
            line = next(line for line in file if line.startswith("MemAvailable"))
        free = [int(line.split()[1]) * 1024]
    with suppress(OSError, ValueError):
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            most = int(file.read())
        with open("/sys/fs/cgroup/memory.current", encoding="ascii") as file:
            free.append(most - int(file.read()))
    if not free:
        return None
    processes = os.environ.get("LOCAL_WORLD_SIZE", "1")  # torchrun's, all on this machine
    return min(free) // max(int(processes) if processes.isdigit() else 1, 1)


def _or_all(value: int | None) -> float:
    return float("inf") if value is None else value


def _fit_on_devices(nbytes: Mapping[torch.device, int]) -> bool:
    return all(
        need <= SHARE_OF_DEVICE * _free_on(device)
        for device, need in nbytes.items()
        if device.type == "cuda"
    )


def _free_on(device: torch.device) -> int:
    free, _ = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + reserved
