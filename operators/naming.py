"""Whether bytes that are no good signal name an entity or a document all the same. Pure."""

from __future__ import annotations

import json
import re

from operators.errors import SkippableError
from operators.signal_rules import open_document


class Named:
    """Recognises a name in messages that were refused, as a JSON string or as the entity that can still be read."""

    def __init__(self, name: str) -> None:
        """Prepare to look for the name as JSON writes it, with other letters as they are or escaped."""
        self.name = name
        texts = {json.dumps(name, ensure_ascii=ascii_only).encode() for ascii_only in (False, True)}
        # A key that is called so is no name.
        self._quoted = re.compile(b"(?:" + b"|".join(map(re.escape, sorted(texts))) + rb")(?!\s*:)")

    def in_message(self, message: bytes) -> bool:
        """Whether it is the message's entity, or a string in it, unless that is a key."""
        if self._quoted.search(message):
            return True
        if b"\\" not in message:
            return False
        try:
            return open_document(message, bytes_max=len(message)).members.get("entity_id") == self.name
        except SkippableError:
            return False
