"""Retrieval measured: a page's title must find the page, from whose text it was taken, among all pages of a set.

Two sets, both from Debian and read without installing them: `python3.11-doc` (a title is the heading of a page) and
`git-doc` (the line under NAME). How much words weigh in `dataflows.search` was chosen on the first; the second tells
whether it holds elsewhere. A machine that cannot have them measures the READMEs of its packages (their summaries).

The title does not stand in the text: of a page of Python's, heading and all above it are cut off and so is the `module`
directive, whose synopsis repeats the title; of a page of git's, all up to the end of NAME; of a README, every line
that holds the summary. A title that several pages share is not asked for.
"""

from __future__ import annotations

import argparse
import math
import random
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distributions
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from dataflows.embedders import open_embedder
from dataflows.search import search
from operators.chunk import Chunker
from operators.documents import Chunk, Text, chunk_keys
from operators.embedders.port import Embedder
from operators.extract import MARKDOWN, PLAIN
from operators.normalise import normalise
from stores.metadata import open_metadata
from stores.metadata.records import Document, Upsert
from stores.vectors import open_vectors

SETS = ("python3.11-doc", "git-doc")
SIZE, OVERLAP = 1000, 100
PAGES, CHARS = 350, 3_000
"""So many pages at most, drawn with a seed, and so much of each: all of python3.11-doc takes ten minutes to embed."""

SEARCH = "search: 0.7 vectors + 0.3 full text"
VECTORS = "vectors"

_DEPTH = 100
_RRF = 60
_PLACES = 10
_APT_S = 60
_ADORNMENT = re.compile(r"""([=\-*#^~"+`.])\1{2,}[ \t]*""")
_MODULE = re.compile(r"^\.\. (?:current)?module::.*\n(?:[ \t]+:\w+:.*\n(?:[ \t]{6,}\S.*\n)*)*", re.MULTILINE)
_ROLE = re.compile(r":[\w:+-]+:`([^`<]*)(?:<[^>]*>)?`")
_NAME = re.compile(r"NAME\n-+\n.*? - (.*?)\n\n", re.DOTALL)
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Page:
    """A page without its title."""

    uri: str
    title: str
    text: str
    media_type: str = PLAIN


@dataclass(frozen=True, slots=True)
class Quality:
    """Shares of the titles whose own page comes first and among five; mean of 1 / place, 0 from the eleventh on."""

    hit_1: float
    hit_5: float
    mrr: float


@dataclass(frozen=True, slots=True)
class RetrievalFigures:
    """One set measured. cut: share of the chunks of which the model reads only the head. seconds: of it all.

    better, worse: titles whose page stands higher, or lower, by `dataflows.search` than by vectors alone.
    """

    documents: str
    pages: int
    titles: int
    chunks: int
    size: int
    overlap: int
    space: str
    cut: float
    quality: Mapping[str, Quality]
    better: int
    worse: int
    seconds: float

    def markdown(self) -> str:
        """Make a section of RESULTS.md."""
        head = (
            f"Title → own page over {self.documents}: {self.titles:,} titles, {self.pages:,} pages (the first {CHARS:,}"
            f" characters of each, without the title), {self.chunks:,} chunks of up to {self.size:,} characters with an"
            f" overlap of {self.overlap}, `{self.space}` (which reads only the head of {self.cut:.0%} of them).\n\n"
            "| | hit@1 | hit@5 | MRR@10 |\n|---|--:|--:|--:|\n"
        )
        rows = [f"| {way} | {x.hit_1:.3f} | {x.hit_5:.3f} | {x.mrr:.3f} |\n" for way, x in self.quality.items()]
        tail = f"\nSearch puts the page higher than vectors alone for {self.better} titles, lower for {self.worse}.\n"
        return head + "".join(rows) + tail


def measure_retrieval(
    documents: str = SETS[0], *, size: int = SIZE, overlap: int = OVERLAP, embedder: Embedder | None = None
) -> RetrievalFigures:
    """Index the set and ask for every title in every way. embedder: `local` on two threads unless given."""
    start = time.perf_counter()
    name, pages = load_pages(documents)
    pages = random.Random(0).sample(pages, min(PAGES, len(pages)))
    shared = Counter(page.title for page in pages)
    asked = [page for page in pages if shared[page.title] == 1]
    model = embedder or open_embedder("local", threads=2)
    chunks = _chunks(pages, Chunker(size, overlap))
    with TemporaryDirectory() as folder:
        places = _places(folder, model, chunks, asked)
    counts = model.count_tokens([chunk.text for some in chunks.values() for chunk in some])
    pairs = list(zip(places[SEARCH], places[VECTORS], strict=True))
    return RetrievalFigures(
        documents=name,
        pages=len(pages),
        titles=len(asked),
        chunks=len(counts),
        size=size,
        overlap=overlap,
        space=model.space,
        cut=float(np.mean([count > (model.tokens_max or math.inf) for count in counts])),
        quality={way: _quality(found) for way, found in places.items()},
        better=sum(ours < theirs for ours, theirs in pairs),
        worse=sum(ours > theirs for ours, theirs in pairs),
        seconds=time.perf_counter() - start,
    )


def load_pages(documents: str) -> tuple[str, list[Page]]:
    """What the set is called, and its pages by uri: the Debian package if it is installed or apt can download it.

    Otherwise the READMEs of the installed Python packages.
    """
    read = {"python3.11-doc": _python_pages, "git-doc": _git_pages}[documents]
    pages = read(Path("/"))
    if not pages:
        with TemporaryDirectory() as folder:
            if _unpack(documents, Path(folder)):
                pages = read(Path(folder))
    if pages:
        return f"Debian's {documents}", pages
    return f"READMEs of installed packages (Debian's {documents} cannot be had here)", _readmes()


def _unpack(package: str, folder: Path) -> bool:
    """Whether apt had the package; its files are then below the folder."""
    try:
        subprocess.run(["apt-get", "download", package], cwd=folder, capture_output=True, timeout=_APT_S, check=True)
        (archive,) = folder.glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", archive, folder], capture_output=True, timeout=_APT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return False
    return True


def _python_pages(root: Path) -> list[Page]:
    folder = root / "usr/share/doc/python3.11/html/_sources"
    return [page for path in sorted(folder.rglob("*.rst.txt")) for page in _python_page(folder, path)]


def _python_page(folder: Path, path: Path) -> Iterator[Page]:
    """The page below the first line that is underlined; none without such a line."""
    lines = path.read_text(encoding="utf-8").split("\n")
    for at in range(1, len(lines)):
        title = lines[at - 1].strip()
        if title and _ADORNMENT.fullmatch(lines[at]) and not _ADORNMENT.fullmatch(title):
            plain = " ".join(re.sub(r"[`*\\]|-{2,3}", " ", _ROLE.sub(r"\1", title)).split())
            yield Page(path.relative_to(folder).as_posix(), plain, _MODULE.sub("", "\n".join(lines[at + 1 :])))
            return


def _git_pages(root: Path) -> list[Page]:
    pages: list[Page] = []
    for path in sorted((root / "usr/share/doc/git-doc").glob("*.txt")):
        text = path.read_text(encoding="utf-8")
        if found := _NAME.search(text):
            pages.append(Page(path.name, " ".join(found[1].split()), text[found.end() :]))
    return pages


def _readmes() -> list[Page]:
    pages: dict[str, Page] = {}
    for package in distributions():
        about = package.metadata.json
        summary, text = str(about.get("summary", "")).strip(), str(about.get("description", ""))
        kept = "\n".join(line for line in text.splitlines() if summary.casefold() not in line.casefold())
        if _WORD.search(summary) and _WORD.search(kept):
            pages[package.name] = Page(package.name, summary, kept, MARKDOWN)
    return [pages[name] for name in sorted(pages)]


def _chunks(pages: Iterable[Page], chunker: Chunker) -> dict[str, tuple[Chunk, ...]]:
    """Chunks by uri."""
    return {page.uri: tuple(chunker.chunks(normalise(Text(page.text[:CHARS], page.media_type)))) for page in pages}


def _places(
    folder: str, model: Embedder, chunks: Mapping[str, tuple[Chunk, ...]], asked: Sequence[Page]
) -> dict[str, list[float]]:
    """Where each title's own page stands, from 1, by each way; infinity if it is not found."""
    metadata = open_metadata(f"sqlite:///{folder}/metadata.db")
    metadata.add_space(model.space)
    store = open_vectors(f"usearch:///{folder}/vectors", model.space, model.dim, shards=1)
    texts: dict[int, str] = {}
    uris: dict[int, str] = {}
    for uri, some in chunks.items():
        document = Document(uri, "bench", "", "", uri, "", PLAIN, 0, "bench")
        keys = chunk_keys(document.doc_id, [chunk.text_hash for chunk in some])
        metadata.apply([Upsert(document, model.space, some)])
        texts |= zip(keys, (chunk.text for chunk in some), strict=True)
        uris |= dict.fromkeys(keys, uri)
    writer = store.write(0)
    writer.put(np.array(list(texts), np.uint64), model.embed(list(texts.values())))
    writer.commit()
    reader = store.read()

    @cache
    def nearest(title: str) -> list[int]:
        return [hit.key for hit in reader.search(model.embed([title])[0], _DEPTH)]

    @cache
    def by_words(title: str) -> list[int]:
        return [hit.key for hit in metadata.search_text(model.space, title, limit=_DEPTH)]

    def both(title: str) -> list[str]:
        return [hit.uri for hit in search(metadata, reader, model, title, limit=_DEPTH)]

    tf_idf = TfIdf(texts)
    ways: dict[str, Callable[[str], list[str]]] = {
        "TF-IDF": lambda title: [uris[key] for key in tf_idf.rank(title)],
        "full text (BM25)": lambda title: [uris[key] for key in by_words(title)],
        VECTORS: lambda title: [uris[key] for key in nearest(title)],
        "reciprocal ranks of both": lambda title: [uris[key] for key in fuse([nearest(title), by_words(title)])],
        SEARCH: both,
    }
    places = {way: [_place(rank(page.title), page.uri) for page in asked] for way, rank in ways.items()}
    writer.close()
    reader.close()
    metadata.close()
    return places


class TfIdf:
    """The baseline: cosine of weights (1 + log count) x idf of words, with scikit-learn's smoothed idf."""

    def __init__(self, texts: Mapping[int, str]) -> None:
        """Weigh the words of each text."""
        counts = {key: Counter(_words(text)) for key, text in texts.items()}
        having = Counter(word for words in counts.values() for word in words)
        self._idf = {word: math.log((1 + len(texts)) / (1 + count)) + 1 for word, count in having.items()}
        self._weights: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for key, words in counts.items():
            weights = self._weighed(words)
            length = math.sqrt(math.fsum(weight * weight for weight in weights.values()))
            for word, weight in weights.items():
                self._weights[word].append((key, weight / length))

    def rank(self, query: str) -> list[int]:
        """The keys of up to a hundred texts that share a word with the query, best first, ties by key."""
        scores: dict[int, float] = defaultdict(float)
        for word, weight in self._weighed(Counter(_words(query))).items():
            for key, other in self._weights.get(word, ()):
                scores[key] += weight * other
        return sorted(scores, key=lambda key: (-scores[key], key))[:_DEPTH]

    def _weighed(self, words: Mapping[str, int]) -> dict[str, float]:
        return {word: (1 + math.log(count)) * self._idf[word] for word, count in words.items() if word in self._idf}


def fuse(rankings: Iterable[Sequence[int]]) -> list[int]:
    """Keys by the sum of 1 / (60 + place) over the rankings: the usual way, which looks at no score."""
    scores: dict[int, float] = defaultdict(float)
    for ranking in rankings:
        for place, key in enumerate(ranking, 1):
            scores[key] += 1 / (_RRF + place)
    return sorted(scores, key=lambda key: (-scores[key], key))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _place(ranking: Iterable[str], own: str) -> float:
    """Where the page stands among pages in the order of their best chunk."""
    pages = list(dict.fromkeys(ranking))
    return pages.index(own) + 1 if own in pages else math.inf


def _quality(places: Sequence[float]) -> Quality:
    return Quality(
        hit_1=float(np.mean([place <= 1 for place in places])),
        hit_5=float(np.mean([place <= 5 for place in places])),
        mrr=float(np.mean([1 / place if place <= _PLACES else 0.0 for place in places])),
    )


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(prog="python -m tests.benchmarks.retrieval", description=__doc__)
    options.add_argument("--documents", choices=SETS, default=SETS[0], help=f"the set of pages ({SETS[0]})")
    options.add_argument("--size", type=int, default=SIZE, help=f"characters of a chunk, at most ({SIZE})")
    options.add_argument("--overlap", type=int, default=OVERLAP, help=f"characters that chunks share ({OVERLAP})")
    chosen = options.parse_args()
    figures = measure_retrieval(chosen.documents, size=chosen.size, overlap=chosen.overlap)
    sys.stdout.write(figures.markdown())
    sys.stderr.write(f"{figures.seconds:.0f} s\n")


if __name__ == "__main__":
    main()
