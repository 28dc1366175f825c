"""The document path measured: the whole of it beside a bare loop of its model, its stages, and what a change costs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np

from dataflows.config import Settings, load_settings
from dataflows.document_runner import run_documents
from dataflows.document_wiring import cores, embedder_of
from dataflows.engine import Cluster
from dataflows.extraction import Extraction
from operators.chunk import Chunker
from operators.documents import Text, chunk_keys
from operators.extract import ExtractLimits, PdfReader, extract
from operators.normalise import normalise
from operators.redact import redact
from stores.deadletters.memory import MemoryDeadLetters
from stores.index_writer import IndexChange, IndexWriter
from stores.metadata import open_metadata
from stores.metadata.records import Document, Upsert
from stores.vectors import open_vectors
from tests.benchmarks.fresh import measure
from tests.benchmarks.retrieval import SETS, measure_retrieval
from tests.benchmarks.texts import readmes, write_corpus
from tests.benchmarks.vectors import measure_growth
from tests.hostile_pdfs import honest
from tests.redaction_hard import HARD, judged

HERE = "tests.benchmarks.documents"
_BATCH = 64
_PDF_PAGES = 40
_PDF_LINES = 50
_LINE_CHARS = 90
_CHUNKER = Chunker(1000, 100)
"""As the settings have it when none is set."""


def settings_in(corpus: str, out: str, embeddings: str = "local") -> Settings:
    """A run over the corpus with defaults, everything else in `out`."""
    return load_settings(
        ingest_sources=corpus,
        embeddings=embeddings,
        bus_dir=f"{out}/bus",
        metadata_db_url=f"sqlite:///{out}/metadata.db",
        vectorstore_path=f"{out}/vectors",
        recovery_dir=f"{out}/recovery",
        log_level="error",
    )


def bare_loop(corpus: str, out: str) -> tuple[int, float]:
    """Embed the same chunks with the same model, threads and batches, and drop the vectors: (chunks, seconds)."""
    settings = settings_in(corpus, out)
    texts = [chunk.text for text in map(_read, sorted(Path(corpus).iterdir())) for chunk in _CHUNKER.chunks(text)]
    with closing(embedder_of(settings)) as embedder:
        start = time.perf_counter()
        for at in range(0, len(texts), _BATCH):
            embedder.embed(texts[at : at + _BATCH])
        return len(texts), time.perf_counter() - start


def pipeline(corpus: str, out: str, embeddings: str = "local") -> tuple[int, float]:
    """The whole path, recovery included, once: (chunks embedded or documents unchanged, seconds)."""
    settings = settings_in(corpus, out, embeddings)
    start = time.perf_counter()
    record = run_documents(settings, Cluster(), once=True, allow_mass_delete=False).record
    return record["embedded"] or record["unchanged"], time.perf_counter() - start


def measure_documents(documents: int = 600, large: int = 2_000, repeat: int = 3) -> Iterator[str]:
    """The parts of RESULTS.md. documents: embedded by the local model. large: by the stub, to look again at them."""
    with TemporaryDirectory() as place:
        folder = Path(place)
        yield _overhead(folder, documents, repeat)
        yield _again(folder, large)
        yield _stages(folder / "large")
    _say("vectors")
    head = "\nThe index alone, chunks in four shards, a document of ten chunks changed again and again:\n\n"
    yield head + measure_growth()
    yield _redaction()
    _say("retrieval")
    figures = "\n".join(measure_retrieval(documents).markdown() for documents in SETS)
    yield "\n### Retrieval: from a title to its own page\n\n" + figures


def _overhead(folder: Path, documents: int, repeat: int) -> str:
    corpus = folder / "corpus"
    size = write_corpus(corpus, documents)
    more: list[float] = []
    rates: list[float] = []
    peak = 0
    for number in range(repeat):
        _say(f"documents, run {number + 1} of {repeat}")
        out = str(folder / f"out-{number}")
        bare = measure(f"{HERE}:bare_loop", corpus=str(corpus), out=out)
        ours = measure(f"{HERE}:pipeline", corpus=str(corpus), out=out)
        assert ours.events <= bare.events  # equal texts are embedded once
        more.append(bare.events_per_s / ours.events_per_s - 1)
        rates.append(ours.events_per_s)
        peak = max(peak, ours.peak_bytes)
    shown = ", ".join(f"{part:.1%}" for part in sorted(more))
    return (
        f"\n## Documents\n\n{documents:,} Markdown files, {size / 1e6:.1f} MB of what the installed packages say of"
        f" themselves, {bare.events:,} chunks, the local model on {cores()} cores.\n\n"
        f"- Whole path: {median(rates):,.0f} chunks a second; time on top of a bare loop of the model over the same"
        f" chunks, pairs: {shown}; peak memory {peak / 2**20:,.0f} MiB\n"
    )


def _again(folder: Path, documents: int) -> str:
    _say(f"{documents:,} documents again")
    corpus, out = folder / "large", str(folder / "out-large")
    write_corpus(corpus, documents)
    first = measure(f"{HERE}:pipeline", corpus=str(corpus), out=out, embeddings="stub")
    again = measure(f"{HERE}:pipeline", corpus=str(corpus), out=out, embeddings="stub")
    assert again.events == documents
    edited = min(corpus.iterdir())
    edited.write_text(edited.read_text("utf-8") + "\nOne more line.\n", "utf-8")
    change = measure(f"{HERE}:pipeline", corpus=str(corpus), out=out, embeddings="stub")
    return (
        f"- {documents:,} documents with the stub embedder: {documents / first.seconds:,.0f} a second; again with"
        f" nothing changed: {again.seconds:.2f} s above process start; again with one edited: {change.seconds:.2f} s,"
        f" {change.events} chunk embedded\n"
    )


def _stages(corpus: Path) -> str:
    _say("stages of documents")
    paths = sorted(corpus.iterdir())[:500]
    contents = [path.read_bytes() for path in paths]
    size = sum(map(len, contents)) / 1e6
    texts = [_extract(data, path) for data, path in zip(contents, paths, strict=True)]
    normal = [normalise(text) for text in texts]
    rows = [
        (
            "extract Markdown",
            size,
            _seconds(lambda: [_extract(d, p) for d, p in zip(contents, paths, strict=True)]),
        ),
        ("normalise", size, _seconds(lambda: [normalise(text) for text in texts])),
        ("redact (regex)", size, _seconds(lambda: [redact(text, "regex") for text in normal])),
        ("chunk", size, _seconds(lambda: [_CHUNKER.chunks(text) for text in normal])),
    ]
    table = "\n| stage | MB a second, one core |\n|---|--:|\n"
    table += "".join(f"| {name} | {megabytes / seconds:,.1f} |\n" for name, megabytes, seconds in rows)
    pages = ", ".join(f"{reader} {_pages_per_s(reader):,.0f}" for reader in ("pdfium", "pypdf"))
    return (
        f"{table}\n- PDF pages a second, one process, sandbox included: {pages}\n"
        f"- Writing vectors and metadata, durable each 32 documents: {_writes_per_s(normal):,.0f} chunks a second\n"
    )


def _redaction() -> str:
    """Precision and recall on the labelled set, to the character."""
    right, found, labelled = judged()
    text = (
        f"\nRedaction by rules, {labelled.total()} labelled places and {len(HARD)} lines of hard negatives (versions,"
        " order numbers, hashes, dates), places right to the character:\n\n"
        "| kind | places | precision | recall |\n|---|--:|--:|--:|\n"
    )
    for kind, count in [*sorted(labelled.items()), ("all", labelled.total())]:
        hits, guesses = (right.total(), found.total()) if kind == "all" else (right[kind], found[kind])
        text += f"| {kind} | {count} | {hits / guesses:.3f} | {hits / count:.3f} |\n"
    return text


def _read(path: Path) -> Text:
    return normalise(_extract(path.read_bytes(), path))


def _extract(data: bytes, path: Path) -> Text:
    return extract(data, str(path), pdf="pdfium", limits=ExtractLimits())


def _pages_per_s(reader: PdfReader) -> float:
    lines = [line[:_LINE_CHARS] for text in readmes().values() for line in text.splitlines() if line.isascii()]
    pages = [lines[at : at + _PDF_LINES] for at in range(0, _PDF_PAGES * _PDF_LINES, _PDF_LINES)]
    data = honest(*pages)
    with Extraction(pdf=reader, workers=1) as extraction:
        extraction.extract(data, "file:///warm-up.pdf")
        return _PDF_PAGES / _seconds(lambda: extraction.extract(data, "file:///measured.pdf"))


def _writes_per_s(texts: list[Text]) -> float:
    """Chunks a second into empty stores on disk."""
    changes: list[IndexChange] = []
    chance = np.random.default_rng(0)
    for number, text in enumerate(texts):
        document = Document(f"file:///{number}", "s", "f", "c", "m", "h", text.media_type, len(text.text), "r")
        chunks = tuple(_CHUNKER.chunks(text))
        vectors = chance.standard_normal((len(chunks), 384)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        keys = np.array(chunk_keys(document.doc_id, [chunk.text_hash for chunk in chunks]), np.uint64)
        changes.append(IndexChange(Upsert(document, "bench", chunks), None, keys, vectors))
    with TemporaryDirectory() as place, closing(open_metadata(f"sqlite:///{place}/m.db")) as metadata:
        metadata.add_space("bench")
        with closing(
            IndexWriter(open_vectors(f"usearch:///{place}/v", "bench", 384), metadata, MemoryDeadLetters())
        ) as w:
            start = time.perf_counter()
            for at in range(0, len(changes), 32):
                w.write(changes[at : at + 32])
            return sum(len(change.keys) for change in changes) / (time.perf_counter() - start)


def _seconds(work: Callable[[], object]) -> float:
    """The shortest of three."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def _say(what: str) -> None:
    sys.stderr.write(f"measuring: {what}\n")


if __name__ == "__main__":
    sys.stdout.writelines(measure_documents())
