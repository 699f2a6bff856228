"""Mixes by block, step, half and region: a picture of a mixed batch is the picture drawn alone; each setting acts."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion_lora.errors import PromptError
from diffusion_lora.families.family import Model
from diffusion_lora.generate.engine import Engine
from diffusion_lora.generate.picture import Picture, save_pictures
from diffusion_lora.generate.reading import read_picture, read_request
from diffusion_lora.generate.region import BOXES, Region, parse_region_argument
from diffusion_lora.generate.request import LoraUse, Request, parse_lora_argument
from diffusion_lora.lora.adapter import write_adapter
from tests.generate.conftest import random_adapter

STEPS = 4
LEFT = Region("left", "a red cat", BOXES["left"])
RIGHT = Region("right", "a (blue:1.3) car", BOXES["right"], soft=0.2)


@pytest.fixture(scope="session")
def third(tmp_path_factory: pytest.TempPathFactory) -> LoraUse:
    path = tmp_path_factory.mktemp("loras") / "third.safetensors"
    write_adapter(random_adapter(3, 3), path, dtype="fp32")
    return LoraUse("third", path)


def difference(ours: Picture, theirs: Picture) -> float:
    return float((ours.latents - theirs.latents).abs().max() / (theirs.latents.max() - theirs.latents.min()))


def eight(style: LoraUse, hero: LoraUse, third: LoraUse) -> list[Request]:
    """Eight mixes of three adapters: schedules, blocks, text strengths, halves and regions among them."""
    common = Request("a red cat on a sky background", "a house", steps=STEPS, width=64, height=64)
    mixes: list[dict[str, object]] = [
        {"loras": (style.at(0.8), hero.at(0.5), third.at(-0.4))},
        {"loras": (replace(style.at(1.0), steps="0-0.5"), replace(hero.at(0.9), steps="0:0 1:1"))},
        {"loras": (replace(style.at(1.0), blocks=(("down", 0.2), ("up", 1.5))), third.at(0.5, 0.0))},
        {"loras": (style.at(0.7, 0.1), hero.at(-0.3, 1.0), third.at(0.4)), "clip_skip": 2},
        {"loras": (replace(style.at(0.9), negative=-0.5), third.at(0.3))},
        {
            "loras": (replace(style.at(1.0), region="right"), replace(hero.at(1.0), region="left"), third.at(0.2)),
            "regions": (LEFT, RIGHT),
        },
        {"loras": (style.at(0.6), hero.at(0.6), third.at(0.6)), "combine": "composite"},
        {
            "loras": (replace(style.at(1.0), steps="switch 1/2"), replace(third.at(1.0), steps="switch 2/2")),
            "prompt": "a [red:green:0.5] (cat:1.3) BREAK on a [sky|beach] background",
        },
    ]
    return [replace(common, seed=seed, **mix) for seed, mix in enumerate(mixes)]  # type: ignore[arg-type]


def test_eight_mixes_in_one_batch_are_eight_single_pictures_and_come_back_from_their_files(
    engine: Engine, style: LoraUse, hero: LoraUse, third: LoraUse, tmp_path: Path
) -> None:
    requests = eight(style, hero, third)
    batch = engine.draw(requests)
    for picture, request in zip(batch, requests, strict=True):
        (alone,) = engine.draw([request])
        assert difference(picture, alone) < 1e-4, request
        apart = np.abs(np.asarray(picture.image).astype(int) - np.asarray(alone.image))
        assert apart.max() <= 1
        assert (apart == 0).mean() >= 0.999
    paths = save_pictures(tmp_path, batch)
    assert [read_request(path) for path in paths] == [picture.request for picture in batch]
    again = engine.draw([read_request(path) for path in paths])
    for path, first, second in zip(paths, batch, again, strict=True):
        assert first.image.tobytes() == second.image.tobytes()
        company = read_picture(path).company
        assert company is not None
        redrawn = engine.redraw(read_request(path), company)
        assert redrawn.image.tobytes() == first.image.tobytes(), "alone, but over the shapes of its batch"


def test_each_setting_changes_the_picture(engine: Engine, style: LoraUse, hero: LoraUse, third: LoraUse) -> None:
    """An option that did nothing would pass the test above."""
    plain = Request("a red cat", "a house", seed=1, steps=STEPS, width=64, height=64)
    plain = replace(plain, loras=(style.at(1.0), hero.at(0.5)))
    changed = [
        replace(plain, loras=(replace(style.at(1.0), steps="0-0.5"), hero.at(0.5))),
        replace(plain, loras=(replace(style.at(1.0), blocks=(("mid", 0.0),)), hero.at(0.5))),
        replace(plain, loras=(replace(style.at(1.0), blocks=(("BASE", 0.0),)), hero.at(0.5))),
        replace(plain, loras=(replace(style.at(1.0), negative=0.0), hero.at(0.5))),
        replace(plain, combine="composite"),
        replace(plain, clip_skip=2),
        replace(plain, regions=(RIGHT,)),
        replace(plain, loras=(replace(style, region="left"), hero.at(0.5)), regions=(Region("left", box=LEFT.box),)),
    ]
    first, *others = engine.draw([plain, *changed])
    for request, picture in zip(changed, others, strict=True):
        assert difference(picture, first) > 1e-4, request


def test_a_region_of_the_whole_picture_is_its_prompt_and_one_that_nothing_acts_in_leaves_it(
    engine: Engine, style: LoraUse
) -> None:
    whole = Region("all", "a blue car")
    (regional,) = engine.draw([Request("a cat", seed=2, steps=STEPS, regions=(whole,))])
    (plain,) = engine.draw([Request("a blue car", seed=2, steps=STEPS)])
    assert difference(regional, plain) < 1e-4
    inside = replace(style.at(0.8), region="all")
    (regional,) = engine.draw([Request("a cat", seed=2, steps=STEPS, regions=(whole,), loras=(inside,))])
    (plain,) = engine.draw([Request("a blue car", seed=2, steps=STEPS, loras=(style.at(0.8),))])
    assert difference(regional, plain) < 1e-4


def test_schedules_hold_from_step_to_step(engine: Engine, style: LoraUse) -> None:
    """Off in all steps is the base but for its text part; on in all of them is the plain strength."""
    request = Request("a cat", seed=2, steps=STEPS)
    base, off, on, always = engine.draw([
        request,
        replace(request, loras=(replace(style.at(1.0, 0.0), steps="0:0 1:0"),)),
        replace(request, loras=(replace(style.at(1.0), steps="0-1"),)),
        replace(request, loras=(style.at(1.0),)),
    ])  # fmt: skip
    assert difference(off, base) < 1e-6
    assert difference(on, always) < 1e-6


def test_long_prompts_are_read_to_their_end_and_plain_ones_cut_off(engine: Engine, model: Model) -> None:
    words = ["a"] * model.max_tokens
    long = Request(" ".join([*words, "red", "cat"]), seed=3, steps=2)
    short = replace(long, prompt=" ".join(words))
    read, cut, plain = engine.draw([long, short, replace(long, prompt_syntax="plain")])
    assert difference(read, cut) > 1e-3
    assert difference(plain, cut) < 1e-5
    assert plain.notes
    assert not read.notes


def test_what_does_not_fit_is_refused_in_a_sentence(engine: Engine, style: LoraUse) -> None:
    with pytest.raises(PromptError, match="region 'top'"):
        Request("a", loras=(replace(style, region="top"),), regions=(LEFT,))
    with pytest.raises(PromptError, match="blocks of the LoRA style"):
        engine.draw([Request("a", steps=1, loras=(replace(style, blocks=(1.0, 0.5)),))])
    with pytest.raises(PromptError, match="steps"):
        replace(style, steps="now and then")
    with pytest.raises(PromptError, match="character 3"):
        Request("a AND b")


def test_arguments_say_what_requests_hold() -> None:
    use = parse_lora_argument("dir/x.safetensors:0.8:0.5;steps=0-0.5;blocks=down:0.5,mid:1;region=left;negative=0")
    assert (use.strength, use.text_strength, use.steps, use.region, use.negative) == (0.8, 0.5, "0-0.5", "left", 0.0)
    assert use.blocks == (("down", 0.5), ("mid", 1.0))
    assert parse_lora_argument("x:1;blocks=1,0.5").blocks == (1.0, 0.5)
    assert parse_region_argument("left=a red cat") == Region("left", "a red cat", BOXES["left"])
    assert parse_region_argument("hero:0,0.5,1,1=zib").box == (0.0, 0.5, 1.0, 1.0)
    for wrong in ("nowhere=a", "x:0,0,2,1=a", "x:0,1=a"):
        with pytest.raises(PromptError):
            parse_region_argument(wrong)


def test_masks_share_the_picture() -> None:
    from diffusion_lora.generate.masks import shares

    chance = random.Random(1)
    for _ in range(20):
        sides = sorted(chance.random() for _ in range(4))
        regions = [LEFT, RIGHT, Region("box", box=(sides[0], sides[1], sides[2] + 1e-3, sides[3]), soft=0.3)]
        found = shares(regions, 8, 12)
        assert found.shape == (4, 8, 12)
        assert torch.allclose(found.sum(dim=0), torch.ones(8, 12), atol=1e-6)
        assert found.min() >= 0
    halves = shares([LEFT, replace(RIGHT, soft=LEFT.soft)], 8, 8)
    assert torch.equal(halves[1, 0], torch.tensor([1.0] * 4 + [0.0] * 4)), "an edge softer than a place is hard"


def test_a_long_run_of_one_mix_is_folded_and_leaves_no_trace(model: Model, style: LoraUse, hero: LoraUse) -> None:
    """Wrong if folding drew another picture, if a batch of several mixes were folded, or if the base kept anything."""
    gated, folding = Engine(model, fold_from=10**9), Engine(model, fold_from=1)
    request = Request("a cat", "a dog", seed=2, steps=STEPS, width=64, height=64)
    same = [replace(request, seed=seed, loras=(style.at(0.8), hero.at(-0.5, 1.0))) for seed in (1, 2)]
    (base,) = gated.draw([request])
    through_gates = gated.draw(same)
    gated.close()
    folded = folding.draw(same)
    mixed = folding.draw([same[0], replace(same[1], loras=(style.at(0.1),))])
    (after,) = folding.draw([request])
    folding.close()
    for ours, theirs in zip(folded, through_gates, strict=True):
        assert ours.company is not None
        assert ours.company.folded
        assert difference(ours, theirs) < 1e-4
        assert np.abs(np.asarray(ours.image).astype(int) - np.asarray(theirs.image)).max() <= 1
    assert not any(picture.company.folded for picture in mixed if picture.company)
    assert torch.equal(after.latents, base.latents)
