"""What a guard needs of the place where it keeps states of a run."""

from __future__ import annotations

from typing import Protocol


class SnapshotStore(Protocol):
    """Where a guard keeps states of the run; see `Snapshots`."""

    @property
    def steps(self) -> tuple[int, ...]:
        """Of the snapshots that `restore` can reach, newest first."""

    @property
    def latest_step(self) -> int | None:
        """Of the newest snapshot."""

    @property
    def is_ready(self) -> bool:
        """Whether there is a state to take a snapshot of."""

    def take(self, step: int) -> None:
        """Takes a snapshot before a step."""

    def bad_in_latest(self) -> list[str]:
        """What is not finite in the newest one, by name."""

    def restore(self, depth: int = 0) -> int:
        """Goes back to a snapshot, and says to which step."""

    def drop_latest(self) -> None:
        """Forgets the newest one."""

    def clear(self) -> None:
        """Frees them all."""

    def take_buffers(self) -> None:
        """Notes what a step changes before its update is decided on."""

    def restore_buffers(self) -> None:
        """Puts that back."""

    def take_settings(self) -> None:
        """Notes what a loop changes after a step."""

    def restore_settings(self) -> None:
        """Puts that back."""
