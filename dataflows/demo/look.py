"""How the pictures look: their colours and matplotlib's settings."""

from __future__ import annotations

from typing import Any

INK, MUTED, RULE, PAPER = "#1f2a33", "#6b7780", "#dfe3e6", "#fcfcfa"
READING, TREND, ALARM, LATE = "#66747f", "#1b5e8c", "#d1491b", "#8a4fa3"
STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": RULE,
    "axes.facecolor": PAPER,
    "axes.labelcolor": MUTED,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": PAPER,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so the picture is the same everywhere
    "font.size": 10.0,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0.0,
}
"""Settings of matplotlib."""
