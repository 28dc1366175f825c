"""An embedder that computes on one core, on several."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from operators.embedders.port import Embedder, Vectors


class ThreadedEmbedder:
    """`Embedder` that gives each of some threads one text at a time; vectors and their order stay the same."""

    def __init__(self, inner: Embedder, threads: int) -> None:
        """inner: must leave the interpreter lock while it computes, or nothing is won. Owned from now on."""
        self.space = inner.space
        self.dim = inner.dim
        self.tokens_max = inner.tokens_max
        self._inner = inner
        self._pool = ThreadPoolExecutor(threads, "embedder")

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Embed each text by the inner embedder."""
        if len(texts) < 2:  # also has the inner one load its model once, not in every thread
            return self._inner.embed(texts)
        first = self._inner.embed(texts[:1])
        rest = self._pool.map(lambda text: self._inner.embed([text]), texts[1:])
        return np.concatenate([first, *rest])

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """As the inner embedder counts."""
        return self._inner.count_tokens(texts)

    def close(self) -> None:
        """Stop the threads and close the inner embedder."""
        self._pool.shutdown()
        self._inner.close()
