"""Online features: `port` says what, `feast` and `memory` say how, `open_features` chooses."""

from __future__ import annotations

from pathlib import Path

from operators.errors import ConfigError
from stores.features.port import Features, OnlineRow, View, view_name, views_of

__all__ = ["Features", "OnlineRow", "View", "open_features", "view_name", "views_of"]


def open_features(url: str) -> Features:
    """Open the online store that `url` names; nothing is read or imported before it is used.

    `feast:<path of the feature repository>`, with retries while its store is away; `memory:`, gone with
    the process; `none:`, which keeps nothing. Raises ConfigError for anything else.
    """
    scheme, _, rest = url.partition(":")
    match scheme:
        case "feast" if rest:
            from stores.features.feast import FeastFeatures
            from stores.features.retry import RetryingFeatures
            from stores.patience import Patience

            return RetryingFeatures(FeastFeatures(Path(rest)), Patience())
        case "memory":
            from stores.features.memory import MemoryFeatures

            return MemoryFeatures()
        case "none":
            from stores.features.none import NoFeatures

            return NoFeatures()
        case _:
            message = f"online store `{url}` is unknown; write `feast:<feature repository>`, `memory:` or `none:`"
            raise ConfigError(message)
