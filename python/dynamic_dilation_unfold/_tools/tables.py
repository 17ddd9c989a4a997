"""Tables as text."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Columns as wide as what is in them; the first ``left`` begin together, the others end together."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    sides = ["<" if column < left else ">" for column in range(len(widths))]
    form = "  ".join(f"{{:{side}{width}}}" for side, width in zip(sides, widths, strict=True))
    return [form.format(*row).rstrip() for row in rows]
