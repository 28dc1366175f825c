"""PORT buses: where signals come from and late events go to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from operators.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dataflows.buses.kafka import OffsetReset
    from dataflows.buses.port import BoundedBus, WritableBus

__all__ = ["open_bus", "open_writable_bus"]


def open_bus(
    url: str, *, event_bytes_max: int, properties: Mapping[str, str] | None = None, offset_reset: OffsetReset = "error"
) -> BoundedBus:
    """Open the bus at `folder:<path>`, `memory:` or `kafka:<host:port,…>` for reading.

    properties, offset_reset: of Kafka's, see KafkaBus. Raises ConfigError for any other scheme.
    """
    scheme, _, rest = url.partition(":")
    match scheme:
        case "kafka":
            from dataflows.buses.kafka import KafkaBus

            return KafkaBus(rest, properties=properties or {}, offset_reset=offset_reset)
        case "folder" | "memory":
            return open_writable_bus(url, event_bytes_max=event_bytes_max)
        case _:
            raise ConfigError(f"bus scheme `{scheme}` is not one of folder, kafka, memory")


def open_writable_bus(url: str, *, event_bytes_max: int) -> WritableBus:
    """Open the bus at `folder:<path>` or `memory:` for reading and writing.

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
