"""The training loop, on one page.

    for every step: draw f(seed, step) -> noisy latents -> the base with its adapters predicts -> losses -> optimizers
    once in a while: previews, checkpoint, and the answer to Ctrl-C and to the inbox (see `inbox`)

What it says goes to `events.jsonl` and, the same, to whoever watches (`progress`). No random state is kept, so going on
from a checkpoint gives, on the same machine, the numbers an uninterrupted run would have given. What a picture, a model
or an adapter is made of is not known here; what a step's numbers mean is `outcome`'s.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from diffusion_lora.config import TrainConfig, variants
from diffusion_lora.errors import RunError
from diffusion_lora.events import Progress, ignore, read_events
from diffusion_lora.inbox import taken
from diffusion_lora.run import Run
from diffusion_lora.train.ahead import Ahead, Outcomes
from diffusion_lora.train.checkpoint import checkpoints, go_back, load_checkpoint, save_checkpoint
from diffusion_lora.train.draws import Draw
from diffusion_lora.train.fighting import Fighting
from diffusion_lora.train.fitting import Fitting
from diffusion_lora.train.interrupt import StopRequest, interrupted
from diffusion_lora.train.learner import Learner
from diffusion_lora.train.material import Place
from diffusion_lora.train.memory import give_back
from diffusion_lora.train.outcome import Pace, judge, start_facts, step_facts, step_values
from diffusion_lora.train.parity import tell_parity
from diffusion_lora.train.passes import draw_passes, forward_backward
from diffusion_lora.train.prepare import prepare
from diffusion_lora.train.preview import draw_previews, previews_of
from diffusion_lora.train.results import keep_adapters, tell_calibration, tell_comparison, write_adapters
from diffusion_lora.train.team import Team, joined_team
from diffusion_lora.train.trackers import tracked
from diffusion_lora.train.validate import Validation
from diffusion_lora.train.watch import Watch


def train(
    run: Run,
    config: TrainConfig,
    *,
    resume: bool = False,
    from_step: int | None = None,
    progress: Progress = ignore,
    late: int | None = None,
) -> Path:
    """Train the adapter of a run folder, or all of its [sweep], and return its file (the first of a sweep).

    With `resume` it goes on from the newest checkpoint; without any, from the start. With `from_step` it goes on from
    that checkpoint, and those after it are set aside. `late` is by how many steps the host looks later at a loss than
    the device computes it: by default 1 on CUDA, so that it is never waited for.

    Raises UserError: whatever the configuration, pictures, base or disk give cause for; RunError at the first loss that
    is not finite, before anything is saved or told of a later step (the last checkpoint stays); RunInterrupted after
    Ctrl-C, SIGTERM or a request to stop or pause, with everything saved and the adapter so far written.
    """
    with joined_team(config.train.device) as team, tracked(run, config, progress, leads=team.leads) as watcher:
        if from_step is not None and team.leads:
            go_back(run, from_step)
        return _train(run, config, team, resume or from_step is not None, watcher, late)


def _train(run: Run, config: TrainConfig, team: Team, resume: bool, progress: Progress, late: int | None) -> Path:
    def tell(kind: str, **fields: Any) -> None:
        if team.leads:
            progress(run.emit(kind, **fields))
            if kind != "step" or fields["step"] % 50 == 0:
                run.log("  ".join([kind, *(f"{key}: {value}" for key, value in fields.items())]))

    # What stays the same from step to step, and where to begin.
    saved = team.told(checkpoints(run))
    if saved and not resume:
        raise RunError(f"{run.folder} holds a run at step {saved[-1][0]}: add --resume to go on with it")
    if any(event["kind"] != "waiting" for event in read_events(run.folder, current=False)):
        tell("resume", step=saved[-1][0] if saved else 0)
    config = config.model_copy(update={"train": config.train.model_copy(update={"device": team.device})})
    with team.leader_first():
        ready = prepare(
            config,
            on_problem=lambda picture, why: tell("problem", picture=picture, text=why),
            place=Place(run.folder, began=bool(saved), processes=team.size, follows=not team.leads),
            on_progress=lambda what, done, total: tell("preparing", what=what, done=done, total=total),
        )
    device = ready.model.device
    learners = [Learner.of(name, own, ready.adapters[name], device) for name, own in variants(config).items()]
    fitting = Fitting(config.train, ready, tell=lambda text: tell("note", text=text))
    step = load_checkpoint(saved[-1][1], learners, fitting, ready.folded) if saved else 0
    steps = config.train.steps
    tell("start", **start_facts(config, ready, learners, team.size))
    for sentence in dict.fromkeys((*ready.notes, *(learner.note for learner in learners if learner.note))):
        tell("note", text=sentence)
    started_s, pace = time.monotonic(), Pace(step)
    watch, validation = Watch(run, ready, learners, tell), Validation(run, config, ready, learners, tell)
    fighting = Fighting(run, config, ready, learners, tell)
    outcomes = Outcomes((1 if device.type == "cuda" else 0) if late is None else late)
    draw = partial(draw_passes, ready=ready, learners=learners, share=(team.rank, team.size))

    def one_pass(draw: Draw, share: float) -> Tensor:
        return forward_backward(ready, learners, draw, share / team.size)

    with StopRequest() as stop, Ahead(draw, step, steps) as ahead, ready.bank.side_by_side():
        if team.leads and validation.due(step):
            validation.look(step)
        while step < steps:
            # --- one step ---------------------------------------------------------------------------------------------
            for learner in learners:
                learner.begin(step)
            draws = ahead.take(step)
            losses = fitting.losses(draws, one_pass, learners)
            team.add_up([losses, *(learner.adapter.gradient for learner in learners)])
            norms = [learner.clip() for learner in learners]
            # Looked at before anything is changed: a bad step leaves the adapter as it was. Where it is looked at late,
            # a bad step is found before anything of it, or after it, is saved.
            due = outcomes.put(step_facts(step, learners, draws), step_values(losses, norms))
            for outcome in due:
                judge(run, learners, outcome, tell)
            for learner, norm in zip(learners, norms, strict=True):
                if cut := learner.update(step, norm[0]):
                    tell("ranks", step=step + 1, **cut)
            step += 1
            for outcome in due:
                tell("step", **pace.told(config, learners, outcome, team.size))
            if team.leads:
                watch.steps(due)
                watch.adapters(step)

            # --- what was asked meanwhile -----------------------------------------------------------------------------
            asked = taken(run.folder) if team.leads else []
            asked_to_stop, asked_to_pause, sample = team.any(
                [stop.requested or "stop" in asked, "pause" in asked, "sample" in asked]
            )
            measured = validation.due(step)
            ending = "stop" if asked_to_stop else "pause" if asked_to_pause else None
            # The last ones are drawn with the adapter's file, once it is there.
            preview = sample or (config.preview.due(step) and step < steps)
            save = config.checkpoint.due(step) or step == steps or ending
            looked = fighting.due(step)
            if preview or save or measured or looked:
                for outcome in outcomes.rest():
                    judge(run, learners, outcome, tell)
                    tell("step", **pace.told(config, learners, outcome, team.size))
                    watch.steps([outcome])

            # --- once in a while: held-out pictures, previews, a checkpoint -------------------------------------------
            if measured and team.leads:
                validation.look(step)
                watch.validation(step, validation.courses)
            if looked and team.leads:
                fighting.look(step)
            turned = validation.may_end(step) and team.any([team.leads and validation.has_turned])[0]
            if preview and team.leads:
                with ExitStack() as kept:
                    for learner in learners:
                        kept.enter_context(learner.optimizer.averaged())
                    paths = draw_previews(run, ready, previews_of(config, ready), step)
                tell("preview", step=step, paths=paths)
                watch.previews(step, paths)
            if (save or turned) and team.leads:
                path = save_checkpoint(run, step, learners, fitting.state(), ready.folded, keep=config.checkpoint.keep)
                tell("checkpoint", step=step, path=str(path.relative_to(run.folder)))
                if config.checkpoint.adapters:
                    keep_adapters(run, ready, learners, step)

            # --- once: the end before the end -------------------------------------------------------------------------
            if ending and step < steps:
                if team.leads:
                    write_adapters(run, ready, learners, step)
                tell(ending, step=step, reason=f"asked to {ending}")
                raise interrupted(run, step)

            if turned:
                break

    give_back()  # what the steps took: what follows needs as much again
    if team.leads:
        write_adapters(run, ready, learners, step)
        well = [learner for learner in learners if learner.diverged_at is None]
        if paths := [path for learner in well for path in tell_parity(run, ready, learner, step, tell)]:
            tell("preview", step=step, paths=paths)
            watch.previews(step, paths)
        validation.conclude(step)
        tell_calibration(run, ready, well, step, tell)
        tell_comparison(run, learners, tell)
    path = next(run.adapter_file(learner.name) for learner in learners if learner.diverged_at is None)
    tell("end", step=step, path=path.name, seconds=round(time.monotonic() - started_s, 1))
    return path
