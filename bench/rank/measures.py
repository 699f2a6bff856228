"""What docs/rank.md measures: the judge's answers, spectra, likeness of changes, and bytes of what training holds."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bench.rank.runs import LAYERS, RANK, Plan, config
from diffusion_lora.diffusion.objective import picture_losses
from diffusion_lora.diffusion.schedule import NoiseSchedule
from diffusion_lora.families.family import encode_image, encode_text, load_base, predict
from diffusion_lora.families.quiet import quiet
from diffusion_lora.generate.request import LoraUse
from diffusion_lora.layouts.configs import configs_of
from diffusion_lora.lora.adapter import Adapter, read_adapter
from diffusion_lora.lora.inject import select_layers
from diffusion_lora.lora.spectrum import spectrum
from diffusion_lora.lora.weights import Full
from diffusion_lora.run import write_atomically
from recipes.pocket.judge.prompts import read_lora
from recipes.pocket.judge.studio import Studio, judge_style
from recipes.pocket.make_sets import STYLE

_RATE = 1e-4  # of the full fine-tuning; its weights are no zeros to begin with


def judged(studio: Studio, file: Path, prompts: int) -> dict[str, float]:
    """Style, object and both, in percent of the pictures of prompts outside the set, at strength 1; kept beside it."""
    told = file.with_name(f"{file.stem}-judged-{prompts}.json")
    if not told.exists():
        report, pictures = judge_style(studio, read_lora()[:prompts], STYLE, LoraUse(file.stem, file), (1.0,))
        for number, picture in enumerate(pictures[:4]):
            picture.save(file.with_name(f"{file.stem}-{number}.png"))
        shares = {name: report[1.0][name] for name in ("present", "object", "style and object")}
        write_atomically(told, json.dumps(shares).encode())
    found: dict[str, float] = json.loads(told.read_text())
    return found


def likeness(one: Path, other: Path) -> float:
    """The cosine between all that two adapters add to the base: 1 for the same direction, 0 for none in common."""
    first, second = read_adapter(one).layers, read_adapter(other).layers
    product = sum(float((first[key].update() * second[key].update()).sum()) for key in first)
    norms = [sum(layer.norm() ** 2 for layer in layers.values()) ** 0.5 for layers in (first, second)]
    return product / (norms[0] * norms[1])


def fine_tuned(work: Path, steps: int) -> Adapter:
    """What a full fine-tuning of the UNet's attention projections adds to them, over the preset's set; kept on disk."""
    folder = work / "full"
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "difference.safetensors"
    if not file.exists():
        difference, losses = _fine_tune(steps)
        save_file(difference, folder / "half.safetensors")
        (folder / "run.json").write_text(json.dumps({"steps": steps, "lr": _RATE, "losses": losses}))
        (folder / "half.safetensors").rename(file)
    return Adapter({key: Full(diff) for key, diff in load_file(file).items()}, {})


def curve(change: Adapter) -> list[float]:
    """Share of the energy that a change keeps when every layer is cut to rank 0, 1, 2, ..."""
    return list(spectrum(change).curve())


def norm(change: Adapter) -> float:
    """The Frobenius norm of all that a change adds to the base."""
    return float(sum(layer.norm() ** 2 for layer in change.layers.values()) ** 0.5)


def memory() -> dict[str, dict[str, int]]:
    """Bytes of trained weights, their gradients and Adam's moments: of pocket's UNet those of real tensors; of
    SD 1.5's, which lies on the meta device and has none, counted by number and size of its weights."""
    found = {}
    pocket = load_base("pocket", device="cpu", dtype="fp32").components["unet"]
    for name, net, held in (("pocket", pocket, _held), ("SD 1.5", _without_weights("sd15"), _counted)):
        sites = select_layers({"unet": net}, LAYERS, "none")
        rows = [RANK * (site.weight.shape[0] + site.weight[0].numel()) for site in sites.values()]
        cases = {
            "all weights": [parameter.numel() for parameter in net.parameters()],
            "attention whole": [site.weight.numel() for site in sites.values()],
            f"LoRA, rank {RANK}": [sum(rows)],  # the trainer's adapter is one flat parameter
        }
        for what, sizes in cases.items():
            for bits in (32, 8):
                parts = held(sizes, bits)
                found[f"{name}, {what}, {bits}-bit Adam"] = {**parts, "sum": sum(parts.values())}
    return found


def _without_weights(layout: str) -> nn.Module:
    quiet()
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        net: nn.Module = UNet2DConditionModel.from_config(configs_of(layout)["unet"])
    return net


def _held(sizes: Iterable[int], bits: int) -> dict[str, int]:
    """Of real parameters after a step of a real optimizer: bytes of every tensor."""
    parameters = [nn.Parameter(torch.zeros(size)) for size in sizes]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer = _adam(parameters, bits)
    optimizer.step()
    tensors = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    shared = {tensor.data_ptr(): tensor.nbytes for tensor in tensors if tensor.numel() > 1}  # one table for all
    return {
        "weights": sum(parameter.nbytes for parameter in parameters),
        "gradients": sum(parameter.grad.nbytes for parameter in parameters if parameter.grad is not None),
        "moments": sum(shared.values()),
    }


def _adam(parameters: list[nn.Parameter], bits: int) -> torch.optim.Optimizer:
    if bits == 32:
        return torch.optim.AdamW(parameters)
    from bitsandbytes.optim import AdamW8bit

    eight: torch.optim.Optimizer = AdamW8bit(parameters)
    return eight


def _counted(sizes: Iterable[int], bits: int) -> dict[str, int]:
    """4 bytes a weight and a gradient, two moments of 4 bytes, or of one byte with a 4-byte scale for each block of
    256; small tensors stay at 32 bits (Dettmers et al. 2021, https://arxiv.org/abs/2110.02861)."""
    sizes = list(sizes)
    moments = sum(8 * n if bits == 32 or n < 4096 else 2 * (n + 4 * -(-n // 256)) for n in sizes)
    return {"weights": 4 * sum(sizes), "gradients": 4 * sum(sizes), "moments": moments}


def _fine_tune(steps: int) -> tuple[dict[str, Tensor], list[float]]:
    """A plain loop: AdamW on the weights themselves, two pictures a step, the preset's loss."""
    table = config(*Plan().settings)
    model = load_base("pocket", device="cpu", dtype="fp32")
    files = sorted(Path(table.dataset.path).glob("*.png"))
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    with torch.no_grad():
        mean, _ = encode_image(model, torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1)
        cond = encode_text(model, [file.with_suffix(".txt").read_text(encoding="utf-8").strip() for file in files])
    schedule = NoiseSchedule.from_config(model.scheduler_config)
    sites = select_layers(model.components, LAYERS, "none")
    before = {key: site.weight.detach().clone() for key, site in sites.items()}
    weights = [site.weight for site in sites.values()]
    for weight in weights:
        weight.requires_grad_(True)
    optimizer = torch.optim.AdamW(weights, lr=_RATE)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(steps):
        rows = torch.randint(len(files), (table.train.batch_size,), generator=generator)
        x0 = mean[rows]
        noise = torch.randn(x0.shape, generator=generator)
        timesteps = torch.randint(schedule.timesteps, (len(rows),), generator=generator)
        prediction = predict(model, schedule.add_noise(x0, noise, timesteps), timesteps, cond[rows])
        loss = picture_losses(table.loss, schedule, prediction, x0, noise, timesteps, None).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return {key: (site.weight.detach() - before[key]).contiguous() for key, site in sites.items()}, losses
