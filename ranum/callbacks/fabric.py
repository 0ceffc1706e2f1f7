"""A guard for loops on Lightning Fabric."""

from __future__ import annotations

from ranum.callbacks._fabric import FabricGuard

__all__ = ["FabricGuard"]
