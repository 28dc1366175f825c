"""Embeddings of any server that speaks OpenAI's API, theirs or one beside you."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING

import numpy as np
import orjson
from pydantic import SecretStr

from operators.embedders.port import Vectors, check_texts, unit_rows
from operators.errors import (
    ConfigError,
    HeadraceError,
    MissingExtraError,
    SkippableError,
    ThrottledError,
    UnavailableError,
)

if TYPE_CHECKING:
    import httpx

OPENAI_URL = "https://api.openai.com/v1"

_DIMS = {"text-embedding-3-small": 1536, "text-embedding-3-large": 3072, "text-embedding-ada-002": 1536}
_CHARS_MAX = 400_000
"""Characters of one request: OpenAI takes 300,000 tokens, and a character is seldom more than one."""

_NUMBER_BYTES_MAX = 32
"""Bytes that a number takes in JSON, at most: an answer that is longer is not read to its end."""

_BYTES_PER_TOKEN = 4
_SHOWN = 200
_BUSY = {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE, 529}
_AWAY = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_EARLY}
_REFUSED = {HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY}
_NO_MONEY = "insufficient_quota"


@dataclass(frozen=True, slots=True)
class OpenAIServer:
    """Where and what to ask.

    base_url: up to and with `/v1`. dim: numbers of a vector; None where the model is one of OpenAI's own.
    shorten: ask for `dim` numbers of a model that has more (text-embedding-3); other servers may refuse
    that. key: None for a server that wants none. batch_max: texts of one request. timeout_s: for a whole request, since
    its time grows with the texts. tokens_max: tokens of a text.
    """

    model: str = "text-embedding-3-small"
    base_url: str = OPENAI_URL
    key: SecretStr | None = None
    dim: int | None = None
    shorten: bool = False
    batch_max: int = 64
    timeout_s: float = 60.0
    tokens_max: int = 8191


class OpenAIEmbedder:
    """`Embedder` by a server. Tries once: trying again is the caller's, with the wait that the error carries."""

    def __init__(self, server: OpenAIServer) -> None:
        """Check the settings; nothing is sent.

        Raises ConfigError if they cannot be right, MissingExtraError without httpx.
        """
        try:
            import httpx
        except ImportError as exc:
            raise MissingExtraError("the embedder `openai`", "openai") from exc
        dim = server.dim or _DIMS.get(server.model)
        if dim is None:
            raise ConfigError(f"the dimension of `{server.model}` is not known; say how many numbers its vectors have")
        try:
            url = httpx.URL(server.base_url)
        except httpx.InvalidURL as exc:
            raise ConfigError(f"the base URL of the embedding server is none: {exc}") from exc
        if url.scheme not in ("http", "https") or not url.host or url.userinfo:
            raise ConfigError("the base URL of the embedding server must be http(s)://host… without user or password")
        self.dim = dim
        self.space = f"openai-{server.model}-{dim}"
        self.tokens_max = server.tokens_max
        self._server = server
        self._url = f"{str(url).rstrip('/')}/embeddings"
        self._works = False
        self._client: httpx.Client | None = httpx.Client(timeout=server.timeout_s)

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Ask the server, `batch_max` texts at a time."""
        if self._client is None:
            raise ValueError("the embedder is closed")
        check_texts(texts)
        client, parts = self._client, [np.empty((0, self.dim), np.float32)]
        for batch in self._batches(texts):
            try:
                parts.append(self._ask(client, batch))
            except SkippableError as error:
                self._doubt(client, error)
                raise
        return np.concatenate(parts)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Estimate: a token for every four bytes begun."""
        return [math.ceil(len(text.encode("utf-8", "replace")) / _BYTES_PER_TOKEN) for text in texts]

    def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _batches(self, texts: Sequence[str]) -> Iterator[list[str]]:
        batch: list[str] = []
        chars = 0
        for text in texts:
            if batch and (len(batch) >= self._server.batch_max or chars + len(text) > _CHARS_MAX):
                yield batch
                batch, chars = [], 0
            batch.append(text)
            chars += len(text)
        if batch:
            yield batch

    def _doubt(self, client: httpx.Client, refusal: SkippableError) -> None:
        """Raise ConfigError if this server refuses the plainest of texts: then it is not the text that is wrong."""
        if self._works:
            return
        try:
            self._ask(client, ["text"])
        except SkippableError:
            raise ConfigError(f"{refusal}; it refuses any text, so look at base URL, model and dimension") from refusal

    def _ask(self, client: httpx.Client, texts: list[str]) -> Vectors:
        vectors = self._vectors(self._answer(client, texts), len(texts))
        self._works = True
        return vectors

    def _answer(self, client: httpx.Client, texts: list[str]) -> bytes:
        """The body of a good answer. Raises the error of ours that fits any other outcome."""
        import httpx

        # Lone surrogates come from broken JSON and file names; JSON on the wire is UTF-8 and has none.
        valid = [text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") for text in texts]
        body: dict[str, object] = {"model": self._server.model, "input": valid, "encoding_format": "float"}
        if self._server.shorten:
            body["dimensions"] = self.dim
        headers = {"content-type": "application/json"}
        if self._server.key is not None:
            headers["authorization"] = f"Bearer {self._server.key.get_secret_value()}"
        try:
            with client.stream("POST", self._url, content=orjson.dumps(body), headers=headers) as response:
                answer = self._read(response, len(texts))
        except httpx.TimeoutException as exc:
            raise UnavailableError(f"`{self._url}` did not answer within {self._server.timeout_s:g} s") from exc
        except httpx.RequestError as exc:
            raise UnavailableError(f"`{self._url}` cannot be reached ({type(exc).__name__}: {exc})") from exc
        if response.status_code != HTTPStatus.OK:
            raise self._error(response, answer)
        return answer

    def _read(self, response: httpx.Response, count: int) -> bytes:
        """The body, within the time and the size that it may take."""
        until = time.monotonic() + self._server.timeout_s
        size_max = (count * self.dim + 1024) * _NUMBER_BYTES_MAX
        parts: list[bytes] = []
        for part in response.iter_bytes():
            parts.append(part)
            size_max -= len(part)
            if size_max < 0:
                raise ConfigError(f"`{self._url}` answers more than {count} vectors of {self.dim} numbers can be")
            if time.monotonic() > until:
                raise UnavailableError(f"`{self._url}` did not end its answer within {self._server.timeout_s:g} s")
        return b"".join(parts)

    def _error(self, response: httpx.Response, answer: bytes) -> HeadraceError:
        status = response.status_code
        code, said = _complaint(answer)
        if self._server.key is not None:
            said = said.replace(self._server.key.get_secret_value(), "…")
        message = f"`{self._url}` answers {status} for the model `{self._server.model}`: {said[:_SHOWN]}"
        if code == _NO_MONEY:
            return ConfigError(message)
        if status in _BUSY:
            return ThrottledError(message, retry_after_s=_wait_s(response.headers))
        if status in _AWAY or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return UnavailableError(message, retry_after_s=_wait_s(response.headers))
        if status in _REFUSED:
            return SkippableError("embedding_refused", message)
        return ConfigError(f"{message}; look at base URL, model and key")

    def _vectors(self, answer: bytes, count: int) -> Vectors:
        """Read the vectors out of an answer. Raises ConfigError unless there is one of dim numbers for each text."""
        vectors = np.full((count, self.dim), np.nan)
        try:
            data = orjson.loads(answer)["data"]
            for place, item in enumerate(data):
                numbers = np.asarray(item["embedding"], np.float64)
                if numbers.shape != (self.dim,):
                    raise ConfigError(
                        f"`{self._url}` answers vectors of {numbers.size} numbers for the model `{self._server.model}`,"
                        f" the settings say {self.dim}"
                    )
                vectors[item.get("index", place)] = numbers
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as exc:
            raise ConfigError(f"`{self._url}` does not answer as an embedding server does ({exc!r:.{_SHOWN}})") from exc
        usable = np.isfinite(vectors).all(axis=1) & vectors.any(axis=1)
        if len(data) != count or not usable.all():
            raise ConfigError(f"`{self._url}` answers {int(usable.sum())} usable vectors for {count} texts")
        return unit_rows(vectors)


def _complaint(answer: bytes) -> tuple[str, str]:
    """(code, sentence) of an error in OpenAI's form, or of whatever else was answered."""
    try:
        error = orjson.loads(answer)["error"]
        return str(error.get("code") or error.get("type") or ""), str(error["message"])
    except (ValueError, TypeError, KeyError, AttributeError):
        return "", answer.decode("utf-8", "replace").strip() or "(nothing)"


def _wait_s(headers: httpx.Headers) -> float | None:
    """Seconds that the server asks to wait: a number, or a moment by the server's own clock."""
    try:
        if (wait_ms := headers.get("retry-after-ms")) is not None:
            seconds = float(wait_ms) / 1000
        else:
            asked = headers["retry-after"]
            if asked.strip().replace(".", "", 1).isdigit():
                seconds = float(asked)
            else:
                seconds = (parsedate_to_datetime(asked) - parsedate_to_datetime(headers["date"])).total_seconds()
    except (KeyError, ValueError, TypeError):
        return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None
