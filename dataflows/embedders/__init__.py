"""Embedders: `open_embedder` chooses the adapter by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from operators.embedders.port import Embedder
from operators.errors import ConfigError

if TYPE_CHECKING:
    from dataflows.embedders.openai import OpenAIServer


def open_embedder(kind: str, *, server: OpenAIServer | None = None, threads: int = 1) -> Embedder:
    """Open `stub`, `local` or, with its server, `openai`. Nothing is loaded or called before it is needed.

    threads: texts that `local` embeds at the same time, one on each core. Raises ConfigError for anything else,
    MissingExtraError if a package is not installed.
    """
    match kind:
        case "stub":
            from operators.embedders.stub import StubEmbedder

            return StubEmbedder()
        case "local":
            from dataflows.embedders.model_files import load_minilm
            from dataflows.embedders.threads import ThreadedEmbedder
            from operators.embedders.local import LocalEmbedder

            local = LocalEmbedder(load_minilm)
            return local if threads == 1 else ThreadedEmbedder(local, threads)
        case "openai" if server is not None:
            from dataflows.embedders.openai import OpenAIEmbedder

            return OpenAIEmbedder(server)
        case "openai":
            raise ConfigError("embedder `openai` needs a server: its base URL, model and key")
        case _:
            raise ConfigError(f"embedder `{kind}` is not one of stub, local, openai")
