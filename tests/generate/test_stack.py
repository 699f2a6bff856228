"""What people say and type about a stack: tags found as files, mute, solo, a budget, and warnings with figures."""

from dataclasses import replace
from pathlib import Path

import pytest

from diffusion_lora.errors import PromptError, PromptSyntaxError
from diffusion_lora.generate.engine import Engine
from diffusion_lora.generate.infotext import from_json, request_from_infotext, to_json, write_infotext
from diffusion_lora.generate.request import LoraUse, Request
from diffusion_lora.generate.schedules import factor_at
from diffusion_lora.generate.stack import muted, soloed, within_budget
from diffusion_lora.generate.tags import in_folders, read_typed_prompt
from diffusion_lora.lora.adapter import read_adapter, write_adapter

A, B = LoraUse("a", Path("a.safetensors"), 1.0, 0.5), LoraUse("b", Path("b.safetensors"), -0.5)


def test_mute_solo_and_budget() -> None:
    assert [use.strength for use in muted([A, B], ["a"])] == [0.0, -0.5]
    assert [use.strength_of_text for use in soloed([A, B], ["b"])] == [0.0, -0.5]
    scaled = within_budget([A, B], 0.75)
    assert [use.strength for use in scaled] == [0.5, -0.25]
    assert scaled[0].text_strength == 0.25
    assert within_budget([A, B], 2.0) == (A, B)
    with pytest.raises(PromptError, match="no LoRA c"):
        muted([A, B], ["c"])


def test_tags_find_their_files(tmp_path: Path) -> None:
    for name in ("style", "mine/robot", "his/robot"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.safetensors").touch()
    prompt, uses = read_typed_prompt(
        "a {red} cat <lora:style:0.4:0.8:steps=0-0.5:blocks=mid=0.5,up=0> <lora:mine/robot>",
        1,
        find=in_folders([tmp_path]),
    )
    assert prompt == "a red cat"
    assert [(use.name, use.text_strength, use.strength, use.path) for use in uses] == [
        ("style", 0.4, 0.8, tmp_path / "style.safetensors"),
        ("mine/robot", None, 1.0, tmp_path / "mine/robot.safetensors"),
    ]  # fmt: skip
    assert (uses[0].steps, uses[0].blocks) == ("0-0.5", (("mid", 0.5), ("up", 0.0)))
    for wrong, word in (("stile", "did you mean style"), ("robot", "several")):
        with pytest.raises(PromptSyntaxError, match=word) as caught:
            read_typed_prompt(f"a <lora:{wrong}:1>", 1, find=in_folders([tmp_path]))
        assert caught.value.at == 2


def test_the_infotext_says_what_tags_say() -> None:
    use = replace(A, steps="0:1 1:0", blocks=(("down", 0.5),), region="", negative=0.25)
    request = Request("a cat", seed=1, width=64, height=64, loras=(use, B), clip_skip=2)
    text = write_infotext(request)
    assert "<lora:a:0.5:1:steps=0=1 1=0:blocks=down=0.5:negative=0.25>" in text
    assert "Clip skip: 2" in text
    back = request_from_infotext(text)
    assert back.loras == (replace(use, path=Path("a.safetensors")), B)
    assert back.clip_skip == 2
    assert from_json(to_json(request)) == request


def test_schedules_factor_by_factor() -> None:
    def factors(text: str, steps: int = 10) -> list[float]:
        return [round(factor_at(text, step, steps), 3) for step in range(1, steps + 1)]

    assert factors("") == [1.0] * 10
    assert factors("0.2-0.5") == [0, 0, 1, 1, 1, 0, 0, 0, 0, 0]
    assert factors("3-5") == [0, 0, 1, 1, 1, 0, 0, 0, 0, 0]
    assert factors("1-5") == [1] * 5 + [0] * 5
    assert factors("0:1 1:0") == [0.95, 0.85, 0.75, 0.65, 0.55, 0.45, 0.35, 0.25, 0.15, 0.05]
    assert factors("0:0 0.5:0 0.5:2 1:2") == [0] * 5 + [2] * 5
    assert factors("switch 1/2") == [1, 0] * 5
    assert factors("switch 2/2 every 3") == [0, 0, 0, 1, 1, 1, 0, 0, 0, 1]


def test_adapters_that_reinforce_or_cancel_are_told_with_figures(
    engine: Engine, style: LoraUse, hero: LoraUse, tmp_path: Path
) -> None:
    twin = LoraUse("twin", tmp_path / "twin.safetensors")
    write_adapter(read_adapter(style.path), twin.path, dtype="fp16")
    request = Request("a cat", steps=1, width=64, height=64)
    same, against, strangers = engine.draw([
        replace(request, loras=(style.at(1.0), twin.at(1.0))),
        replace(request, loras=(style.at(1.0), twin.at(-1.0))),
        replace(request, loras=(style.at(1.0), hero.at(1.0))),
    ])  # fmt: skip
    (note,) = same.notes
    assert "reinforce" in note
    assert "+1.00" in note
    assert "1.41 times" in note
    (note,) = against.notes
    assert "cancel" in note
    assert "-1.00" in note
    assert not strangers.notes
