"""The engine: one mixed batch is many single pictures, strength 0 is the base, and nothing of an earlier call stays."""

from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_lora.errors import AdapterFileError, DeviceError, PromptError
from diffusion_lora.families.family import Model, load_base
from diffusion_lora.generate.engine import Engine
from diffusion_lora.generate.picture import Picture
from diffusion_lora.generate.request import LoraUse, Request
from diffusion_lora.generate.samplers import PLAIN_SAMPLERS
from diffusion_lora.lora.adapter import write_adapter

STEPS = 3


def pixels(picture: Picture) -> np.ndarray:
    return np.asarray(picture.image)


def latent_difference(ours: Picture, theirs: Picture) -> float:
    """The largest difference of two pictures' latents, as a share of their range."""
    return float((ours.latents - theirs.latents).abs().max() / (theirs.latents.max() - theirs.latents.min()))


def test_strength_zero_and_an_empty_stack_draw_the_base_to_the_pixel(
    engine: Engine, style: LoraUse, hero: LoraUse
) -> None:
    base = Request("a red cat on a sky background", seed=3, steps=STEPS)
    with_zeros = Request("a red cat on a sky background", seed=3, steps=STEPS, loras=(style.at(0.0), hero.at(0.0)))
    (before,) = engine.draw([base])
    (zero,) = engine.draw([with_zeros])
    (strong,) = engine.draw([Request("a red cat on a sky background", seed=3, steps=STEPS, loras=(style.at(1.0),))])
    (after,) = engine.draw([base])
    assert (pixels(zero) == pixels(before)).all()
    assert (pixels(after) == pixels(before)).all(), "adapters leave no trace in the base"
    assert (pixels(strong) != pixels(before)).mean() > 0.1, "the adapter does change the picture"


def test_zero_beside_strong_rows_in_one_batch_is_the_base(engine: Engine, style: LoraUse) -> None:
    """The gates of a row are its own: a neighbour's strength must not leak."""
    requests = [Request("a cup", seed=1, steps=STEPS, loras=(style.at(s),)) for s in (0.0, 1.0)]
    mixed = engine.draw(requests)
    (base,) = engine.draw([Request("a cup", seed=1, steps=STEPS)])
    assert latent_difference(mixed[0], base) < 1e-4
    assert latent_difference(mixed[1], base) > 1e-2


@pytest.mark.parametrize(
    "sampler", ["ddim", "euler_a", "heun", "dpm++_2m", "dpm++_2m_sde", "dpm++_sde", "dpm2_a", "unipc", "lcm"]
)
def test_every_row_of_a_mixed_batch_is_the_single_picture(
    engine: Engine, style: LoraUse, hero: LoraUse, sampler: str
) -> None:
    requests = [
        Request("a red cat on a sky background", seed=1, steps=STEPS, sampler=sampler, loras=(style.at(0.8),)),
        Request("a blue car", "a cat", seed=2, steps=STEPS, sampler=sampler, guidance_scale=7.5),
        Request("", seed=3, steps=STEPS, sampler=sampler, guidance_scale=1.0, loras=(style.at(-0.5), hero.at(1.2))),
        Request("a fish", seed=1, steps=STEPS, sampler=sampler, loras=(hero.at(0.7, text_strength=0.0),)),
    ]
    batch = engine.draw(requests)
    assert [picture.request.seed for picture in batch] == [1, 2, 3, 1]
    for row, request in zip(batch, requests, strict=True):
        (single,) = engine.draw([request])
        assert latent_difference(row, single) < 1e-4
        assert np.abs(pixels(row).astype(int) - pixels(single)).max() <= 1


def test_small_batches_give_the_same_pictures(engine: Engine, style: LoraUse) -> None:
    requests = [Request("a tree", seed=s, steps=STEPS, loras=(style.at(s / 4),)) for s in range(5)]
    for whole, part in zip(engine.draw(requests), engine.draw(requests, batch_size=2), strict=True):
        assert latent_difference(part, whole) < 1e-4


def test_requests_of_other_sizes_and_samplers_come_back_in_their_order(engine: Engine) -> None:
    requests = [
        Request("a cup", seed=1, steps=2, width=128, height=64),
        Request("a cup", seed=2, steps=3, sampler="euler"),
        Request("a cup", seed=3, steps=2, width=128, height=64),
    ]
    pictures = engine.draw(requests)
    assert [picture.image.size for picture in pictures] == [(128, 64), (128, 128), (128, 64)]
    assert [picture.request.seed for picture in pictures] == [1, 2, 3]


@pytest.mark.parametrize(("width", "height"), [(64, 64), (72, 136), (200, 104)])
def test_any_multiple_of_8_is_drawn(engine: Engine, width: int, height: int) -> None:
    """No check of the libraries under us must reach the user: what a request allows is drawn."""
    (picture,) = engine.draw([Request("a cup", steps=1, width=width, height=height)])
    assert picture.image.size == (width, height)


def test_text_strength_acts_on_the_text_encoder_alone(engine: Engine, style: LoraUse) -> None:
    draw = lambda use: engine.draw([Request("a cat", seed=5, steps=STEPS, loras=(use,))])[0]  # noqa: E731
    both, unet_only, text_only = draw(style.at(1.0)), draw(style.at(1.0, 0.0)), draw(style.at(0.0, 1.0))
    base = engine.draw([Request("a cat", seed=5, steps=STEPS)])[0]
    pairs = [(both, unet_only), (both, text_only), (unet_only, base), (text_only, base)]
    assert all(latent_difference(a, b) > 1e-3 for a, b in pairs)


def test_the_same_file_twice_acts_twice(engine: Engine, style: LoraUse) -> None:
    twice = engine.draw([Request("a cat", steps=STEPS, loras=(style.at(0.4), style.at(0.4)))])[0]
    once = engine.draw([Request("a cat", steps=STEPS, loras=(style.at(0.8),))])[0]
    assert latent_difference(twice, once) < 1e-4


def test_two_files_of_one_name_stay_apart(engine: Engine, style: LoraUse, hero: LoraUse) -> None:
    same_name = LoraUse("style", hero.path, 0.5)
    ours = engine.draw([Request("a cat", steps=STEPS, loras=(style.at(0.5), same_name))])[0]
    theirs = engine.draw([Request("a cat", steps=STEPS, loras=(style.at(0.5), hero.at(0.5)))])[0]
    assert latent_difference(ours, theirs) < 1e-4


def test_a_file_that_was_written_anew_is_read_anew(
    engine: Engine, style: LoraUse, hero: LoraUse, tmp_path: Path
) -> None:
    path = tmp_path / "lora.safetensors"
    path.write_bytes(style.path.read_bytes())
    first = engine.draw([Request("a cat", steps=STEPS, loras=(LoraUse("l", path),))])[0]
    path.write_bytes(hero.path.read_bytes())
    second = engine.draw([Request("a cat", steps=STEPS, loras=(LoraUse("l", path),))])[0]
    assert first.request.loras[0].sha != second.request.loras[0].sha
    assert latent_difference(first, second) > 1e-3
    with pytest.raises(AdapterFileError, match="holds another LoRA"):
        engine.draw([first.request])


def test_the_request_of_a_picture_is_complete_and_draws_it_again(engine: Engine, model: Model, style: LoraUse) -> None:
    (picture,) = engine.draw([Request("a cat", seed=9, steps=STEPS, loras=(style.at(0.5),))])
    request = picture.request
    assert (request.width, request.height, request.guidance_scale) == (128, 128, 4.0)
    assert (request.base, request.base_hash) == ("pocket", model.weights_hash)
    assert request.loras[0].sha
    (again,) = engine.draw([request])
    assert (pixels(again) == pixels(picture)).all()
    assert again.request == request


def test_a_request_of_another_base_is_refused(engine: Engine) -> None:
    with pytest.raises(PromptError, match="for the base someone/else"):
        engine.draw([Request("a cat", base="someone/else")])
    with pytest.raises(PromptError, match="drawn by another pocket"):
        engine.draw([Request("a cat", base="pocket", base_hash="0" * 64)])


def test_a_prompt_that_is_too_long_is_told(engine: Engine) -> None:
    """Only where prompts are taken as early versions took them: the grammar reads them to their end."""
    (picture,) = engine.draw([Request("cat " * 100, steps=1, prompt_syntax="plain")])
    assert picture.notes == ("the prompt has 100 tokens and pocket reads the first 75",)


def test_progress_counts_every_evaluation_of_every_batch(engine: Engine) -> None:
    seen: list[tuple[int, int]] = []
    requests = [Request(seed=s, steps=2, sampler=name) for name in ("ddim", "heun") for s in (0, 1)]
    engine.draw(requests, batch_size=1, progress=lambda step, steps: seen.append((step, steps)))
    assert seen == [(n, 10) for n in range(1, 11)]


def test_an_interrupt_leaves_the_engine_as_it_was(engine: Engine, style: LoraUse) -> None:
    """Ctrl-C in the middle of a mix must not leave its gates open."""

    def interrupt(step: int, steps: int) -> None:
        if step == 2:
            raise KeyboardInterrupt

    base = Request("a cat", seed=1, steps=STEPS)
    (before,) = engine.draw([base])
    with pytest.raises(KeyboardInterrupt):
        engine.draw([Request("a cat", seed=1, steps=STEPS, loras=(style.at(1.0),))], progress=interrupt)
    (after,) = engine.draw([base])
    assert (pixels(after) == pixels(before)).all()


def test_the_stream_gives_each_batch_as_it_is_done(engine: Engine) -> None:
    """What was drawn before an interrupt is not lost."""
    done: list[int] = []

    def interrupt(step: int, steps: int) -> None:
        if step == 3:
            raise KeyboardInterrupt

    stream = engine.stream([Request(seed=s, steps=2) for s in range(3)], batch_size=1, progress=interrupt)
    done.append(next(stream)[0])
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert done == [0]


def test_a_lora_that_does_not_load_is_told_before_anything_is_drawn(engine: Engine, tmp_path: Path) -> None:
    steps: list[int] = []
    pickle = tmp_path / "style.ckpt"
    pickle.write_bytes(b"\x80\x04.")
    for path in (pickle, tmp_path / "absent.safetensors"):
        with pytest.raises(AdapterFileError, match=path.name):
            engine.draw([Request(), Request(loras=(LoraUse("x", path),))], progress=lambda s, n: steps.append(s))
    assert steps == []


def test_a_mix_that_explodes_is_an_error_and_not_a_black_picture(engine: Engine, style: LoraUse) -> None:
    with pytest.raises(PromptError, match=r"no numbers: lower the strengths \(style at 1e\+30\)"):
        engine.draw([Request("a cat", steps=2, loras=(style.at(1e30),))])


def test_a_batch_that_does_not_fit_into_memory_is_drawn_in_halves(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device's limit is played by its error: no machine of the tests can be filled reliably."""
    from diffusion_lora.generate import engine as module

    real = module.predict

    def small_device(model: Model, noisy: torch.Tensor, *rest: object) -> torch.Tensor:
        if len(noisy) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, noisy, *rest)

    requests = [Request("a cup", seed=s, steps=2) for s in range(3)]
    expected = engine.draw(requests)
    monkeypatch.setattr(module, "predict", small_device)
    limit = 2
    seen: list[tuple[int, int]] = []
    pictures = engine.draw(requests, progress=lambda step, steps: seen.append((step, steps)))
    assert all(latent_difference(a, b) < 1e-4 for a, b in zip(pictures, expected, strict=True))
    assert seen[-1] == (6, 6)
    limit = 1
    with pytest.raises(DeviceError, match="not enough memory for a picture of 128 x 128 px"):
        engine.draw(requests)


def test_bf16_draws_nearly_the_same_picture(style: LoraUse) -> None:
    """Half precision is a matter of speed; a picture of its own would be a mistake in what is cast."""
    request = Request("a red cat on a sky background", seed=1, steps=STEPS, loras=(style.at(0.5),))
    model = load_base("pocket", device="cpu")
    drawn = []
    for precision in ("fp32", "bf16"):
        engine = Engine(model, precision=precision)
        drawn += engine.draw([request])
        engine.close()
    assert 0 < latent_difference(drawn[1], drawn[0]) < 0.1
    halved = Engine(load_base("pocket", device="cpu", dtype="bf16"))
    assert 0 < latent_difference(halved.draw([request])[0], drawn[0]) < 0.1
    with pytest.raises(DeviceError, match="precision 'int8'"):
        Engine(model, precision="int8")


def test_an_adapter_of_another_family_is_refused_by_name(engine: Engine, model: Model, tmp_path: Path) -> None:
    from diffusion_lora.lora.adapter import Adapter, AdapterLayer

    key = "unet.down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
    layers = {key: AdapterLayer(torch.ones(2, 768), torch.ones(320, 2), 2.0)}
    write_adapter(Adapter(layers, {}), tmp_path / "real.safetensors")
    with pytest.raises(AdapterFileError, match=r"Stable Diffusion 1 .* pocket"):
        engine.draw([Request(loras=(LoraUse("real", tmp_path / "real.safetensors"),))])
    engine.draw([Request(steps=1)])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA on this machine")
def test_a_gpu_draws_what_the_cpu_draws(engine: Engine, style: LoraUse, hero: LoraUse) -> None:
    """Noise comes from the CPU, so a seed means the same picture on every device."""
    requests = [
        Request("a red cat on a sky background", seed=1, loras=(style.at(0.5),)),
        Request("a blue car", seed=2, sampler="ddim", loras=(hero.at(0.7, text_strength=0.0),)),
    ]
    expected = engine.draw(requests)
    for dtype, share in (("fp32", 0.05), ("auto", 0.2), ("bf16", 0.5)):
        drawn = Engine(load_base("pocket", device="cuda", dtype=dtype)).draw(requests)
        assert all(latent_difference(ours, theirs) < share for ours, theirs in zip(drawn, expected, strict=True)), dtype


@pytest.mark.parametrize("sampler", PLAIN_SAMPLERS)
def test_as_many_steps_as_the_base_has_timesteps(engine: Engine, sampler: str) -> None:
    """The highest number of steps that is offered would end in a traceback."""

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.draw([Request("a cup", steps=1000, width=64, height=64, sampler=sampler)], progress=stop)
