"""The bar over all tabs: brand, what device and base are at work, what runs, the light switch. Text in, HTML out."""

from __future__ import annotations

from html import escape

from webui.engine import EngineStatus
from webui.runs import Story
from webui.watch import Look
from webui.words import gigabytes

BRAND = """<div class="brand"><svg width="16" height="16" viewBox="0 0 16 16" aria-hidden="true">
<rect x="0" y="9" width="3" height="7" rx="1"/><rect x="6" y="3" width="3" height="13" rx="1"/>
<rect x="12" y="6" width="3" height="10" rx="1"/></svg><span>diffusion-lora</span></div>"""

_DOTS = {"ready": "good", "busy": "good", "training": "good", "loading": "careful", "down": "stopped"}
_SWITCH = """<button type="button" class="theme-switch" data-act="theme"><span class="to-light">Light</span>
<span class="to-dark">Dark</span></button>"""


def status(look: Look, running: Story | None) -> str:
    """The right half of the bar."""
    engine = look.engine
    state = _state(engine, running)
    parts = [f'<span class="engine-text"><i class="dot {_DOTS[state]}"></i>{_device(engine, state)}</span>']
    if engine.base:
        parts.append(f'<span class="base">Base: <b>{escape(_base(engine))}</b></span>')
    parts.append(_work(look, running))
    told = escape(engine.text or state)
    return (
        f'<div class="bar-right"><div id="status" data-state="{state}" title="{told}" role="status">'
        f"{''.join(parts)}</div>{_SWITCH}</div>"
    )


def _state(engine: EngineStatus, running: Story | None) -> str:
    if engine.state in ("down", "failed"):
        return "down"
    if engine.state == "away":
        return "training" if running or engine.holder else "ready"
    return engine.state


def _device(engine: EngineStatus, state: str) -> str:
    if state == "down" or not (engine.device_name or engine.device):
        return escape(engine.text.rstrip("."))
    name = escape(engine.device_name or engine.device.upper())
    if not engine.total_bytes:
        return name
    memory = f"{gigabytes(engine.free_bytes)} of {gigabytes(engine.total_bytes)} GB free"
    return f'{name}<span class="memory">, {memory}</span>'


def _base(engine: EngineStatus) -> str:
    name = engine.base.rstrip("/").replace("\\", "/").rsplit("/", 1)[-1]
    return f"{name}, loading" if engine.state == "loading" else name


def _work(look: Look, running: Story | None) -> str:
    if look.trouble:
        return f'<span class="work"><span><i class="dot stopped"></i>{escape(look.trouble)}</span></span>'
    if running is not None and running.state == "running":
        percent = round(100 * running.share)
        return (
            f'<span class="work"><span>Training <span class="work-name">{escape(running.name)} </span>{percent}%</span>'
            f'<span class="bar"><i style="width:{percent}%"></i></span></span>'
        )
    waiting = sum(job.state in ("waiting", "starting") for job in look.jobs)
    if waiting:
        return f'<span class="work"><span>Queue: {waiting} waiting</span></span>'
    return '<span class="work"><span>Drawing</span></span>' if look.engine.state == "busy" else ""
