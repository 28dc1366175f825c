"""all-MiniLM-L6-v2 with 8-bit weights in ONNX Runtime, on one core, without a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from operators.embedders.port import Vectors, check_texts, unit_rows
from operators.errors import MissingExtraError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession  # type: ignore[import-untyped]
    from tokenizers import Tokenizer

_QUIET = 3


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """model: ONNX bytes that give `last_hidden_state`. tokenizer: tokenizer.json of Hugging Face tokenizers."""

    model: bytes
    tokenizer: str


class LocalEmbedder:
    """`Embedder` by a sentence transformer: mean of the last hidden state over the tokens, scaled to length 1.

    Texts run one by one: on a CPU that is faster than batches, whose padding is computed too, and it keeps a
    text's bits free of its neighbours. The model is loaded by the first call that needs it (by each of several
    that come at once, of which the last stays).
    """

    space = "local-minilm-l6-int8-384"
    dim = 384
    tokens_max = 256

    def __init__(self, load: Callable[[], ModelFiles]) -> None:
        """load: gives the model's files."""
        self._load = load
        self._closed = False

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Run the model on each text; what is behind its first 256 tokens is left out."""
        if self._closed:
            raise ValueError("the embedder is closed")
        check_texts(texts)
        if not texts:
            return np.empty((0, self.dim), np.float32)
        return np.stack([self._model.embed(text) for text in texts])

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Count the model's own tokens."""
        return [len(self._model.tokens(text)) for text in texts]

    def close(self) -> None:
        """Let go of the model."""
        self._closed = True
        self.__dict__.pop("_model", None)

    @cached_property
    def _model(self) -> _Model:
        return _Model(self._load(), self.tokens_max)


class _Model:
    """The loaded model. Sessions and tokenizers may be shared by threads."""

    def __init__(self, files: ModelFiles, tokens_max: int) -> None:
        try:
            from onnxruntime import InferenceSession, SessionOptions
            from tokenizers import Tokenizer
        except ImportError as exc:
            raise MissingExtraError("the embedder `local`", "local") from exc
        options = SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = _QUIET
        self._session: InferenceSession = InferenceSession(files.model, options, providers=["CPUExecutionProvider"])
        self._tokenizer: Tokenizer = Tokenizer.from_str(files.tokenizer)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokens_max = tokens_max

    def tokens(self, text: str) -> list[int]:
        """Ids with those that begin and end a text."""
        # Lone surrogates come from broken JSON and file names; the tokenizer takes only what has an UTF-8 form.
        valid = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        ids: list[int] = self._tokenizer.encode(valid).ids
        return ids

    def embed(self, text: str) -> Vectors:
        """The vector of one text: float32 (dim,)."""
        ids = self.tokens(text)
        if len(ids) > self._tokens_max:
            ids = [*ids[: self._tokens_max - 1], ids[-1]]
        row = np.array([ids], np.int64)
        feed = {"input_ids": row, "attention_mask": np.ones_like(row), "token_type_ids": np.zeros_like(row)}
        hidden = self._session.run(["last_hidden_state"], feed)[0]
        vector: Vectors = unit_rows(hidden.mean(axis=1, dtype=np.float64))[0]
        return vector
