"""The training loop, on one page.

    for every step: draw f(seed, step) -> noisy latents -> the base with its adapter predicts -> loss -> optimizer
    once in a while: previews, checkpoint, and the answer to Ctrl-C and to the inbox (see `inbox`)

What it says goes to `events.jsonl` and, the same, to whoever watches (`progress`). No random state is kept, so going on
from a checkpoint gives, on the same machine, the numbers an uninterrupted run would have given. What a picture, a model
or an adapter is made of is not known here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from diffusion_lora.config import PreviewTable, TrainConfig
from diffusion_lora.diffusion.objective import picture_losses
from diffusion_lora.errors import RunError
from diffusion_lora.events import Progress, ignore, read_events
from diffusion_lora.families.family import predict, with_sizes
from diffusion_lora.inbox import taken
from diffusion_lora.lora.adapter import write_adapter, write_word
from diffusion_lora.lora.metadata import TrainingFacts, training_metadata
from diffusion_lora.run import Run
from diffusion_lora.train.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from diffusion_lora.train.draws import Draw, draw_step
from diffusion_lora.train.interrupt import StopRequest, interrupted
from diffusion_lora.train.material import Place, picture_size_px
from diffusion_lora.train.optimizers import Optimizer, build_optimizer
from diffusion_lora.train.prepare import Prepared, prepare
from diffusion_lora.train.preview import draw_previews

_SAMPLES = 4  # pictures drawn when asked for and no prompts are configured


def train(run: Run, config: TrainConfig, *, resume: bool = False, progress: Progress = ignore) -> Path:
    """Train an adapter in a run folder and return its file, `RUN/adapter.safetensors`.

    With `resume` it goes on from the newest checkpoint; without any, from the start. Raises UserError: whatever the
    configuration, pictures, base or disk give cause for; RunError at the first loss that is not finite (the last
    checkpoint stays); RunInterrupted after Ctrl-C, SIGTERM or a request to stop or pause, with everything saved and the
    adapter so far written.
    """

    def tell(kind: str, **fields: Any) -> None:
        progress(run.emit(kind, **fields))
        if kind != "step" or fields["step"] % 50 == 0:
            run.log("  ".join([kind, *(f"{key}: {value}" for key, value in fields.items())]))

    # What stays the same from step to step, and where to begin.
    saved = checkpoints(run)
    if saved and not resume:
        raise RunError(f"{run.folder} holds a run at step {saved[-1][0]}: add --resume to go on with it")
    if any(event["kind"] != "waiting" for event in read_events(run.folder, current=False)):
        tell("resume", step=saved[-1][0] if saved else 0)
    ready = prepare(
        config,
        on_problem=lambda picture, why: tell("problem", picture=picture, text=why),
        place=Place(run.folder, began=bool(saved)),
        on_progress=lambda what, done, total: tell("preparing", what=what, done=done, total=total),
    )
    adapter, schedule, device = ready.adapter, ready.schedule, ready.model.device
    optimizer, note = build_optimizer(config.optimizer, adapter.segments, adapter.leaves)
    trained = [adapter.segments[name] for name in optimizer.parts]
    scaler = torch.amp.GradScaler(device.type, enabled=config.train.precision == "fp16")
    step = load_checkpoint(saved[-1][1], adapter, optimizer, scaler) if saved else 0
    steps, pictures_per_step = config.train.steps, config.train.batch_size * config.train.accumulation
    tell("start", **_start_facts(config, ready, optimizer))
    for sentence in (*ready.notes, *([note] if note else [])):
        tell("note", text=sentence)
    started_s, first_step, paced_s = time.monotonic(), step, 0.0

    with StopRequest() as stop:
        while step < steps:
            # --- one step ---------------------------------------------------------------------------------------------
            optimizer.set_rates(step, steps)
            adapter.zero_grad()
            draws = draw_step(step, ready.dataset, ready.latents, config, schedule.timesteps)
            losses = []
            for draw in draws:
                x0_BCHW, noise_BCHW, input_noise_BCHW, timesteps_B = (
                    tensor.to(device, non_blocking=True)
                    for tensor in (draw.x0_BCHW, draw.noise_BCHW, draw.input_noise_BCHW, draw.timesteps_B)
                )
                noisy_BCHW = schedule.add_noise(x0_BCHW, input_noise_BCHW, timesteps_B)
                with ready.arithmetic():
                    cond = with_sizes(ready.model, ready.condition(draw.captions), draw.sizes)
                    prediction_BCHW = predict(ready.model, noisy_BCHW, timesteps_B, cond)
                losses_B = picture_losses(
                    config.loss, schedule, prediction_BCHW, x0_BCHW, noise_BCHW, timesteps_B, draw.mask_B1HW
                )
                if draw.weights_B is not None:
                    losses_B = losses_B * draw.weights_B.to(device, non_blocking=True)
                loss = losses_B.mean() / len(draws)
                scaler.scale(loss).backward()
                losses.append(loss.detach())
            scaler.unscale_(optimizer)  # type: ignore[arg-type]
            norm = torch.nn.utils.get_total_norm(
                [parameter.grad for parameter in trained if parameter.grad is not None]
            )
            if config.optimizer.max_grad_norm:
                torch.nn.utils.clip_grads_with_norm_(trained, config.optimizer.max_grad_norm, norm)
            # The step's one wait for the device, before anything is changed: a bad step leaves the adapter as it was.
            loss_value, norm_value = torch.stack([torch.stack(losses).sum(), norm]).tolist()
            # An fp16 gradient may overflow: the scaler then skips the step and lowers its scale.
            if not (math.isfinite(loss_value) and (math.isfinite(norm_value) or scaler.is_enabled())):
                tell("stop", step=step, reason=f"loss {loss_value}, gradient norm {norm_value}")
                raise _diverged(run, config, step, loss_value, norm_value, draws)
            if math.isfinite(norm_value) and (cut := adapter.adapt(step, steps)):
                tell("ranks", step=step + 1, **cut)
            scaler.step(optimizer)  # type: ignore[arg-type]
            scaler.update()
            step += 1

            # --- what is told of it -----------------------------------------------------------------------------------
            done = step - first_step
            paced_s = paced_s or time.monotonic()  # the first step also warms caches up: the pace is that of the others
            seconds_per_step = (time.monotonic() - paced_s) / (done - 1) if done > 1 else math.inf
            rates = optimizer.rates()
            tell(
                "step",
                step=step,
                loss=loss_value,
                lr=rates.get("unet", 0.0),
                text_lr=rates.get("te", 0.0),
                **({"word_lr": rates["word"]} if "word" in rates else {}),
                grad_norm=norm_value if math.isfinite(norm_value) else str(norm_value),
                pictures_per_s=round(pictures_per_step / seconds_per_step, 2) if done > 1 else None,
                seconds_left=round(seconds_per_step * (steps - step), 1) if done > 1 else None,
            )

            # --- what was asked meanwhile -----------------------------------------------------------------------------
            asked = taken(run.folder)
            ending = "stop" if stop.requested or "stop" in asked else "pause" if "pause" in asked else None

            # --- once in a while: previews ----------------------------------------------------------------------------
            due = config.preview.every and config.preview.prompts and step % config.preview.every == 0
            if due or "sample" in asked:
                with optimizer.averaged():
                    paths = draw_previews(run, ready, _previews(config, ready), step)
                tell("preview", step=step, paths=paths)

            # --- once in a while: a checkpoint ------------------------------------------------------------------------
            due = config.checkpoint.every and step % config.checkpoint.every == 0
            if due or step == steps or ending:
                path = save_checkpoint(run, step, adapter, optimizer, scaler, keep=config.checkpoint.keep)
                tell("checkpoint", step=step, path=str(path.relative_to(run.folder)))

            # --- once: the end before the end -------------------------------------------------------------------------
            if ending and step < steps:
                _write_adapter(run, config, ready, optimizer, step)
                tell(ending, step=step, reason=f"asked to {ending}")
                raise interrupted(run, step)

    _write_adapter(run, config, ready, optimizer, step)
    tell("end", step=step, path=run.adapter_path.name, seconds=round(time.monotonic() - started_s, 1))
    return run.adapter_path


def _write_adapter(
    run: Run, config: TrainConfig, ready: Prepared, optimizer: Optimizer, step: int
) -> None:
    metadata = training_metadata(config, _facts(run, config, ready, optimizer, step))
    with optimizer.averaged():
        adapter = ready.bank.export(ready.adapter.name, metadata)
    for word, vectors in adapter.words.items():
        write_word(vectors, run.embedding_path(word))
    kept = adapter if config.word.bundle else replace(adapter, words={})
    write_adapter(kept, run.adapter_path, config.output.dtype)


def _previews(config: TrainConfig, ready: Prepared) -> PreviewTable:
    """What to draw: the configured prompts; where there are none and somebody asks, captions of the data set."""
    if config.preview.prompts:
        return config.preview
    captions = dict.fromkeys(item.caption for item in ready.dataset.items)
    return config.preview.model_copy(update={"prompts": tuple(captions)[:_SAMPLES]})


def _start_facts(config: TrainConfig, ready: Prepared, optimizer: Optimizer) -> dict[str, Any]:
    report = ready.adapter.report
    return {
        "steps": config.train.steps,
        "batch_size": config.train.batch_size * config.train.accumulation,
        "pictures": len(ready.dataset.items),
        "base": f"{ready.model.name}, {ready.model.kind}",
        "device": str(ready.model.device),
        "precision": config.train.precision,
        "optimizer": optimizer.name.rpartition(".")[2],
        "layers": report.layers,
        "parameters": report.parameters,
        "share": round(report.share_percent, 2),
    }


def _facts(run: Run, config: TrainConfig, ready: Prepared, optimizer: Optimizer, step: int) -> TrainingFacts:
    return TrainingFacts(
        layout=ready.model.layout,
        base_name=ready.model.name,
        base_hash=ready.model.weights_hash,
        prediction_type=ready.schedule.prediction,
        optimizer=optimizer.name,
        size_px=picture_size_px(config, ready.model),
        captions=[item.caption for item in ready.dataset.items],
        steps=step,
        started_at=next(event["time"] for event in read_events(run.folder, current=False) if event["kind"] == "start"),
        finished_at=time.time(),
        layers=[layer.facts for layer in ready.adapter.layers.values()],
    )


def _diverged(run: Run, config: TrainConfig, step: int, loss: float, norm: float, draws: Sequence[Draw]) -> RunError:
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
    names = ", ".join(dict.fromkeys(name for draw in draws for name in draw.names))
    saved = checkpoints(run)
    kept = f"the state of step {saved[-1][0]} is kept in {saved[-1][1]}" if saved else "no checkpoint had been due yet"
    remedies = [f"a lower optimizer.lr (say {config.optimizer.lr / 3:.1g})"]
    if config.train.precision != "fp32":
        remedies.append('train.precision = "fp32"')
    remedies.append("a look at these pictures")
    return RunError(
        f"stopped in step {step + 1}: {what}; pictures in it: {names}; "
        f"{kept}; try {', '.join(remedies[:-1])}, or {remedies[-1]}"
    )
