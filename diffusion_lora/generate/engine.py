"""Draw requests with a base model and any mix of adapters: many requests, each with its own mix, in one batch.

    engine = Engine(load_base("pocket"))
    picture, = engine.draw([Request("a red cat on a sky background", seed=1)])

Row b of a batch is the picture that its request gives alone: noise comes from a CPU generator of its own seed, prompts
are encoded under their own text encoder mix, and every rank row of every adapter has its own gate for every row of the
batch (Hu et al. 2021 for the layer; `lora/layer.py` for the gate).

Somebody may watch: `watch` gets glimpses between steps (`preview`), and what a callback raises ends the drawing.

Not here: files of pictures (`picture`), their text (`infotext`), sheets (`grid`), and how a base is loaded.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import replace
from inspect import signature
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from diffusion_lora.errors import AdapterFileError, DeviceError, PromptError
from diffusion_lora.families.family import Conditioning, Model, decode, predict, tokens
from diffusion_lora.families.sharing import shared
from diffusion_lora.families.tiling import tiled
from diffusion_lora.families.wording import Frame, encode_frames
from diffusion_lora.generate.batches import Job, at_once, batches, evaluations
from diffusion_lora.generate.company import Company
from diffusion_lora.generate.infotext import below_home
from diffusion_lora.generate.passes import Steps, drawn_shares, latents_of, noise_of, scheduler_of
from diffusion_lora.generate.picture import Picture
from diffusion_lora.generate.preview import Glimpse, Watch, clean_estimate
from diffusion_lora.generate.request import SIZE_STEP_PX, LoraUse, Request
from diffusion_lora.generate.rows import Moment, Rows
from diffusion_lora.generate.samplers import sampler_named
from diffusion_lora.generate.shelf import Mix, Shelf
from diffusion_lora.generate.start import Canvas, Hires, prepared
from diffusion_lora.generate.thrift import Thrift, at_work, plan, rest
from diffusion_lora.generate.upscaling import check_upscaler, upscaled

Progress = Callable[[int, int], None]
"""Called with (model evaluations done, all of them) after each step of each batch."""

_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_LATENTS_A_DECODE = 64 * 64
_PROMPTS_A_BATCH = 64
FOLD_FROM = 400
"""Passes of one mix through the UNet from which folding it in is worth its own time; see DECISIONS.md."""


class Engine:
    """A base model ready to draw. One thread at a time; the model belongs to the engine until `close`.

    `precision` is what the model computes in: fp32, bf16 or fp16 (by autocast), or auto: that of the model's weights.
    In fp32 a row of a batch equals the single picture to rounding; half precision is faster where the hardware has it.

    Mixes act through gates. Where one mix holds for a whole batch of at least `fold_from` passes through the UNet (rows
    times steps), it is put into the weights instead, and taken out again bit for bit.
    """

    def __init__(
        self, model: Model, *, precision: str = "auto", fold_from: int = FOLD_FROM, thrift: Thrift | None = None
    ) -> None:
        if precision not in (*_AUTOCAST, "auto"):
            raise DeviceError(f"the precision {precision!r} is unknown; say auto, {', '.join(_AUTOCAST)}")
        self.model = model
        weights = None if model.dtype == torch.float32 else model.dtype
        self._autocast = weights if precision == "auto" else _AUTOCAST[precision] or weights
        self._fold_from = fold_from
        self._shelf = Shelf(model)
        self._told = len(model.notes)  # of the base's notes; more may come while it draws
        self._thrift = plan(model) if thrift is None else thrift
        if self._thrift.note:
            model.notes.append(self._thrift.note)
        if self._thrift.offload:
            rest(model)

    def draw(
        self, requests: Sequence[Request], *, progress: Progress | None = None, batch_size: int | None = None
    ) -> list[Picture]:
        """The pictures of the requests, in their order. Errors as in `stream`."""
        pictures = dict(self.stream(requests, progress=progress, batch_size=batch_size))
        return [pictures[index] for index in range(len(requests))]

    @property
    def loads(self) -> int:
        """How often an adapter was put into the model; strengths that change, or come again, put nothing."""
        return self._shelf.loads

    def at_once(self, request: Request) -> int:
        """How many pictures like this one, a resolved request, one batch draws."""
        return at_once(self.model, request)

    def stream(
        self,
        requests: Sequence[Request],
        *,
        progress: Progress | None = None,
        watch: Watch | None = None,
        batch_size: int | None = None,
        beside: Sequence[Request] = (),
    ) -> Iterator[tuple[int, Picture]]:
        """The pictures with their place in `requests`, batch by batch as they are done.

        Requests of equal size, steps and sampler are drawn as one batch of at most `batch_size` (None: by memory). The
        adapters of the resolved requests `beside` stay in the model for a later call; all others leave it.
        Raises, before anything is drawn, AdapterFileError for an adapter that cannot be read or does not fit and
        PromptError for a request of another base; DeviceError when memory does not suffice for one picture. An error
        or an interrupt, from `progress` and `watch` too, leaves the engine as it was: the next call draws as ever.
        """
        if batch_size is not None and batch_size < 1:
            raise PromptError(f"the batch size is {batch_size}; give 1 or more")
        jobs = [Job(index, self.resolved(request)) for index, request in enumerate(requests)]
        self._hold([*(job.request for job in jobs), *beside])
        planned = list(batches(self.model, jobs, batch_size))
        counter = _Counter(progress, watch, sum(evaluations(batch[0].request) for batch in planned))
        for batch in planned:
            yield from self._draw_or_halve(batch, counter)

    def redraw(self, request: Request, company: Company, *, progress: Progress | None = None) -> Picture:
        """The picture of a request read back from a file, in the company it was drawn in: the same bytes, if machine,
        device and libraries are the same. Errors as in `stream`."""
        job = Job(0, self.resolved(request))
        neighbours = []
        for path, sha in company.adapters:
            with suppress(AdapterFileError):  # gone, or another by now: then the last bits may differ, nothing else
                neighbours.append(self._shelf.resolve(LoraUse(Path(path).stem, Path(path), sha=sha)))
        self._hold([job.request, replace(job.request, loras=tuple(neighbours), regions=())])
        counter = _Counter(progress, None, evaluations(job.request))
        ((_, picture),) = self._draw_or_halve([job], counter, company)
        return picture

    def close(self) -> None:
        """Take all adapters out of the model, so that another engine or a training can have it."""
        self._hold(())

    def _hold(self, requests: Iterable[Request]) -> None:
        with self._encoders():  # adapters are made for the place where a layer is
            self._shelf.hold(requests)

    def _encoders(self) -> AbstractContextManager[None]:
        return at_work(self.model, list(self.model.text_encoders.values()), offload=self._thrift.offload)

    def _autoencoder(self) -> AbstractContextManager[None]:
        return at_work(self.model, [self.model.vae], offload=self._thrift.offload)

    def resolved(self, request: Request) -> Request:
        """The request with all that the model decides filled in. Errors as in `stream`."""
        model = self.model
        source = Request(base=model.source).base
        if request.base not in ("", source):
            raise PromptError(f"the request is for the base {request.base} and this engine holds {source}")
        if request.base_hash and not model.weights_hash.startswith(request.base_hash):
            raise PromptError(
                f"the request was drawn by another {source} (hash {request.base_hash[:10]}) than this one "
                f"({model.weights_hash[:10]}); clear base_hash to draw it all the same"
            )
        if request.hires is not None:
            check_upscaler(request.hires.upscaler)
        vae = Request(vae=model.vae_source).vae
        if request.vae and (request.vae != vae or not model.vae_hash.startswith(request.vae_hash)):
            mine = f"{vae} ({model.vae_hash[:10]})" if vae else "the one of its base"
            raise PromptError(
                f"the request is for the VAE {request.vae} ({request.vae_hash[:10] or 'any'}) and this engine has "
                f"{mine}: load the base with that VAE, or clear vae to draw it all the same"
            )
        guidance = model.layout.guidance_scale if request.guidance_scale is None else request.guidance_scale
        return replace(
            request,
            guidance_scale=guidance,
            width=request.width or model.size_px,
            height=request.height or model.size_px,
            loras=tuple(self._shelf.resolve(use) for use in request.loras),
            embeddings=tuple(map(self._shelf.resolve_embedding, request.embeddings)),
            start=request.start and request.start.resolved(),
            base=source,
            base_hash=model.weights_hash,
            vae=vae,
            vae_hash=model.vae_hash,
        )

    def _draw_or_halve(
        self, batch: list[Job], counter: "_Counter", like: Company | None = None
    ) -> Iterator[tuple[int, Picture]]:
        """Draw a batch; where memory does not suffice, its halves."""
        done = counter.done
        try:
            pictures = self._draw_batch(batch, counter, like)
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            pictures = None
        if pictures is not None:
            yield from zip((job.index for job in batch), pictures, strict=True)
            return
        # Outside the except block: the error holds on to the tensors that filled the memory.
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        request = batch[0].request
        if len(batch) == 1:
            raise DeviceError(
                f"{self.model.device} has not enough memory for a picture of {request.width} x {request.height} px; "
                "ask for a smaller one, or close what else uses the device"
            )
        counter.done = done
        counter.total += evaluations(batch[0].request)
        for half in (batch[: len(batch) // 2], batch[len(batch) // 2 :]):
            yield from self._draw_or_halve(half, counter)

    @torch.inference_mode()
    def _draw_batch(self, batch: Sequence[Job], counter: "_Counter", like: Company | None) -> list[Picture]:
        requests = [job.request for job in batch]
        canvases = [
            None if request.start is None else prepared(request.start, request.width, request.height)
            for request in requests
        ]
        latents, company = self._denoise(batch, canvases, counter, like)
        broken = [request for request, row in zip(requests, latents, strict=True) if not torch.isfinite(row).all()]
        if broken:
            loras = ", ".join(f"{use.name} at {use.strength:g}" for use in broken[0].loras)
            raise PromptError(
                f"the picture of seed {broken[0].seed} came out as no numbers: "
                + (f"lower the strengths ({loras})" if loras else "draw in fp32 (--precision fp32)")
            )
        company = replace(company, adapters=tuple((below_home(path), sha) for path, sha in self._shelf.held))
        with tiled(self.model, on=requests[0].tiling):
            decoded = list(self._images(latents, at_once=like.decoded if like else 0))
        images = [
            (canvas.finished(image) if canvas else image, count)
            for (image, count), canvas in zip(decoded, canvases, strict=True)
        ]
        news, self._told = tuple(self.model.notes[self._told :]), len(self.model.notes)
        notes = [self._shelf.notes(request) + self._cut_off(request) + news for request in requests]
        return [
            Picture(image, request, row, told, replace(company, decoded=count))
            for (image, count), request, row, told in zip(images, requests, latents.cpu(), notes, strict=True)
        ]

    def _denoise(
        self, batch: Sequence[Job], canvases: Sequence[Canvas | None], counter: "_Counter", like: Company | None
    ) -> tuple[Tensor, Company]:
        """Latents [B, C, h, w] in fp32 after all passes, and in what company they came about."""
        requests = [job.request for job in batch]
        first = requests[0]
        steps = Steps(first.steps, first.start.steps(first.steps) if first.start else first.steps)
        with tiled(self.model, on=first.tiling):
            given = [canvas.image for canvas in canvases if canvas]
            with self._autoencoder():
                init = latents_of(self.model, given) if given else None
            masks = drawn_shares(self.model, canvases) if any(canvas and canvas.mask for canvas in canvases) else None
            latents, company = self._pass(batch, requests, steps, counter, like, init=init, masks=masks)
            if first.hires is not None:
                size = first.hires.size(first.width, first.height, SIZE_STEP_PX)
                larger = [replace(request, width=size[0], height=size[1]) for request in requests]
                whole = first.hires.steps or first.steps
                steps = Steps(whole, first.hires.drawn_steps(first.steps), before=first.steps)
                init = self._enlarged(latents, first.hires, size)
                latents, company = self._pass(batch, larger, steps, counter, like, init=init)
        return latents, company

    def _pass(
        self,
        batch: Sequence[Job],
        requests: Sequence[Request],
        steps: Steps,
        counter: "_Counter",
        like: Company | None,
        *,
        init: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> tuple[Tensor, Company]:
        """Latents after the last `steps.drawn` of `steps.all` steps, from noise or from noised `init` [B, C, h, w].

        Where `masks` [B, 1, h, w] is 0 the result is `init`.
        """
        model, first = self.model, requests[0]
        shape = model.latent_shape(first.height, first.width)
        sampler = sampler_named(first.sampler)
        scheduler = scheduler_of(sampler, model.scheduler_config, steps.all)
        scheduler.set_timesteps(steps.all, device=model.device)
        generators = [torch.Generator("cpu").manual_seed(request.seed) for request in requests]
        if hasattr(scheduler, "noise_sampler_seed"):  # it has noise of its own, a Brownian path for each seed
            scheduler.noise_sampler_seed = [request.seed for request in requests]
        noise = torch.stack([
            noise_of(request, shape, generator) for request, generator in zip(requests, generators, strict=True)
        ]).to(model.device)  # fmt: skip
        skipped = (steps.all - steps.drawn) * (2 if sampler.counts == "two a step" else 1)
        timesteps = scheduler.timesteps[skipped:]
        if init is None:
            latents = noise * scheduler.init_noise_sigma
        else:
            if skipped and hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(skipped)
            latents = scheduler.add_noise(init, noise, timesteps[:1].expand(len(init)))
        extra = {"generator": generators} if "generator" in signature(scheduler.step).parameters else {}

        scales = torch.tensor([request.guidance_scale for request in requests], device=model.device)[
            :, None, None, None
        ]
        # Without guidance the negative prompt has no say: half the work.
        guided = bool((scales > 1).any())
        rows = Rows(
            model, self._shelf, requests, steps.drawn, self._encode,
            guided=guided, like=like, first_pass_steps=steps.before,
        )  # fmt: skip
        pictures = torch.tensor(rows.pictures, device=model.device)
        moment: Moment | None = None
        mix = rows.only_mix() if model.dtype.is_floating_point else None
        fold = mix is not None and (like.folded if like else len(rows.pictures) * steps.drawn >= self._fold_from)
        folding = self._shelf.folded(mix) if fold and mix else nullcontext()
        with folding, shared(model, rows.sharing), ExitStack() as gates, self._computing():
            for number, timestep in enumerate(timesteps, start=1):
                if (now := rows.at(min(sampler.step(number), steps.drawn))) is not moment:
                    moment = now
                    gates.close()
                    if not fold:
                        gates.enter_context(self._shelf.mixed(moment.mixes))
                given = scheduler.scale_model_input(latents[pictures], timestep)
                answers = predict(model, given, timestep, moment.conditioning).float()
                predicted = rows.guided(answers, scales)
                latents = scheduler.step(predicted, timestep, latents, return_dict=False, **extra)[0]
                if masks is not None and init is not None:
                    after = timesteps[number : number + 1]
                    kept = scheduler.add_noise(init, noise, after.expand(len(init))) if len(after) else init
                    latents = kept + masks * (latents - kept)
                counter.step()
                if counter.watch and number < len(timesteps):
                    estimate = clean_estimate(scheduler, given[rows.last], predicted, timestep)
                    counter.watch(self._glimpse(batch, estimate))
        return latents, replace(rows.company, folded=fold)

    def _enlarged(self, latents: Tensor, hires: Hires, size: tuple[int, int]) -> Tensor:
        """What the second pass begins with."""
        if hires.upscaler == "latent":
            shape = self.model.latent_shape(size[1], size[0])[1:]
            return torch.nn.functional.interpolate(latents, shape, mode="bilinear")
        decoded = [image for image, _ in self._images(latents)]
        if hires.upscaler != "lanczos":
            decoded = upscaled(decoded, Path(hires.upscaler), self.model.device)
        images = [image.resize(size, Image.Resampling.LANCZOS) for image in decoded]
        with self._autoencoder():
            return latents_of(self.model, images)

    def _encode(self, wanted: Sequence[tuple[Frame, Mix, int]]) -> Conditioning:
        """Frames under their own mixes and clip skips, one row each."""
        parts: dict[int, Conditioning] = {}
        with self._encoders():
            for clip_skip in {skip: None for _, _, skip in wanted}:
                places = [place for place, (_, _, skip) in enumerate(wanted) if skip == clip_skip]
                for start in range(0, len(places), _PROMPTS_A_BATCH):
                    chunk = places[start : start + _PROMPTS_A_BATCH]
                    with self._shelf.mixed([wanted[place][1] for place in chunk]), self._computing():
                        states = encode_frames(self.model, [wanted[place][0] for place in chunk], clip_skip)
                    parts |= {place: states[row] for row, place in enumerate(chunk)}
        return Conditioning.cat([parts[place] for place in range(len(wanted))])

    def _glimpse(self, batch: Sequence[Job], estimate: Tensor) -> Glimpse:
        if estimate.device.type == "cuda":
            torch.cuda.synchronize(estimate.device)  # or a look would seem to cost the step before it as well
        request = batch[0].request
        return Glimpse(
            places=[job.index for job in batch],
            pixels=request.width * request.height,
            _images=lambda row: next(self._images(estimate[row : row + 1]))[0],
        )

    def _images(self, latents: Tensor, *, at_once: int = 0) -> Iterator[tuple[Image.Image, int]]:
        """The pictures, and how many were decoded at once with each; `at_once` fills up to as many."""
        most = 1 if self._thrift.slicing else max(1, _LATENTS_A_DECODE // latents[0, 0].numel())
        for chunk in latents.split(most):
            filled = torch.cat([chunk, chunk[-1:].expand(max(0, at_once - len(chunk)), -1, -1, -1)])
            with self._autoencoder():
                x_BHWC = decode(self.model, filled)[: len(chunk)].permute(0, 2, 3, 1)
            for x in (x_BHWC * 255).round().to("cpu", torch.uint8).numpy():
                yield Image.fromarray(x), len(filled)

    def _cut_off(self, request: Request) -> tuple[str, ...]:
        notes = []
        if request.prompt_syntax != "plain":
            return ()  # long prompts are read to their end
        for name, text in (("prompt", request.prompt), ("negative prompt", request.negative_prompt)):
            count = tokens(self.model, text)
            if count > self.model.max_tokens:
                notes.append(
                    f"the {name} has {count} tokens and {self.model.name} reads the first {self.model.max_tokens}"
                )
        return tuple(notes)

    def _computing(self) -> AbstractContextManager[object]:
        if self._autocast is None:
            return nullcontext()
        return torch.autocast(self.model.device.type, dtype=self._autocast)


class _Counter:
    """Model evaluations done and to do, over all batches, and who wants to know."""

    def __init__(self, progress: Progress | None, watch: Watch | None, total: int) -> None:
        self.done = 0
        self.total = total
        self.watch = watch
        self._progress = progress

    def step(self) -> None:
        self.done += 1
        if self._progress:
            self._progress(self.done, self.total)


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error)
