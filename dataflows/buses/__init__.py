"""PORT buses: where signals come from and late events go to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from operators.errors import ConfigError

if TYPE_CHECKING:
    from dataflows.buses.port import Bus

__all__ = ["open_bus"]


def open_bus(url: str, *, event_bytes_max: int) -> Bus:
    """Open the bus at `folder:<path>` or `memory:`.

    Raises ConfigError for any other scheme.
    """
    scheme, _, rest = url.partition(":")
    match scheme:
        case "folder":
            from dataflows.buses.folder import FolderBus

            return FolderBus(rest, event_bytes_max=event_bytes_max)
        case "memory":
            from dataflows.buses.memory import MemoryBus

            return MemoryBus()
        case _:
            raise ConfigError(f"bus scheme `{scheme}` is not one of folder, memory")
