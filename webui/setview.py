"""A set of pictures as HTML: small pictures for the form, cards with captions to edit. Every text is escaped."""

from __future__ import annotations

from html import escape

from diffusion_lora.families.pocket.words import Words
from webui.files import Thumbnails
from webui.sets import PictureSet
from webui.words import count

_SHOWN = 12


def thumbs(found: PictureSet, thumbnails: Thumbnails) -> str:
    """The first pictures of a set, and how many there are."""
    tiles = [
        f'<button type="button" data-picture="{escape(item.name)}" aria-label="Caption of {escape(item.name)}">'
        f'<img src="{thumbnails.url(item.path)}" alt="{escape(item.caption or item.name)}"></button>'
        for item in found.items[:_SHOWN]
    ]
    tiles += ["<span></span>"] * (_SHOWN - len(tiles) if len(tiles) > _SHOWN // 2 or not tiles else 6 - len(tiles))
    return (
        f'<div class="set-head"><span class="caption-title">Pictures</span><span>{_counted(found)}</span></div>'
        f'<div class="set-grid">{"".join(tiles)}</div>'
        f'<div class="set-foot"><span class="set-name">{escape(found.name)}</span>'
        f'<button type="button" class="link" data-act="captions">Edit captions</button></div>'
    )


def set_title(found: PictureSet) -> str:
    """The head over the cards."""
    note = "shipped: your first change makes a copy of your own" if found.is_shipped else str(found.folder)
    return (
        f'<div class="set-title"><h2>{escape(found.name)}</h2><span>{_counted(found)}</span><p>{escape(note)}</p></div>'
    )


def cards(found: PictureSet, thumbnails: Thumbnails) -> str:
    """Every picture with its caption, to be edited in place."""
    if found.problem:
        return f'<div class="empty" data-folder=""><strong>No pictures</strong>{escape(found.problem)}</div>'
    drawn = [
        f'<label class="card" data-picture="{escape(item.name)}">'
        f'<img loading="lazy" src="{thumbnails.url(item.path)}" alt="">'
        f'<textarea rows="2" spellcheck="false" placeholder="No caption" aria-label="Caption of {escape(item.name)}">'
        f"{escape(item.caption)}</textarea>"
        f'<span class="file">{escape(item.name)}</span><span class="told" aria-live="polite"></span></label>'
        for item in found.items
    ]
    return f'<div class="cards" data-folder="{escape(str(found.folder))}">{"".join(drawn)}</div>'


def form_note(found: PictureSet, problem: str = "") -> str:
    """The one sentence over the main button: what is wrong, or what is there."""
    if problem:
        return _note("stopped", problem)
    if found.problem:
        return _note("careful", found.problem)
    if found.bare:
        return _note("careful", f"{count(found.bare, 'picture')} without a caption: write one before you train.")
    return ""


def told(kind: str, text: str) -> str:
    """A sentence over the main button that is no mistake; `kind` colours its dot (good, careful, or nothing)."""
    return _note(kind, text)


def words(known: Words) -> str:
    """What may be said to pocket, and what it is."""
    kinds = (
        ("Objects", known.objects),
        ("Colours", known.colours),
        ("Backgrounds", known.backgrounds),
        ("Styles", known.styles),
    )
    rows = "".join(f"<dt>{name}</dt><dd>{escape(', '.join(listed))}</dd>" for name, listed in kinds)
    return (
        f'<dl class="words">{rows}</dl><p class="words-note">Pocket is a toy world: any other word is only letters to '
        "it. Photographs of your own want a real base: give its folder or hub id under Base (a graphics card is "
        "advised).</p>"
    )


def hint(text: str) -> str:
    """A quiet line beside a field."""
    return f'<span class="hint">{escape(text)}</span>'


def _counted(found: PictureSet) -> str:
    if not found.items:
        return "none"
    total = len(found.items)
    return f"{total:,}, all captioned" if not found.bare else f"{total:,}, {found.bare:,} without caption"


def _note(kind: str, text: str) -> str:
    return f'<div class="form-note"><i class="dot {kind}"></i><span>{escape(text)}</span></div>'
