"""The loss on drawings that nothing was trained on, at fixed timesteps and noise: what of the learned holds elsewhere.

The drawings are new scenes in the set's style with the captions of its kind, any object in any colour. Every adapter is
measured on the same ones, and so is the base. What this module does not know: how an adapter came about.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.rank.runs import config
from diffusion_lora.diffusion.objective import picture_losses
from diffusion_lora.diffusion.schedule import NoiseSchedule
from diffusion_lora.families.family import encode_image, encode_text, load_base, predict
from diffusion_lora.lora.adapter import Adapter
from diffusion_lora.lora.bank import AdapterBank
from diffusion_lora.run import write_atomically
from diffusion_lora.train.probe import spread_timesteps
from recipes.pocket import world
from recipes.pocket.make_sets import STYLE, STYLE_PHRASINGS

TIMESTEPS = 8
_ROWS = 16


class HeldOut:
    """The base with fresh drawings beside it, encoded once."""

    def __init__(self, drawings: int) -> None:
        rng = random.Random("rank, held out")
        scenes = [world.sample_scene(rng, styles=(STYLE,), pairs="any") for _ in range(drawings)]
        self._captions = [
            world.caption(scene, rng, style_word=STYLE, phrasing=STYLE_PHRASINGS[number % len(STYLE_PHRASINGS)])
            for number, scene in enumerate(scenes)
        ]
        self._drawings = drawings
        self._table = config().loss
        self._model = load_base("pocket", device="cpu", dtype="fp32")
        self._bank = AdapterBank(self._model.components, "pocket")
        self._schedule = NoiseSchedule.from_config(self._model.scheduler_config)
        pixels = np.stack([np.asarray(world.draw(scene)) for scene in scenes])
        with torch.no_grad():
            self._x0, _ = encode_image(
                self._model, torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
            )  # fmt: skip

    def loss(self, adapter: Adapter | None, kept: Path) -> float:
        """The mean over drawings and timesteps at strength 1; of the base where there is no adapter. It is kept."""
        told = kept.with_name(f"{kept.stem}-held-out-{self._drawings}.json")
        if not told.exists():
            if adapter is not None:
                self._bank.load("it", adapter)
            try:
                with self._bank.mix({} if adapter is None else {"it": 1.0}):
                    loss = self._measured()
            finally:
                if adapter is not None:
                    self._bank.unload("it")
            write_atomically(told, json.dumps(loss).encode())
        return float(json.loads(told.read_text(encoding="utf-8")))

    @torch.no_grad()
    def _measured(self) -> float:
        rows = list(range(self._drawings))
        losses: list[Tensor] = []
        for number, timestep in enumerate(spread_timesteps(self._table, self._schedule.timesteps, TIMESTEPS)):
            generator = torch.Generator().manual_seed(number)
            noise = torch.randn(self._x0.shape, generator=generator)
            for part in (rows[start : start + _ROWS] for start in range(0, len(rows), _ROWS)):
                cond = encode_text(self._model, [self._captions[row] for row in part])
                timesteps = torch.full((len(part),), timestep)
                noisy = self._schedule.add_noise(self._x0[part], noise[part], timesteps)
                prediction = predict(self._model, noisy, timesteps, cond)
                losses.append(
                    picture_losses(self._table, self._schedule, prediction, self._x0[part], noise[part], timesteps)
                )
        return float(torch.cat(losses).mean())
