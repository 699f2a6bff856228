"""A run as one page: settings, curves, previews, health, captions, strength and spectrum, in an HTML file that needs
nothing beside it.

Every figure comes from the run's folder (`config.toml`, `events.jsonl`, `dataset.json`, `previews/`, the adapter). No
torch, and no script in the page; what is computed from the adapter's values is handed over.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any

from diffusion_lora.config import TrainConfig, as_toml, setting_differences
from diffusion_lora.data.fingerprint import NAME as FINGERPRINT
from diffusion_lora.errors import RunError
from diffusion_lora.events import read_events
from diffusion_lora.faces.charts import Line, line_chart
from diffusion_lora.faces.page import size_in_words, smooth
from diffusion_lora.faces.spectrum_plot import draw_spectrum
from diffusion_lora.run import Run

if TYPE_CHECKING:
    from diffusion_lora.lora.advice import Advice
    from diffusion_lora.lora.spectrum import Spectrum

_POINTS = 400
_SHOWN_WORDS = 24
_STYLE = """
:root { --paper: #f6f3ec; --card: #fffefb; --ink: #26232a; --soft: #77717d; --rule: #e4dfd5; --warn: #a8410c;
  --first: #2e6f8e; --second: #c2502e; --third: #5b7f3a; --bar: #dfe8ea }
@media (prefers-color-scheme: dark) { :root { --paper: #15161a; --card: #1e2026; --ink: #e6e3dd; --soft: #9a958f;
  --rule: #33353d; --warn: #ffab78; --first: #74b6d6; --second: #f08a5d; --third: #a3c77a; --bar: #2c3a42 } }
* { box-sizing: border-box }
body { font: 15px/1.55 system-ui, sans-serif; max-width: 1000px; margin: 0 auto; padding: 40px 24px 64px;
  color: var(--ink); background: var(--paper) }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere }
section { background: var(--card); border-radius: 14px; padding: 20px 24px 22px; margin-top: 20px }
h2 { font-size: 17px; margin: 0 0 10px } h3 { font-size: 14px; margin: 18px 0 6px; font-weight: 600 }
p { margin: 6px 0 } ul { margin: 0; padding-left: 18px } li { margin: 3px 0; overflow-wrap: anywhere }
.dim { color: var(--soft) } .warn { color: var(--warn) }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin-top: 18px }
.tiles div { background: var(--card); border-radius: 12px; padding: 12px 18px; flex: 1 1 auto }
.tiles b { display: block; font-size: 22px; line-height: 1.2; font-variant-numeric: tabular-nums }
.tiles span { color: var(--soft); font-size: 13px }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: 4px 18px 4px 0; text-align: left; vertical-align: top }
thead th { font-weight: 500; color: var(--soft); font-size: 13px }
.pictures th { font-weight: 500; font-size: 13px; max-width: 140px; padding: 0 8px 6px 0; color: var(--soft) }
.pictures td { padding: 0 8px 8px 0 } .pictures img { width: 140px; display: block; border-radius: 8px }
img.wide, svg { width: 100%; height: auto; display: block } img.wide { border-radius: 10px; margin-top: 12px }
svg text { font: 12px system-ui, sans-serif } .tick { fill: var(--soft) } .grid { stroke: var(--rule) }
.mark { stroke: var(--soft); stroke-dasharray: 4 4 }
polyline { stroke-width: 2.4; stroke-linejoin: round } polyline.raw { stroke-width: 1; opacity: .35 }
polyline.raw, polyline.first { stroke: var(--first) } polyline.second { stroke: var(--second) }
polyline.third { stroke: var(--third) }
circle.first { fill: var(--first) } circle.second { fill: var(--second) } circle.third { fill: var(--third) }
.legend { display: flex; flex-wrap: wrap; gap: 4px 20px; color: var(--soft); font-size: 13px; margin-bottom: 4px }
.legend i { display: inline-block; width: 18px; height: 3px; border-radius: 2px; margin-right: 6px;
  vertical-align: middle; background: var(--first) }
.legend i.raw { opacity: .35 } .legend i.second { background: var(--second) }
.legend i.third { background: var(--third) }
.words { display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 3px 16px }
.words div { position: relative; padding: 1px 8px; display: flex; justify-content: space-between; gap: 8px }
.words i { position: absolute; inset: 0 auto 0 0; background: var(--bar); border-radius: 4px }
.words span { position: relative; overflow-wrap: anywhere }
@media (prefers-color-scheme: dark) { img.wide { filter: brightness(.88) } }
"""


@dataclass(frozen=True)
class Learned:
    """What the values of a run's adapter say: its singular values, the ranks that would do, and the shares told."""

    spectrum: Spectrum
    advice: Advice
    shares: Sequence[float]


def run_report(run: Run, learned: Learned | None = None) -> str:
    """The page. Raises RunError for a run that has not taken a step."""
    of = events_by_kind(run)
    parts = [
        _head(run, of),
        _section("Loss", _curves(of)),
        _section("Health", _sentences(of)),
        _section("Previews", _previews(run, of.get("preview", []))),
        _section("Which strength suits it", _strengths(of.get("calibration", []))),
        _section("Pictures that fight the rest", _fighting(of.get("pictures", []))),
        _section("Spectrum, and which rank would do", _spectrum(run, learned) if learned is not None else ""),
        _section("Captions", _captions(run)),
        _section("Settings that are not the defaults", _settings(run.config)),
    ]
    title = escape(run.config.output.name)
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
        f"<style>{_STYLE}</style>"
    )
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(parts)}</body></html>\n'


def events_by_kind(run: Run) -> dict[str, list[Mapping[str, Any]]]:
    """The events of a run. Raises RunError for one that has not taken a step."""
    of: dict[str, list[Mapping[str, Any]]] = {}
    for event in read_events(run.folder):
        of.setdefault(str(event["kind"]), []).append(event)
    if not of.get("step"):
        raise RunError(f"the run in {run.folder} has not taken a step yet: there is nothing to report")
    return of


def run_facts(run: Run, of: Mapping[str, Sequence[Mapping[str, Any]]]) -> tuple[list[tuple[str, str]], str]:
    """The figures of a run, (value, what it is), and one line of what else it was."""
    start, last, ended = (of.get("start") or [{}])[-1], of["step"][-1], of.get("end", [])
    tiles = [(f"{last['step']}", f"of {run.config.train.steps} steps of {start.get('batch_size', '?')}")]
    tiles.append((str(start.get("pictures", "?")), "pictures"))
    tiles.append((f"{run.config.lora.rank}", f"rank, alpha {run.config.lora.alpha:g}"))
    if measured := losses_of(of.get("validation", [])):
        tiles.append((f"{min(loss for _, loss in measured):.4f}", "best held-out loss"))
    if strengths := of.get("calibration"):
        strength = f"{strengths[-1]['strength']:g}"
        folded = bool(strengths[-1]["folded"])
        tiles.append(("1.0", f"is strength {strength}") if folded else (strength, "strength that suits"))
    if ended:
        tiles.append((_duration(ended[-1]["seconds"]), "in its last process"))
    warnings = len(of.get("warning", []))
    tiles.append((str(warnings) if warnings else "none", "warnings" if warnings != 1 else "warning"))
    facts = [
        f"base {start.get('base', run.config.model.base)}",
        f"{start.get('parameters', 0):,} parameters ({start.get('share', '?')} % of the base)",
        f"on {start.get('device', '?')}, {start.get('precision', '')}, {start.get('optimizer', '')}",
        *([] if ended else ["not ended"]),
    ]
    return tiles, " · ".join(facts)


def losses_of(events: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """(step, loss) of events; those that are not finite, which stand as text, are left out."""
    return [(e["step"], float(e["loss"])) for e in events if not isinstance(e["loss"], str)]


def thinned(course: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most as many points as are seen: means of neighbours."""
    size = -(-len(course) // _POINTS)
    parts = [course[start : start + size] for start in range(0, len(course), size)]
    return [(part[-1][0], mean(loss for _, loss in part)) for part in parts]


def _head(run: Run, of: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    tiles, line = run_facts(run, of)
    shown = "".join(f"<div><b>{escape(value)}</b><span>{escape(what)}</span></div>" for value, what in tiles)
    comment = run.config.output.comment
    said = f"<p>{escape(comment)}</p>" if comment else ""
    name = escape(run.config.output.name)
    return f'<h1>{name}</h1>{said}<p class="dim">{escape(line)}</p><div class="tiles">{shown}</div>'


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def _curves(of: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The training loss, every step and smoothed, and that on held-out pictures, on one scale."""
    training, held_out = losses_of(of["step"]), losses_of(of.get("validation", []))
    smoothed = smooth(training)
    told = f"training loss, smoothed: {smoothed[0][1]:.4f} at first, {smoothed[-1][1]:.4f} at the end"
    if held_out:
        step, loss = min(held_out, key=lambda pair: pair[1])
        told += f"; on held-out pictures lowest after step {step}, {loss:.4f}, at the end {held_out[-1][1]:.4f}"
    lines = [
        Line("training, each step", thinned(training), "raw", faint=True),
        Line("training, smoothed", thinned(smoothed), "first"),
        Line("held-out pictures", held_out, "second", dots=len(held_out) <= 60),
    ]
    return f'{line_chart(lines, told, "step")}<p class="dim">{escape(told)}</p>'


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
    """A row a step, a column a prompt."""
    if not previews:
        return ""
    prompts = "".join(f"<th>{escape(prompt)}</th>" for prompt in run.config.preview.prompts)
    rows = []
    for event in previews:
        pictures = [f"<td>{_picture(run.folder / path)}</td>" for path in event["paths"]]
        rows.append(f"<tr><th>step {event['step']}</th>{''.join(pictures)}</tr>")
    head = f"<thead><tr><th></th>{prompts}</tr></thead>" if prompts else ""
    return f'<div class="scroll"><table class="pictures">{head}<tbody>{"".join(rows)}</tbody></table></div>'


def _picture(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError:
        return '<span class="dim">(gone)</span>'
    return f'<img alt="{escape(path.name)}" src="{_data(data)}">'


def _data(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _strengths(events: Sequence[Mapping[str, Any]]) -> str:
    """Effect, content and their product over the strength, each as a share of its greatest."""
    shown = []
    for event in events:
        looks = [(float(s), float(effect), float(content)) for s, effect, content in event["looks"]]
        both = [(s, max(0.0, effect) * max(0.0, content)) for s, effect, content in looks]
        effects = [(s, effect) for s, effect, _ in looks]
        lines = [
            Line("effect", _of_greatest(effects), "first", dots=True),
            Line("content", _of_greatest([(s, content) for s, _, content in looks]), "third", dots=True),
            Line("both: effect x content", _of_greatest(both), "second", dots=True),
        ]
        name = f"<h3>{escape(event['adapter'])}</h3>" if event.get("adapter") else ""
        then = " It is folded into the file: its strength 1 is this one." if event["folded"] else ""
        text = f"<p>{escape(event['text'])}.{then}</p>"
        chart = line_chart(lines, event["text"], "strength", mark=float(event["strength"]))
        below = f"each as a share of its greatest; found in {event['seconds']:g} s"
        shown.append(f'{name}{text}{chart}<p class="dim">{below}</p>')
    return "".join(shown)


def _of_greatest(course: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    greatest = max((abs(value) for _, value in course), default=0.0) or 1.0
    return [(x, value / greatest) for x, value in course]


def _fighting(looks: Sequence[Mapping[str, Any]]) -> str:
    if not looks:
        return ""
    rows = [f"<tr><td>{escape(one['picture'])}</td><td>{one['z']:.1f}</td></tr>" for one in looks[-1]["first"]]
    head = "<thead><tr><th>picture</th><th>robust z</th></tr></thead>"
    return f'<table>{head}{"".join(rows)}</table><p class="dim">above 3.5 stands out from the rest</p>'


def _spectrum(run: Run, learned: Learned) -> str:
    advice = learned.advice
    rows = [
        f"<tr><td>{escape(kind.kind)}</td><td>{kind.layers}</td><td>{100 * kind.energy_share:.1f} %</td>"
        f"<td>{kind.choice.rank}</td><td>{kind.median_rank} to {kind.most}</td><td>{kind.choice.parameters:,}</td></tr>"
        for kind in advice.by_kind
    ]
    share = f"{100 * advice.share:g} %"
    columns = ("layers of kind", "layers", "of the energy", f"rank for {share}", "single layers", "parameters")
    head = "".join(f"<th>{column}</th>" for column in columns)
    told = (
        f"one rank for all layers that keeps {share} of the energy: {advice.choice.rank} "
        f"({size_in_words(advice.choice.size_bytes)} in fp16); the adapter was trained at rank {run.config.lora.rank}"
    )
    notes = "".join(f'<p class="dim">{escape(note)}</p>' for note in advice.notes)
    picture = draw_spectrum(run.config.output.name, f"norm {learned.spectrum.norm:.4g} at strength 1", learned.spectrum,
                            learned.shares)  # fmt: skip
    buffer = BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return (
        f'<p>{escape(told)}</p>{notes}<div class="scroll"><table><thead><tr>{head}</tr></thead>{"".join(rows)}</table>'
        f'</div><img class="wide" alt="singular values by layer, and the energy that a rank keeps" '
        f'src="{_data(buffer.getvalue())}">'
    )


def _captions(run: Run) -> str:
    """What the captions were made of when the run began."""
    try:
        told = json.loads((run.folder / FINGERPRINT).read_text(encoding="utf-8"))["pictures"]
    except (OSError, ValueError, KeyError):
        return ""
    of_each = [one["captions"] for one in told.values()]
    captions = [caption for some in of_each for caption in some if caption]
    if not captions:
        return f"<p>none of the {len(of_each)} pictures has a caption</p>"
    lengths = [len(caption.split()) for caption in captions]
    alike = sum(count for count in Counter(captions).values() if count > 1)
    facts = [
        f"{len(captions)} captions of {len(of_each)} pictures",
        f"{min(lengths)} to {max(lengths)} words, {median(lengths):g} in the middle",
        f"{len(set(captions))} different ones" if alike else "no two alike",
    ]
    if bare := sum(not any(some) for some in of_each):
        facts.append(f"{bare} pictures without")
    words = Counter(word for caption in captions for word in _words(caption))
    parts = Counter(part.strip().lower() for caption in captions for part in caption.split(",") if part.strip())
    shown = f'<p>{escape("; ".join(facts))}</p><h3>words</h3>{_bars(words)}'
    if any("," in caption for caption in captions):
        shown += f"<h3>parts between commas</h3>{_bars(parts)}"
    return shown


def _words(caption: str) -> list[str]:
    return [word for part in caption.lower().split() if (word := part.strip(".,;:!?()[]\"'"))]


def _bars(counts: Counter[str]) -> str:
    """The commonest, with a bar as long as its share of the first."""
    shown = counts.most_common(_SHOWN_WORDS)
    rows = [
        f'<div><i style="width:{100 * count / shown[0][1]:.0f}%"></i><span>{escape(word)}</span>'
        f'<span class="dim">{count}</span></div>'
        for word, count in shown
    ]
    more = f'<p class="dim">and {len(counts) - len(shown)} more</p>' if len(counts) > len(shown) else ""
    return f'<div class="words">{"".join(rows)}</div>{more}'


def _settings(config: TrainConfig) -> str:
    plain = TrainConfig.model_validate({"dataset": {"path": config.dataset.path}})
    rows = [
        f"<tr><td>{escape(key)}</td><td>{escape(as_toml(key, value))}</td>"
        f"<td class=dim>{escape(as_toml(key, default))}</td></tr>"
        for key, (default, value) in setting_differences(plain, config).items()
    ]
    head = "<thead><tr><th>setting</th><th>here</th><th>default</th></tr></thead>"
    return f'<div class="scroll"><table>{head}{"".join(rows)}</table></div>' if rows else ""


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"
