from __future__ import annotations

import importlib.util
import logging
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.documents import Text
from operators.errors import MissingExtraError
from operators.redact import redact, redaction_shape
from operators.redact_rules import find, luhn
from tests.redaction_hard import HARD, judged
from tests.redaction_set import PERSONAL, Labelled, parse

PRECISION_LEAST = 0.98
RECALL_LEAST = 0.95
HAS_PRESIDIO = importlib.util.find_spec("presidio_analyzer") is not None


def test_precision_and_recall_on_the_labelled_set() -> None:
    """Of what is found at least 98 % is personal, of what is personal at least 95 % is found, to the character."""
    right, found, labelled = judged()
    precision, recall = right.total() / found.total(), right.total() / labelled.total()
    lines = [
        f"{kind:12} {count:3}: precision {right[kind] / found[kind]:.3f}, recall {right[kind] / count:.3f}"
        for kind, count in sorted(labelled.items())
    ]
    report = "\n".join([*lines, f"all {labelled.total()}, hard {len(HARD)}: {precision=:.3f} {recall=:.3f}"])
    print(report)  # noqa: T201  # shown by `pytest -s` and on failure
    assert labelled.total() >= 150
    assert len(HARD) >= 150
    assert precision >= PRECISION_LEAST
    assert recall >= RECALL_LEAST
    assert min(right[kind] / labelled[kind] for kind in labelled) >= 0.9


def test_tags_and_counts() -> None:
    """Each kind becomes its tag and is counted; the rest of the text stays to the character."""
    source = (
        "Mail jane@example.org, tel. +44 20 7946 0958, from 203.0.113.7.\n"
        "Card 4111 1111 1111 1111, IBAN DE89 3704 0044 0532 0130 00, SSN 536-90-4399; v1.2.3.4 of 2024-02-29."
    )
    redacted, counts = redact(Text(source, "text/plain"), "regex")
    assert redacted.text == (
        "Mail [EMAIL], tel. [PHONE], from [IP].\nCard [CARD], IBAN [IBAN], SSN [NATIONAL_ID]; v1.2.3.4 of 2024-02-29."
    )
    assert counts == {"CARD": 1, "EMAIL": 1, "IBAN": 1, "IP": 1, "NATIONAL_ID": 1, "PHONE": 1}


def test_off_changes_nothing() -> None:
    """Without redaction the text is the same object."""
    text = Text("jane@example.org", "text/plain")
    assert redact(text, "off") == (text, {})


pieces = st.sampled_from([line for line in (*PERSONAL, *HARD) if len(line.text) < 70])


@given(st.lists(st.lists(pieces, max_size=3), min_size=1, max_size=5))
def test_page_starts_move_along(pages: list[list[Labelled]]) -> None:
    """Each page of the redacted text is the redacted page; a second time changes nothing."""
    bodies = ["\n\n".join(line.text for line in page) + "\n\n" for page in pages]
    starts = tuple(sum(map(len, bodies[:i])) for i in range(len(bodies)))
    redacted, _ = redact(Text("".join(bodies), "application/pdf", starts), "regex")
    bounds = [*redacted.page_starts, len(redacted.text)]
    found = [redacted.text[a:b] for a, b in pairwise(bounds)]
    assert found == [redact(Text(body, "application/pdf"), "regex")[0].text for body in bodies]
    assert redact(redacted, "regex") == (redacted, {})


def test_a_page_that_begins_within_something_personal() -> None:
    """It begins behind the tag."""
    text = Text("pay 4242 4242\n4242 4242 now", "application/pdf", (0, 14))
    redacted, _ = redact(text, "regex")
    assert (redacted.text, redacted.page_starts) == ("pay [CARD] now", (0, 10))


def test_metadata_is_redacted_and_counted() -> None:
    """Front matter is no way round: strings and numbers at any depth, read with their names."""
    metadata: dict[str, object] = {
        "author": "Jane <jane@example.org>",
        "phone": 2125550190,
        "contacts": [{"mobile": "0171 2345678"}, "http://192.168.1.20/"],
        "year": 2024,
        "version": "1.2.3.4",
        "draft": True,
    }
    redacted, counts = redact(Text("", "text/markdown", metadata=metadata), "regex")
    assert redacted.metadata == {
        "author": "Jane <[EMAIL]>",
        "phone": "[PHONE]",
        "contacts": [{"mobile": "[PHONE]"}, "http://[IP]/"],
        "year": 2024,
        "version": "1.2.3.4",
        "draft": True,
    }
    assert counts == {"EMAIL": 1, "IP": 1, "PHONE": 2}


def test_what_is_found_is_never_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is logged at all."""
    with caplog.at_level(logging.DEBUG):
        redact(Text("\n".join(line.text for line in PERSONAL), "text/plain"), "regex")
    assert caplog.records == []


@given(st.text(alphabet="0123456789 .-/()+@aAeEfFx:\n\u0663", max_size=60))
def test_any_text_is_redacted(text: str) -> None:
    """No text raises; places are in order, within the text and apart."""
    places = [(one.start, one.end) for one in find(text)]
    flat = [end for place in places for end in place]
    assert flat == sorted(flat)
    assert all(0 <= start < end <= len(text) for start, end in places)


@given(st.integers(0, 10**15 - 1))
def test_luhn_knows_its_digit(number: int) -> None:
    """Of the ten digits that may end a number exactly one passes."""
    assert sum(luhn(f"{number:015}{digit}") for digit in range(10)) == 1


def test_shape_tells_modes_apart() -> None:
    """Another mode is another shape."""
    assert redaction_shape("off") != redaction_shape("regex")


@pytest.mark.skipif(HAS_PRESIDIO, reason="Presidio is installed")
def test_without_presidio_the_extra_is_named() -> None:
    """Who asks for Presidio without having it is told what to install."""
    with pytest.raises(MissingExtraError, match="presidio"):
        redact(Text("x", "text/plain"), "presidio")
    with pytest.raises(MissingExtraError, match="presidio"):
        redaction_shape("presidio")


@pytest.mark.skipif(not HAS_PRESIDIO, reason="needs the extra `presidio`")
@pytest.mark.filterwarnings("ignore")
def test_presidio_adds_to_the_rules() -> None:
    """With Presidio the own rules stand, and its recognisers add what they find."""
    line = parse("Mail ⟦EMAIL jane@example.org⟧, version 1.2.3.4, ⟦CARD 4111111111111111⟧")
    redacted, counts = redact(Text(line.text, "text/plain"), "presidio")
    assert redacted.text == "Mail [EMAIL], version 1.2.3.4, [CARD]"
    assert counts == {"CARD": 1, "EMAIL": 1}
