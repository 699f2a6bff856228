"""The look of the page: Gradio's own variables said in the desk's tokens. Tokens and rules are in `assets/*.css`.

A component's look is Gradio's business as far as its variables reach; what they do not reach is mended in the style
sheets, which `opening` puts into the page before Gradio is there.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import gradio as gr

# The page's colour before any style sheet has arrived: index.html reads it from the theme, so it cannot be a variable.
_PAGE_LIGHT, _PAGE_DARK = "#f4f2ee", "#151517"
_TEXT_LIGHT, _TEXT_DARK = "#1f1d1a", "#ededf0"

_SHEETS = (
    "page.css", "parts.css", "start.css", "dataset.css", "train.css", "generate.css", "source.css", "stage.css",
    "desk.css", "library.css", "queue.css",
)  # fmt: skip

_CONTROL_RADIUS = "7px"

# Gradio's variable -> the same value in both themes: the tokens behind it change with the theme.
_VARIABLES = {
    # type
    "body_text_size": "14px",
    "body_text_color_subdued": "var(--muted)",
    "prose_text_size": "14px",
    "block_title_text_size": "12.5px",
    "block_title_text_weight": "400",
    "block_title_text_color": "var(--muted)",
    "block_title_background_fill": "transparent",
    "block_title_border_width": "0px",
    "block_title_padding": "0",
    "block_info_text_size": "12.5px",
    "block_info_text_color": "var(--muted)",
    "block_label_text_color": "var(--muted)",
    "block_label_text_size": "12.5px",
    "block_label_background_fill": "transparent",
    "block_label_border_width": "0px",
    "accordion_text_color": "var(--muted)",
    "link_text_color": "var(--accent)",
    "link_text_color_hover": "var(--accent)",
    "link_text_color_active": "var(--accent)",
    "link_text_color_visited": "var(--accent)",
    # surfaces
    "background_fill_primary": "var(--panel)",
    "background_fill_secondary": "var(--raised)",
    "block_background_fill": "transparent",
    "block_border_width": "0px",
    "block_border_color": "var(--line)",
    "block_padding": "0",
    "block_radius": _CONTROL_RADIUS,
    "block_shadow": "none",
    "border_color_primary": "var(--line)",
    "border_color_accent": "var(--accent)",
    "border_color_accent_subdued": "var(--line)",
    "color_accent": "var(--accent)",
    "color_accent_soft": "color-mix(in srgb, var(--accent) 16%, transparent)",
    "panel_background_fill": "var(--panel)",
    "panel_border_color": "var(--line)",
    "panel_border_width": "0px",
    "container_radius": "10px",
    "layout_gap": "14px",
    "form_gap_width": "0px",
    "shadow_drop": "none",
    "shadow_drop_lg": "none",
    "shadow_inset": "none",
    "shadow_spread": "0px",
    "loader_color": "var(--accent)",
    "slider_color": "var(--accent)",
    "stat_background_fill": "var(--accent)",
    "error_background_fill": "var(--panel)",
    "error_border_color": "var(--stopped)",
    "error_text_color": "var(--stopped)",
    "error_icon_color": "var(--stopped)",
    "table_border_color": "var(--line)",
    "table_even_background_fill": "var(--panel)",
    "table_odd_background_fill": "var(--panel)",
    "table_radius": _CONTROL_RADIUS,
    "code_background_fill": "var(--well)",
    # fields
    "input_background_fill": "var(--well)",
    "input_background_fill_focus": "var(--well)",
    "input_background_fill_hover": "var(--well)",
    "input_border_color": "var(--line)",
    "input_border_color_focus": "var(--accent)",
    "input_border_color_hover": "var(--track)",
    "input_border_width": "1px",
    "input_padding": "9px 10px",
    "input_placeholder_color": "var(--dim)",
    "input_radius": _CONTROL_RADIUS,
    "input_shadow": "none",
    "input_shadow_focus": "none",
    "input_text_size": "14px",
    "input_text_weight": "400",
    "checkbox_background_color": "var(--well)",
    "checkbox_background_color_focus": "var(--well)",
    "checkbox_background_color_hover": "var(--well)",
    "checkbox_background_color_selected": "var(--accent)",
    "checkbox_border_color": "var(--line)",
    "checkbox_border_color_focus": "var(--accent)",
    "checkbox_border_color_hover": "var(--track)",
    "checkbox_border_color_selected": "var(--accent)",
    "checkbox_label_background_fill": "transparent",
    "checkbox_label_background_fill_hover": "transparent",
    "checkbox_label_background_fill_selected": "var(--raised)",
    "checkbox_label_border_color": "transparent",
    "checkbox_label_border_color_hover": "transparent",
    "checkbox_label_border_color_selected": "var(--line)",
    "checkbox_label_border_width": "1px",
    "checkbox_label_text_color": "var(--muted)",
    "checkbox_label_text_color_selected": "var(--text)",
    "checkbox_label_text_size": "13.5px",
    "checkbox_label_text_weight": "500",
    "checkbox_label_padding": "6px 8px",
    "checkbox_label_shadow": "none",
    # buttons
    "button_border_width": "1px",
    "button_transition": "background-color 0.12s, border-color 0.12s",
    "button_transform_hover": "none",
    "button_transform_active": "none",
    "button_large_padding": "0 16px",
    "button_large_radius": _CONTROL_RADIUS,
    "button_large_text_size": "13.5px",
    "button_large_text_weight": "600",
    "button_medium_padding": "0 14px",
    "button_medium_radius": _CONTROL_RADIUS,
    "button_medium_text_size": "13.5px",
    "button_medium_text_weight": "500",
    "button_small_padding": "0 12px",
    "button_small_radius": _CONTROL_RADIUS,
    "button_small_text_size": "13.5px",
    "button_small_text_weight": "500",
    "button_primary_background_fill": "var(--accent)",
    "button_primary_background_fill_hover": "color-mix(in srgb, var(--accent) 88%, var(--text))",
    "button_primary_border_color": "transparent",
    "button_primary_border_color_hover": "transparent",
    "button_primary_text_color": "var(--on-accent)",
    "button_primary_text_color_hover": "var(--on-accent)",
    "button_primary_shadow": "none",
    "button_primary_shadow_hover": "none",
    "button_primary_shadow_active": "none",
    "button_secondary_background_fill": "var(--raised)",
    "button_secondary_background_fill_hover": "var(--line)",
    "button_secondary_border_color": "var(--line)",
    "button_secondary_border_color_hover": "var(--track)",
    "button_secondary_text_color": "var(--text)",
    "button_secondary_text_color_hover": "var(--text)",
    "button_secondary_shadow": "none",
    "button_secondary_shadow_hover": "none",
    "button_secondary_shadow_active": "none",
    "button_cancel_background_fill": "var(--raised)",
    "button_cancel_background_fill_hover": "var(--line)",
    "button_cancel_border_color": "var(--line)",
    "button_cancel_border_color_hover": "var(--track)",
    "button_cancel_text_color": "var(--text)",
    "button_cancel_text_color_hover": "var(--text)",
}


def theme() -> gr.themes.Base:
    """Gradio's theme, dark and light. No font is fetched from anywhere."""
    desk = gr.themes.Base(
        font=["Inter", "system-ui", "-apple-system", "Segoe UI", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
    )
    known = vars(desk)
    settings: dict[str, Any] = {}
    for name, value in _VARIABLES.items():
        settings[name] = value
        if f"{name}_dark" in known:
            settings[f"{name}_dark"] = value
    desk.set(
        **settings,
        body_background_fill=_PAGE_LIGHT,
        body_background_fill_dark=_PAGE_DARK,
        body_text_color=_TEXT_LIGHT,
        body_text_color_dark=_TEXT_DARK,
    )
    return desk


def style() -> str:
    """The page's style sheet.

    Gradio loads its components' rules later, and with more specific selectors than a rule of ours should need. All of
    ours stand inside an `:is()` that counts as an id, whatever it matches: where both have a say, ours is heard.
    """
    rules = "\n".join(asset(sheet) for sheet in _SHEETS)
    return f"{asset('tokens.css')}\n:is(#ours, html) {{\n{rules}\n}}\n"


def asset(name: str) -> str:
    """The text of a file in `webui/assets`."""
    return files("webui").joinpath("assets", name).read_text(encoding="utf-8")
