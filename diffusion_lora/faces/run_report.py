"""A run as one page: settings, curves, previews, health and captions, in an HTML file that needs nothing beside it.

Every figure comes from the run's folder (`config.toml`, `events.jsonl`, `previews/`, the adapter's header). No torch,
and no script in the page.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from diffusion_lora.config import TrainConfig, setting_differences
from diffusion_lora.errors import RunError
from diffusion_lora.events import read_events
from diffusion_lora.lora.header import read_header
from diffusion_lora.run import Run

_WIDTH, _HEIGHT = 860, 240
_POINTS = 400
_SHOWN_TAGS = 24
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 900px; margin: 2em auto; padding: 0 1em; color: #1c2330;
       background: #fbfaf7 }
h1 { font-size: 1.5em; margin-bottom: 0 } h2 { font-size: 1.1em; margin-top: 2em }
table { border-collapse: collapse } td, th { padding: .2em .8em .2em 0; text-align: left; vertical-align: top }
img { width: 128px; image-rendering: auto; border-radius: 4px; margin: 2px }
.dim { color: #667 } .warn { color: #9a3b00 }
svg { width: 100%; height: auto; background: #fff; border: 1px solid #ddd; border-radius: 6px }
@media (prefers-color-scheme: dark) { body { background: #14181f; color: #dfe5ee } svg { background: #1b212b;
  border-color: #333 } .dim { color: #99a } .warn { color: #ffb27a } }
"""


def run_report(run: Run) -> str:
    """The page. Raises RunError for a run that has not taken a step."""
    events = read_events(run.folder)
    of: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        of.setdefault(str(event["kind"]), []).append(event)
    if not of.get("step"):
        raise RunError(f"the run in {run.folder} has not taken a step yet: there is nothing to report")
    parts = [
        _head(run, of),
        _section("Loss", _curves(of)),
        _section("Health", _sentences(of)),
        _section("Previews", _previews(run, of.get("preview", []))),
        _section("Pictures that fight the rest", _fighting(of.get("pictures", []))),
        _section("Captions", _tags(run)),
        _section("Settings that are not the defaults", _settings(run.config)),
    ]
    title = escape(run.config.output.name)
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    return f"<!doctype html><html><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _head(run: Run, of: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    start, last = (of.get("start") or [{}])[-1], of["step"][-1]
    ended = of.get("end", [])
    facts = [
        f"{last['step']} of {run.config.train.steps} steps of {start.get('batch_size', '?')}",
        f"{start.get('pictures', '?')} pictures",
        f"base {start.get('base', run.config.model.base)}",
        f"rank {run.config.lora.rank}, alpha {run.config.lora.alpha:g}",
        f"{start.get('parameters', 0):,} parameters ({start.get('share', '?')} % of the base)",
        f"on {start.get('device', '?')}, {start.get('precision', '')}, {start.get('optimizer', '')}",
        f"{ended[-1]['seconds']:g} s in its last process" if ended else "not ended",
    ]
    return f'<h1>{escape(run.config.output.name)}</h1><p class="dim">{escape(" · ".join(facts))}</p>'


def _section(title: str, body: str) -> str:
    return f"<h2>{escape(title)}</h2>{body}" if body else ""


def _curves(of: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The training loss, smoothed, and that on held-out pictures, on one scale."""
    training = _thinned([(event["step"], float(event["loss"])) for event in of["step"]])
    held_out = [(e["step"], float(e["loss"])) for e in of.get("validation", []) if not isinstance(e["loss"], str)]
    values = [loss for _, loss in (*training, *held_out)]
    low, high = min(values), max(values)
    last = max(step for step, _ in (*training, *held_out)) or 1

    def points(course: Sequence[tuple[int, float]]) -> str:
        span = (high - low) or 1.0
        return " ".join(
            f"{10 + (_WIDTH - 20) * step / last:.1f},{10 + (_HEIGHT - 20) * (high - loss) / span:.1f}"
            for step, loss in course
        )

    lines = f'<polyline fill="none" stroke="#5b7fb5" stroke-width="1.5" points="{points(training)}"/>'
    told = f"training loss, means of neighbours: {training[0][1]:.4f} to {training[-1][1]:.4f} (blue)"
    if held_out:
        lines += f'<polyline fill="none" stroke="#d9792b" stroke-width="2.5" points="{points(held_out)}"/>'
        best = min(held_out, key=lambda pair: pair[1])
        told += f"; on held-out pictures: lowest after step {best[0]}, {best[1]:.4f} (orange)"
    scale = f"from {low:.4f} below to {high:.4f} above, over {last} steps"
    picture = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(told)}">{lines}</svg>'
    return f'{picture}<p class="dim">{escape(told)}; {scale}</p>'


def _thinned(course: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    size = max(5, -(-len(course) // _POINTS))
    parts = [course[start : start + size] for start in range(0, len(course), size)]
    return [(part[-1][0], sum(loss for _, loss in part) / len(part)) for part in parts]


def _sentences(of: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    lines = [f'<li class="warn">{escape(event["text"])}</li>' for event in of.get("warning", [])]
    lines = lines or ["<li>no warning</li>"]
    for event in of.get("parity", []):
        agrees = "draws what the training showed" if event["agrees"] else "does not draw what the training showed"
        share = "" if event["difference"] is None else f" (latents differ by {100 * event['difference']:.2g} %)"
        lines.append(f"<li>{escape(event['path'])}, read again, {agrees}{share}</li>")
    lines += [f"<li>{escape(event['picture'])}: {escape(event['text'])}</li>" for event in of.get("problem", [])]
    lines += [f'<li class="dim">{escape(event["text"])}</li>' for event in of.get("note", [])]
    return f"<ul>{''.join(lines)}</ul>"


def _previews(run: Run, previews: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for event in previews:
        pictures = [_picture(run.folder / path) for path in event["paths"]]
        rows.append(f"<tr><th>{event['step']}</th><td>{''.join(pictures)}</td></tr>")
    return f"<table>{''.join(rows)}</table>" if rows else ""


def _picture(path: Path) -> str:
    try:
        data = base64.b64encode(path.read_bytes()).decode()
    except OSError:
        return '<span class="dim">(gone)</span>'
    return f'<img alt="{escape(path.name)}" src="data:image/png;base64,{data}">'


def _fighting(looks: Sequence[Mapping[str, Any]]) -> str:
    if not looks:
        return ""
    rows = [f"<tr><td>{escape(one['picture'])}</td><td>z {one['z']:.1f}</td></tr>" for one in looks[-1]["first"]]
    return f'<table>{"".join(rows)}</table><p class="dim">above 3.5 stands out from the rest</p>'


def _tags(run: Run) -> str:
    """The commonest parts of captions, as the adapter's header counts them."""
    if not run.adapter_path.exists():
        return ""
    counts: Counter[str] = Counter()
    for tags in json.loads(read_header(run.adapter_path).metadata.get("ss_tag_frequency", "{}")).values():
        counts.update(tags)
    shown = ", ".join(f"{tag} ({number})" for tag, number in counts.most_common(_SHOWN_TAGS))
    return f"<p>{escape(shown)}</p>" if shown else ""


def _settings(config: TrainConfig) -> str:
    plain = TrainConfig.model_validate({"dataset": {"path": config.dataset.path}})
    rows = [
        f"<tr><td>{escape(key)}</td><td>{escape(str(value))}</td><td class=dim>{escape(str(default))}</td></tr>"
        for key, (default, value) in setting_differences(plain, config).items()
    ]
    return f"<table><tr><th>setting</th><th>here</th><th>default</th></tr>{''.join(rows)}</table>" if rows else ""
