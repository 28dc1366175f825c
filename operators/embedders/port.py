"""What an embedder promises: texts become vectors, near to each other where the texts are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from operators.errors import SkippableError

Vectors = NDArray[np.float32]
"""float32 (n, dim), C-contiguous, finite, rows of length 1."""


class Embedder(Protocol):
    """Makes the vectors of one space. Several threads may share it."""

    @property
    def space(self) -> str:
        """Name for all that shapes the vectors; those of different spaces are never compared."""
        ...

    @property
    def dim(self) -> int:
        """Numbers of a vector."""
        ...

    @property
    def tokens_max(self) -> int | None:
        """A text of more tokens may be cut there before it is embedded; None: no text is."""
        ...

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return one vector a text, in their order; none for none.

        A function of each text alone: neither its neighbours nor the size of the call change its vector. Safe
        to repeat. Raises ValueError for an empty text, SkippableError if a text is refused (nothing of the call is then
        embedded; `embed_each` finds which), RetryableError while a server is away or busy, ConfigError for
        what a person must mend.
        """
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens of each text, as tokens_max counts them: uncut, special ones included.

        An estimate where the model's own tokens are not known. Embeds nothing and calls no server.
        """
        ...

    def close(self) -> None:
        """Let go of model or connections; `embed` then raises ValueError. Safe to repeat."""
        ...


def embed_each(embedder: Embedder, texts: Sequence[str]) -> tuple[Vectors, dict[int, SkippableError]]:
    """Embed what can be: vectors of all texts, zero for those refused, and the refusals by index.

    A call that is refused is cut in halves until the texts it fails for stand alone. Raises as `embed` does, but
    for SkippableError.
    """
    vectors = np.zeros((len(texts), embedder.dim), np.float32)
    refused: dict[int, SkippableError] = {}
    parts = [range(len(texts))]
    while parts:
        part = parts.pop()
        if not part:
            continue
        try:
            vectors[part.start : part.stop] = embedder.embed(texts[part.start : part.stop])
        except SkippableError as error:
            if len(part) == 1:
                refused[part.start] = error
            else:
                middle = part.start + len(part) // 2
                parts += [range(middle, part.stop), range(part.start, middle)]
    return vectors, refused


def check_texts(texts: Sequence[str]) -> None:
    """Raise ValueError for an empty text: no server embeds one."""
    for index, text in enumerate(texts):
        if not text:
            raise ValueError(f"text {index} of {len(texts)} is empty")


def unit_rows(vectors: NDArray[np.float64] | NDArray[np.float32]) -> Vectors:
    """Rows scaled to length 1, which none of them may be without."""
    rows = np.asarray(vectors, np.float64)
    lengths = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    return np.ascontiguousarray(rows / lengths[:, np.newaxis], np.float32)
