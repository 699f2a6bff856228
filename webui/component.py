"""Own components: `gr.HTML` made of a template and a script under `assets/`, with the page's style sheet for both.

Gradio runs what a template renders as a JavaScript template string, so a value in it (the name of a LoRA, a prompt)
would be code: the templates here are fixed text, and the scripts write values as text into the document. What all
scripts share stands in `assets/parts.js`, before each of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import gradio as gr

from diffusion_lora.errors import UserError
from webui.theme import asset
from webui.words import sentence


def component(
    name: str,
    value: Any,
    *,
    elem_id: str,
    server: Sequence[Callable[[Any], Any]] = (),
    facts: Mapping[str, Any] | None = None,
    also: Sequence[str] = (),
    **props: Any,
) -> gr.HTML:
    """The component of `assets/NAME.html` and `assets/NAME.js`; the script sees `server` functions, which take
    what it passes as one value, `props`, and `facts`: what never changes, its words above all. Facts are written into
    the script, for of `props` a component knows nothing but its value when that is set before its tab is first seen.
    A function that raises a UserError answers {"problem": its sentence}. `also` names further scripts of `assets/`,
    which several components share."""
    known = f"const facts = {json.dumps(dict(facts or {}))};\n"
    return gr.HTML(
        value,
        elem_id=elem_id,
        html_template=asset(f"{name}.html"),
        js_on_load="".join(asset(f"{one}.js") for one in ("parts", *also)) + known + asset(f"{name}.js"),
        apply_default_css=False,
        server_functions=[_plain(function) for function in server] or None,
        **props,
    )


def _plain(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same as a function that answers mistakes too: Gradio writes a mark on it, which a method does not take."""

    @wraps(function)
    def plain(asked: Any) -> Any:
        try:
            return function(asked)
        except UserError as error:
            return {"problem": sentence(str(error))}

    return plain
