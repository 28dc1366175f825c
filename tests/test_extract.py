from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from os import kill
from signal import SIGKILL
from typing import get_args

import orjson
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflows.extraction import Extraction
from operators.documents import Text
from operators.errors import DecodeError, UnavailableError
from operators.extract import ExtractLimits, PdfReader, extract, extractor_shape, media_type_of, split_front_matter
from tests import hostile_pdfs
from tests.flows import until

READERS: tuple[PdfReader, ...] = get_args(PdfReader)
HONEST = hostile_pdfs.honest(["An honest exam-", "ple — with (brackets)"], [], ["The third page"], title="A title")


def refusal(data: bytes, uri: str = "file:///a.txt", *, pdf: PdfReader = "pdfium", **limits: int) -> str:
    """The reason for which a document is refused."""
    with pytest.raises(DecodeError) as caught:
        extract(data, uri, pdf=pdf, limits=ExtractLimits(**limits))
    assert uri in str(caught.value)
    return caught.value.reason


def text_of(data: bytes, uri: str = "file:///a.txt") -> Text:
    """A document without limits of its own."""
    return extract(data, uri, pdf="pdfium")


class TestText:
    @pytest.mark.parametrize(
        "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-16-le", "utf-32", "cp1252", "latin-1"]
    )
    def test_western_european_in_any_encoding(self, encoding: str) -> None:
        """A text is the same in every encoding that is marked, is UTF-8, or is plausible."""
        words = "Où est le garçon naïf ? Déjà à l'hôtel, près du café.\r\nÜber die Straße.\n"
        mark = {"utf-16-be": "\ufeff", "utf-16-le": "\ufeff"}.get(encoding, "")
        assert text_of((mark + words).encode(encoding)).text == words

    @pytest.mark.parametrize(
        ("words", "encoding"),
        [
            ("Zażółć gęślą jaźń, proszę państwa, w Łodzi", "cp1250"),
            ("Привет мир, как дела сегодня? Всё хорошо.", "cp1251"),
            ("Καλημέρα κόσμε, τι κάνεις σήμερα;", "cp1253"),
            ("Günaydın, nasılsınız? İstanbul'da şimdi yağmur yağıyor", "cp1254"),
            ("日本語のテキストです。これはテスト。", "cp932"),
            ("你好世界,这是一个测试文本。", "gb18030"),
        ],
    )
    def test_older_encodings_are_told_apart(self, words: str, encoding: str) -> None:
        """A text from before Unicode is guessed, and the guess is in the metadata."""
        found = text_of(words.encode(encoding))
        assert (found.text, found.metadata["encoding"]) == (words, encoding)

    def test_a_bad_byte_spoils_only_itself(self) -> None:
        """UTF-8 with a foreign byte is UTF-8 with a replacement character, and says so."""
        found = text_of("äöü ÄÖÜ ß éèê ñ".encode() + b" \xff ende")
        assert found.text == "äöü ÄÖÜ ß éèê ñ \ufffd ende"
        assert found.metadata == {"replaced": 1}

    @pytest.mark.parametrize("data", [b"\x7fELF\x02\x01\x01\0\0\0\xff", b"plain\0text", bytes(range(128, 256)) * 3])
    def test_binary_is_no_text(self, data: bytes) -> None:
        """Zero bytes, or bytes of no encoding, are refused."""
        assert refusal(data) == "not_text"

    def test_empty_is_a_text(self) -> None:
        """An empty file is an empty text: nothing is wrong with it."""
        assert text_of(b"") == Text("", "text/plain")

    def test_size_is_looked_at_first(self) -> None:
        """A document over the limit is not even looked into."""
        assert refusal(b"x" * 11, size_bytes=10) == "too_large"

    @pytest.mark.parametrize(
        ("uri", "data", "expected"),
        [
            ("file:///a/README.md", b"x", "text/markdown"),
            ("file:///a/B.MARKDOWN?version=2", b"x", "text/markdown"),
            ("file:///a/paper.PDF", b"x", "application/pdf"),
            ("file:///a/LICENSE", b"x", "text/plain"),
            ("file:///a.md/x", b"x", "text/plain"),
            ("file:///a.txt", b"%PDF-1.7", "application/pdf"),
        ],
    )
    def test_media_type(self, uri: str, data: bytes, expected: str) -> None:
        """The name decides, but for a PDF."""
        assert media_type_of(data, uri) == expected


class TestFrontMatter:
    def test_becomes_metadata(self) -> None:
        """YAML between the first lines leaves the text and becomes values that JSON knows."""
        source = (
            "---\r\ntitle: Ünits\ntags: [a, 1, 2.5, true, null]\ndate: 2024-02-29\n"
            "big: 99999999999999999999\n---\n# Body\n"
        )
        found = text_of(source.encode(), "file:///a.md")
        assert found.text == "# Body\n"
        assert found.metadata == {
            "title": "Ünits",
            "tags": ["a", 1, 2.5, True, None],
            "date": "2024-02-29",
            "big": "0x56bc75e2d630fffff",
        }

    @pytest.mark.parametrize(
        ("block", "reason"),
        [
            ("a: [1", "not_yaml"),
            ("a: &x [1]\nb: [*x, *x]", "not_yaml"),
            ("a: !!python/object/apply:os.system [ls]", "not_yaml"),
            ("a: " + "[" * 30 + "]" * 30, "not_yaml"),
            ("a: " + "[" * 8000, "not_yaml"),
            ("a: !!timestamp x", "not_yaml"),
            ("a: " + "x" * 20_000, "too_large"),
        ],
    )
    def test_bad_front_matter_stays(self, block: str, reason: str) -> None:
        """What is no plain YAML stays in the text, and the metadata says why."""
        source = f"---\n{block}\n---\nbody"
        assert split_front_matter(source) == (source, {"front_matter_error": reason})

    @pytest.mark.parametrize(
        "source", ["---\njust a line\n---\nbody", "---\n---\nbody", "text\n---\na: 1\n---\n", "---\na: 1\n"]
    )
    def test_other_lines_are_text(self, source: str) -> None:
        """A rule, an empty block, a block further down or without an end is no front matter."""
        assert split_front_matter(source) == (source, {})

    @given(st.text(alphabet=st.sampled_from("ab:- \n[]{}!&*'\"|>%@?,#~01.é\ud800"), max_size=80))
    def test_any_block_is_taken_or_left(self, block: str) -> None:
        """No block raises; what becomes metadata is JSON-able."""
        orjson.dumps(split_front_matter(f"---\n{block}\n---\n")[1])


@pytest.mark.parametrize("pdf", READERS)
class TestPdf:
    def test_pages_and_description(self, pdf: PdfReader) -> None:
        """Each page begins where its start says; title and author are metadata; a page without text is a page."""
        found = extract(HONEST, "file:///a.pdf", pdf=pdf)
        assert found.media_type == "application/pdf"
        assert len(found.page_starts) == 3
        assert [found.page(found.text.index(word)) for word in ("honest", "brackets", "third")] == [1, 1, 3]
        assert found.metadata == {"title": "A title", "author": "Nobody"}
        assert "exam-\n" in found.text
        assert "— with (brackets)" in found.text

    @pytest.mark.parametrize(
        ("maker", "reason"),
        [
            (hostile_pdfs.encrypted, "encrypted"),
            (hostile_pdfs.truncated, "truncated"),
            (hostile_pdfs.no_text, "no_text"),
            (hostile_pdfs.form_in_itself, "no_text"),
            (hostile_pdfs.not_a_pdf, "unreadable"),
            (hostile_pdfs.pages_in_a_circle, "unreadable"),
        ],
        ids=lambda value: getattr(value, "__name__", value),
    )
    @pytest.mark.filterwarnings("ignore:ARC4 has been moved")
    def test_refusals(self, pdf: PdfReader, maker: type[bytes], reason: str) -> None:
        """A PDF that cannot be read whole is refused with its reason."""
        assert refusal(maker(), "file:///a.pdf", pdf=pdf) == reason

    def test_too_many_pages(self, pdf: PdfReader) -> None:
        """The number of pages is looked at before the first is read."""
        assert refusal(hostile_pdfs.many_pages(30), "file:///a.pdf", pdf=pdf, pages=29) == "too_many_pages"

    def test_too_much_text(self, pdf: PdfReader) -> None:
        """Text beyond the limit is refused."""
        assert refusal(HONEST, "file:///a.pdf", pdf=pdf, characters=20) == "too_large"

    def test_name_without_the_thing(self, pdf: PdfReader) -> None:
        """A text under the name of a PDF is refused."""
        assert refusal(b"hello", "file:///a.pdf", pdf=pdf) == "unreadable"

    def test_shape_names_the_reader(self, pdf: PdfReader) -> None:
        """Another reader, or another version of one, is another shape."""
        assert pdf in extractor_shape(pdf)


@pytest.fixture(scope="module", params=READERS)
def extraction(request: pytest.FixtureRequest) -> Iterator[Extraction]:
    """One worker, and limits that a test can wait for."""
    with Extraction(pdf=request.param, workers=1, limits=ExtractLimits(seconds=1)) as extraction:
        yield extraction


class TestExtraction:
    @pytest.mark.parametrize("name", sorted(hostile_pdfs.HOSTILE))
    @pytest.mark.filterwarnings("ignore:ARC4 has been moved")
    def test_hostile_pdfs_harm_nothing_else(self, extraction: Extraction, name: str) -> None:
        """Each is refused in bounded time, and the next document is read as ever."""
        with pytest.raises(DecodeError) as caught:
            extraction.extract(hostile_pdfs.HOSTILE[name](), "file:///hostile.pdf")
        assert caught.value.reason in {
            *("encrypted", "no_text", "out_of_memory", "timeout"),
            *("too_deep", "too_large", "too_many_pages", "truncated", "unreadable"),
        }
        assert len(extraction.extract(HONEST, "file:///a.pdf").page_starts) == 3

    def test_endless_work_is_stopped(self) -> None:
        """A PDF that would take years takes the seconds that it is given."""
        with Extraction(workers=1, limits=ExtractLimits(seconds=0.3)) as extraction:
            with pytest.raises(DecodeError, match=r"more than 0\.3 s") as caught:
                extraction.extract(hostile_pdfs.doubling_forms(), "file:///a.pdf")
            assert caught.value.reason == "timeout"

    @pytest.mark.skipif(sys.platform != "linux", reason="other kernels know no bound of the address space")
    def test_memory_is_bounded(self) -> None:
        """A PDF that wants more memory than it may have is told so, not this process."""
        with Extraction(workers=1, limits=ExtractLimits(memory_bytes=200 << 20)) as extraction:
            with pytest.raises(DecodeError) as caught:
                extraction.extract(hostile_pdfs.doubling_forms(), "file:///a.pdf")
            assert caught.value.reason == "out_of_memory"

    def test_workers_are_reused(self) -> None:
        """The second document is read by the process of the first; text needs none."""
        with Extraction(workers=2) as extraction:
            assert extraction.extract(b"plain", "file:///a.txt").text == "plain"
            assert extraction._idle == []
            extraction.extract(HONEST, "file:///a.pdf")
            first = extraction._idle[0]._process.pid
            extraction.extract(HONEST, "file:///b.pdf")
            assert [worker._process.pid for worker in extraction._idle] == [first]

    def test_a_dead_worker_costs_no_document(self) -> None:
        """A worker that died between two documents is replaced, and the document is read."""
        with Extraction(workers=1) as extraction:
            extraction.extract(HONEST, "file:///a.pdf")
            kill(extraction._idle[0]._process.pid, SIGKILL)
            assert len(extraction.extract(HONEST, "file:///b.pdf").page_starts) == 3

    def test_threads_share_bounded_workers(self) -> None:
        """No more documents are read at once than there are workers; a slow one does not spoil the others."""
        extraction = Extraction(workers=2, limits=ExtractLimits(seconds=1))
        before = most = _workers()
        lock = threading.Lock()

        def read(number: int) -> str:
            nonlocal most
            try:
                found = extraction.extract(
                    hostile_pdfs.doubling_forms() if number == 0 else HONEST, f"file:///{number}.pdf"
                )
            except DecodeError as error:
                return error.reason
            with lock:
                most = max(most, _workers())
            return "read" if len(found.page_starts) == 3 else "wrong"

        with extraction, ThreadPoolExecutor(6) as threads:
            assert list(threads.map(read, range(12))) == ["timeout"] + ["read"] * 11
        assert most - before <= 2

    def test_close_ends_every_process(self) -> None:
        """After closing no worker is left, closing again is nothing, and workers know no secret of ours."""
        extraction = Extraction(workers=1)
        extraction.extract(HONEST, "file:///a.pdf")
        worker = psutil.Process(extraction._idle[0]._process.pid)
        assert set(worker.environ()) <= {"PYTHONPATH", "LC_CTYPE"}
        extraction.close()
        extraction.close()
        assert not worker.is_running()

    def test_closing_does_not_wait_for_a_slow_document(self) -> None:
        """A document that is being read when all is closed is given up at once, as nobody's fault."""
        extraction = Extraction(workers=1)
        extraction.extract(HONEST, "file:///a.pdf")
        with ThreadPoolExecutor(1) as threads:
            reading = threads.submit(extraction.extract, hostile_pdfs.doubling_forms(), "file:///b.pdf")
            until(lambda: bool(extraction._busy), "the document to be read")
            extraction.close()
            with pytest.raises(UnavailableError, match="was being read"):
                reading.result(timeout=30)


def _workers() -> int:
    """How many processes of this one extract documents."""
    count = 0
    for child in psutil.Process().children():
        with suppress(psutil.Error):  # it may end meanwhile
            count += "dataflows.extraction" in child.cmdline()
    return count
