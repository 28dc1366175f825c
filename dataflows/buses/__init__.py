"""PORT buses: where signals come from, and where results and what is set aside go to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from operators.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from threading import Event

    from dataflows.buses.kafka import OffsetReset
    from dataflows.buses.port import WritableBus

__all__ = ["open_bus"]


def open_bus(  # what a bus may be told, each once
    url: str,
    *,
    event_bytes_max: int,
    properties: Mapping[str, str] | None = None,
    offset_reset: OffsetReset = "error",
    at_least_once: bool = False,
    stopped: Event | None = None,
) -> WritableBus:
    """Open the bus at `folder:<path>`, `memory:` or `kafka:<host:port,…>`.

    properties, offset_reset, at_least_once, stopped: of Kafka's, see KafkaBus. Raises ConfigError for another scheme.
    """
    scheme, _, rest = url.partition(":")
    match scheme:
        case "folder":
            from dataflows.buses.folder import FolderBus

            return FolderBus(rest, event_bytes_max=event_bytes_max)
        case "kafka":
            from dataflows.buses.kafka import KafkaBus

            return KafkaBus(
                rest,
                properties=properties or {},
                offset_reset=offset_reset,
                at_least_once=at_least_once,
                stopped=stopped,
            )
        case "memory":
            from dataflows.buses.memory import MemoryBus

            return MemoryBus()
        case _:
            raise ConfigError(f"bus scheme `{scheme}` is not one of folder, kafka, memory")
