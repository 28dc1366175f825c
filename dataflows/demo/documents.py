"""The demo's second half: documents become searchable chunks, and a change costs only what changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dataflows.document_commands import find_chunks
from dataflows.document_runner import run_documents
from dataflows.engine import Cluster
from dataflows.observability.events import DocumentsWritten, Event, watch
from operators.errors import FatalError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dataflows.config import Settings
    from dataflows.demo.folder import DemoFolder

QUESTIONS = (
    "settings from environment variables",
    "nearest neighbours among many vectors",
    "find inputs that make my test fail",
    "may I sell it, and who pays if it breaks",
)
_EDITED = "orjson.md"
_LINE = "\nA line that the demo has added.\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """A question and the chunk that answers it best, as `search --json` prints it."""

    question: str
    hit: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Papers:
    """What became of the documents. counts, edited: summaries of the first run, and of that after an edit.

    redacted: places by kind of personal data.
    """

    readmes: int
    licences: int
    counts: Mapping[str, int]
    redacted: Mapping[str, int]
    answers: Sequence[Answer]
    edited: Mapping[str, int]


def index(settings: Settings, say: Callable[[str], None]) -> tuple[dict[str, int], dict[str, int]]:
    """Index everything once: (counts, places redacted)."""
    redacted: Counter[str] = Counter()

    def hear(event: Event) -> None:
        if isinstance(event, DocumentsWritten):
            redacted.update(event.redacted)

    watch(hear)
    done = run_documents(
        settings,
        Cluster(),
        once=True,
        allow_mass_delete=False,
        advanced=lambda done, of: say(f"{done} of {of} documents"),
    )
    return done.record, dict(sorted(redacted.items()))


def answer(settings: Settings) -> list[Answer]:
    """Ask every question. Raises FatalError if one has no answer."""
    answers = []
    for question in QUESTIONS:
        hits = find_chunks(settings, question, limit=1, uri_glob=None)
        if not hits:
            raise FatalError(f"the demo's documents have no answer to `{question}`")
        answers.append(Answer(question, hits[0]))
    return answers


def edit(folder: DemoFolder, settings: Settings) -> dict[str, int]:
    """Add a line to one document and index again. Raises FatalError if more than its own chunks were embedded."""
    path = folder.documents / _EDITED
    with path.open("a", encoding="utf-8") as file:
        file.write(_LINE)
    done, _ = index(settings, lambda _: None)
    if (done["updated"], done["embedded"] > 0, done["embedded"] < done["chunks"]) != (1, True, True):
        raise FatalError(f"one edited document of several chunks cost this: {done}")
    return done
