"""Retrieval measured: a page's title must find the page, from whose text it was taken, among all pages of a set.

Two sets, both from Debian and read without installing them: `python3.11-doc` (a title is the heading of a page) and
`git-doc` (the one line under NAME). The weight of words in `dataflows.search` was chosen on the first; the second tells
whether it holds elsewhere. A machine that cannot have them measures the READMEs of its installed packages (their summary).

The title does not stand in the text: heading and all above it are cut off, in Python's pages with the `module` directive,
whose synopsis repeats the title; of a git page all up to the end of NAME; of a README every line that holds the summary.
A title that several pages share is not asked for.
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
from importlib.metadata import distributions
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from dataflows.embedders import open_embedder
from dataflows.search import search
from operators.chunk import Chunker
from operators.documents import Text, chunk_keys
from operators.embedders.port import Embedder
from operators.extract import MARKDOWN, PLAIN
from operators.normalise import normalise
from stores.metadata import open_metadata
from stores.metadata.port import MetadataStore
from stores.metadata.records import Document, Upsert
from stores.vectors import open_vectors
from stores.vectors.port import VectorReader, VectorStore, shard_of

SIZE, OVERLAP = 1000, 100
CHARS = 3_000
"""Of each page so much is taken: the whole of python3.11-doc would be ten minutes of embedding."""

DEPTH = 100
"""Chunks of each ranking; its pages stand in the order of their best chunk."""

_RRF_K = 60
_FIRST = 10
_APT_S = 60
_ADORNED = re.compile(r"""([=\-*#^~"+`.])\1{2,}[ \t]*""")
_MODULE = re.compile(r"^\.\. (?:current)?module::.*\n(?:[ \t]+:\w+:.*\n(?:[ \t]{6,}\S.*\n)*)*", re.MULTILINE)
_ROLE = re.compile(r":[\w:+-]+:`([^`<]*)(?:<[^>]*>)?`")
_NAME = re.compile(r"NAME\n-+\n.*? - (.*?)\n\n", re.DOTALL)
_WORD = re.compile(r"\w+")

Ranking = Sequence[int]
"""Numbers of chunks, best first."""


@dataclass(frozen=True, slots=True)
class Page:
    """A page without its title."""

    uri: str
    title: str
    text: str
    media_type: str = PLAIN


@dataclass(frozen=True, slots=True)
class Quality:
    """Shares of the titles whose own page comes first and among five; mean of 1/place, 0 behind the tenth."""

    hit_1: float
    hit_5: float
    mrr: float


@dataclass(frozen=True, slots=True)
class RetrievalFigures:
    """One set measured. cut: share of the chunks of which the model reads only the head. seconds: of it all.

    better, worse: titles whose page stands higher, or lower, by `dataflows.search` than by vectors alone.
    """

    corpus: str
    pages: int
    titles: int
    chunks: int
    size: int
    overlap: int
    space: str
    cut: float
    by: Mapping[str, Quality]
    better: int
    worse: int
    seconds: float

    def markdown(self) -> str:
        """Make a section of RESULTS.md."""
        text = (
            f"Retrieval, title → own page, over {self.corpus}: {self.titles} titles, {self.pages} pages (the first"
            f" {CHARS:,} characters of each, without the title), {self.chunks:,} chunks of at most {self.size} characters"
            f" with an overlap of {self.overlap}, `{self.space}` (which reads only the head of {self.cut:.0%} of them):\n\n"
            "| | hit@1 | hit@5 | MRR@10 |\n|---|--:|--:|--:|\n"
        )
        for name, found in self.by.items():
            text += f"| {name} | {found.hit_1:.3f} | {found.hit_5:.3f} | {found.mrr:.3f} |\n"
        return f"{text}\nSearch against vectors alone: higher for {self.better} titles, lower for {self.worse}.\n"


def measure_retrieval(
    corpus: str = "python3.11-doc", *, size: int = SIZE, overlap: int = OVERLAP, embedder: Embedder | None = None
) -> RetrievalFigures:
    """Index the set, ask for every title in every way. embedder: `local` on two threads unless given."""
    start = time.perf_counter()
    name, pages = load_pages(corpus)
    shared = Counter(page.title for page in pages)
    asked = [page for page in pages if shared[page.title] == 1]
    model = embedder or open_embedder("local", threads=2)
    with TemporaryDirectory() as folder:
        index = _Index(f"sqlite:///{folder}/metadata.db", model, pages, Chunker(size, overlap))
        titles = [page.title for page in asked]
        ways = index.ways(titles)
        places = {way: [_place(map(index.uri_of, rank(n)), page.uri) for n, page in enumerate(asked)]
                  for way, rank in ways.items()}
        index.close()
    counts = model.count_tokens(index.texts)
    vectors, hybrid = places["vectors"], places["search: 0.7 vectors + 0.3 full text"]
    return RetrievalFigures(
        corpus=name,
        pages=len(pages),
        titles=len(asked),
        chunks=len(index.texts),
        size=size,
        overlap=overlap,
        space=model.space,
        cut=sum(count > (model.tokens_max or count) for count in counts) / len(counts),
        by={way: _quality(found) for way, found in places.items()},
        better=sum(a < b for a, b in zip(hybrid, vectors, strict=True)),
        worse=sum(a > b for a, b in zip(hybrid, vectors, strict=True)),
        seconds=time.perf_counter() - start,
    )
