"""The queue as HTML: a row a job, and under a failed one what it said last. Every text is escaped."""

from __future__ import annotations

from html import escape
from pathlib import Path

from diffusion_lora.jobs.store import Job
from diffusion_lora.workspace import Workspace
from webui.files import Thumbnails, picture_url
from webui.runs import Stories, Story
from webui.runview import resume_label
from webui.watch import Look
from webui.words import duration, moment

EMPTY = (
    '<div class="empty queue-empty"><strong>Nothing is queued</strong>'
    "Runs that you start on the Train tab wait and run here, and stay when the page is closed.</div>"
)
_HEAD = (
    '<div class="queue-row queue-head"><span></span><span>Name</span><span>State</span><span>Work</span>'
    "<span>Time</span><span></span></div>"
)
_SHORT = 48
"""Characters of a sentence that still fit into the column of states."""
_TAIL_BYTES, _TAIL_LINES, _LONGEST_LINE = 16_384, 20, 300
_DOTS = {"running": "good", "done": "good", "failed": "stopped", "stopped": "careful", "paused": "careful"}


def table(look: Look, stories: Stories, workspace: Workspace, thumbnails: Thumbnails) -> str:
    """All jobs: what runs, what waits, the rest, newest first."""
    if not look.jobs:
        return EMPTY
    line = [job.run for job in look.jobs if job.state == "waiting"]
    rows = (_row(job, stories.story(job.run, job), workspace, thumbnails, line) for job in look.jobs)
    return _HEAD + "".join(rows)


def log_tail(run_folder: Path) -> str:
    """The last lines of a run's log, and of what its process printed where it never came to write one."""
    for name in ("log.txt", "console.txt"):
        try:
            with (run_folder / name).open("rb") as file:
                file.seek(max(0, (run_folder / name).stat().st_size - _TAIL_BYTES))
                lines = file.read().decode("utf-8", "replace").splitlines()
        except OSError:
            continue
        if lines:
            return "\n".join(line[:_LONGEST_LINE] for line in lines[-_TAIL_LINES:])
    return ""


def _row(job: Job, story: Story | None, workspace: Workspace, thumbnails: Thumbnails, line: list[str]) -> str:
    state = "waiting" if job.state == "starting" else job.state
    said, name = _said(job, story), escape(job.run)
    return (
        f'<div class="queue-job" data-run="{name}" data-state="{state}"><div class="queue-row">'
        f"{_picture(story, workspace, thumbnails)}"
        f"{_who(job, name)}"
        f'<span class="state"><i class="dot {_DOTS.get(state, "")}"></i>{escape(_state(job, story))}</span>'
        f'<span class="work">{_work(story, state)}</span>'
        f'<span class="time">{escape(_time(job, story, state))}</span>'
        f'<span class="acts">{_acts(story, state, _places(job, line))}</span></div>{said}'
        f'<pre class="said log" hidden></pre></div>'
    )


def _who(job: Job, name: str) -> str:
    """Its name; that of a training leads to it."""
    told = f'<b title="{name}">{name}</b><i>{job.kind.capitalize()}</i>'
    if job.kind != "train":
        return f'<span class="who">{told}</span>'
    return f'<button type="button" class="who" data-act="show" aria-label="Show {name}">{told}</button>'


def _picture(story: Story | None, workspace: Workspace, thumbnails: Thumbnails) -> str:
    """The newest preview, or else the first picture it learns from."""
    for column in reversed(story.columns if story else ()):
        newest = next((picture for picture in column.pictures if picture.is_file()), None)
        if newest is not None:
            return f'<img src="{picture_url(workspace, newest)}" alt="">'
    if story is not None and (first := _first_picture(Path(story.config.dataset.path))) is not None:
        return f'<img src="{thumbnails.url(first)}" alt="">'
    return '<span class="no-picture"></span>'


def _first_picture(folder: Path) -> Path | None:
    return next(iter(sorted(folder.glob("*.png")) or sorted(folder.glob("*.jp*g"))), None)


def _state(job: Job, story: Story | None) -> str:
    if job.state == "running" and story is not None and story.text:
        return _capital(story.text)
    if job.state in ("stopped", "paused") and job.text and len(job.text) <= _SHORT:
        return f"{job.state.capitalize()}: {job.text}"
    return job.state.capitalize()


def _work(story: Story | None, state: str) -> str:
    if story is None:
        return "Its folder is gone"
    if state == "done":
        took = f" in {duration(story.seconds)}" if story.seconds is not None else ""
        return f"{story.steps} {story.unit}{took}"
    if state == "running":
        percent = 100 * story.share
        bar = f'<span class="bar"><i style="width:{percent:.0f}%"></i></span>'
        return f"{story.step} of {story.steps} {story.unit}{bar}"
    if story.step:
        return f"{story.step} of {story.steps} {story.unit}"
    return f"{story.steps} {story.unit}" if story.steps else ""


def _time(job: Job, story: Story | None, state: str) -> str:
    if state == "running":
        return f"{story.time_left} left" if story and story.time_left else ""
    at = job.ended or job.queued
    return f"since {moment(at)}" if state == "waiting" else moment(at)


def _places(job: Job, line: list[str]) -> list[tuple[str, str, str]]:
    """Buttons that put the line in order, for one that can go somewhere."""
    if job.run not in line:
        return []
    place = line.index(job.run)
    return [
        *([("sooner", "Sooner", "quiet")] if place else []),
        *([("later", "Later", "quiet")] if place < len(line) - 1 else []),
    ]


def _acts(story: Story | None, state: str, places: list[tuple[str, str, str]]) -> str:
    acts = [*places, ("log", "Log", "quiet")]
    if state in ("done", "failed", "stopped", "paused"):
        acts.append(("remove", "Remove", "quiet"))
    if state == "running":
        acts.append(("cancel", "Stop and save" if story is None or story.unit == "steps" else "Stop", ""))
    elif state == "waiting":
        acts.append(("cancel", "Cancel", ""))
    elif state == "done" and story is not None and story.adapter:
        acts.append(("open", "Open in Generate", ""))
    elif state in ("failed", "stopped", "paused") and story is not None:
        acts.append(("resume", resume_label(story), ""))
    return "".join(
        f'<button type="button" class="{kind}" data-act="{name}">{escape(label)}</button>' for name, label, kind in acts
    )


def _said(job: Job, story: Story | None) -> str:
    """The sentence with which it ended, in full."""
    text = job.text or (story.text if story else "")
    told_above = job.state != "failed" and len(text) <= _SHORT
    if job.state not in ("failed", "stopped") or not text or told_above:
        return ""
    return f'<pre class="said">{escape(_capital(text))}</pre>'


def _capital(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}"
