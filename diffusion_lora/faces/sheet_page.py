"""A grid as a page for the browser: the pictures side by side, each with its settings under the pointer. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_STYLE = """
:root { color-scheme: light dark; --paper: #f4f1ea; --ink: #26232a; --soft: #7d7783; }
@media (prefers-color-scheme: dark) { :root { --paper: #17181b; --ink: #eceaf0; --soft: #96939e; } }
body { background: var(--paper); color: var(--ink); font: 15px system-ui, sans-serif; margin: 32px; }
h1 { font-size: 24px; margin: 0; } p { color: var(--soft); margin: 4px 0 24px; }
table { border-collapse: separate; border-spacing: 8px; }
th { position: sticky; background: var(--paper); font-weight: 500; padding: 6px; z-index: 1; }
thead th { top: 0; } tbody th { left: 0; text-align: left; max-width: 220px; }
img { display: block; border-radius: 8px; min-width: 160px; }
"""


def sheet_page(
    cells: Sequence[Sequence[tuple[str, str]]],
    *,
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    corner: str = "",
    title: str = "",
    subtitle: str = "",
) -> str:
    """HTML of `cells[row][column]`, each (address of the picture, its settings as text). All of it is escaped."""
    head = "".join(f"<th>{escape(label)}</th>" for label in column_labels)
    body = "".join(
        f"<tr><th>{escape(label)}</th>{''.join(map(_cell, row))}</tr>"
        for label, row in zip(row_labels, cells, strict=True)
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title) or "Grid"}</title>'
        f"<style>{_STYLE}</style><h1>{escape(title)}</h1><p>{escape(subtitle)}</p>"
        f"<table><thead><tr><th>{escape(corner)}</th>{head}</tr></thead><tbody>{body}</tbody></table></html>"
    )


def _cell(cell: tuple[str, str]) -> str:
    address, told = (escape(text, quote=True) for text in cell)
    return f'<td><a href="{address}"><img src="{address}" alt="{told}" title="{told}" loading="lazy"></a></td>'
