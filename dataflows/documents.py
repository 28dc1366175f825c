"""The document path as Bytewax runs it: `python -m bytewax.run dataflows.documents -r … -s … -b …`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bytewax.dataflow import Dataflow


def __getattr__(name: str) -> Dataflow:
    """`flow`, made when Bytewax asks for it: importing this module touches nothing."""
    if name == "flow":
        from dataflows.document_runner import bare_flow

        return bare_flow()
    raise AttributeError(f"module `{__name__}` has no attribute `{name}`")
