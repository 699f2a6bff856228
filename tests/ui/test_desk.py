"""The desk as values: what the browser says becomes requests, and a picture's request comes back as desk and form."""

import shlex
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from diffusion_lora.errors import AdapterFileError, PromptError
from diffusion_lora.generate.request import LoraUse, Request, parse_lora_argument
from diffusion_lora.lora.card import Card
from diffusion_lora.lora.header import tensor_hash
from diffusion_lora.workspace import Workspace
from webui.desk import (
    Channel,
    Form,
    Sweep,
    channels_of,
    command,
    facts,
    requests_of,
    restore,
    sounding,
    strip,
    sweep_of,
    sweep_requests,
)
from webui.knobs import BLOCKS, STEPS, looked_at
from webui.tables import grid_of, table_of

FORM = Form(prompt="a red cat", seed="7", width=128, height=128, steps=12, guidance=4)


@pytest.fixture
def loras(tmp_path: Path) -> Path:
    """A folder of files that look like LoRAs from outside."""
    folder = tmp_path / "loras"
    (folder / "mine").mkdir(parents=True)
    for index, name in enumerate(("neon", "hero", "mine/robot")):
        header = b'{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
        data = len(header).to_bytes(8, "little") + header + bytes([index])
        (folder / f"{name}.safetensors").write_bytes(data)
    return folder


def workspace_of(loras: Path) -> Workspace:
    return Workspace(loras.parent)


def cards_of(folder: Path) -> list[Card]:
    """The cards of these files, as if they were LoRAs."""
    return [
        Card(path.relative_to(folder).with_suffix("").as_posix(), path, rank=8, kind="style", trigger_word="bprint")
        for path in sorted(folder.rglob("*.safetensors"))
    ]


def test_the_faders_become_strengths_in_their_order(loras: Path) -> None:
    """Wrong: a picture with other strengths than the strips show, or in another order."""
    state = [
        {"name": "hero", "strength": 0.7, "text": 0.5, "muted": False, "solo": False, "thumb": "x.png"},
        {"name": "mine/robot", "strength": -0.3, "text": None, "muted": False, "solo": False},
    ]
    (request,) = requests_of(FORM, channels_of(state), workspace_of(loras))
    assert request.loras == (
        LoraUse("hero", loras / "hero.safetensors", 0.7, 0.5),
        LoraUse("mine/robot", loras / "mine/robot.safetensors", -0.3),
    )
    assert (request.prompt, request.seed, request.steps, request.guidance_scale) == ("a red cat", 7, 12, 4.0)
    assert (request.width, request.height, request.sampler) == (128, 128, "ddim")


def test_mute_solo_and_zero_silence_a_channel() -> None:
    """Wrong: a muted LoRA acts on the picture, or a solo lets others through."""
    one, two, three = Channel("one"), Channel("two", muted=True), Channel("three", strength=0.0)
    assert sounding([one, two, three]) == (one,)
    soloed = replace(one, solo=True)
    assert sounding([soloed, Channel("four")]) == (soloed,)
    assert sounding([replace(two, solo=True), one]) == (), "a channel that is both is muted, and the rest is not soloed"
    assert sounding([Channel("text only", 0.0, 0.4)]) == (Channel("text only", 0.0, 0.4),)


def test_several_pictures_count_the_seed_on(loras: Path) -> None:
    """Wrong: the page's pictures and those of `--count` have different seeds."""
    assert [request.seed for request in requests_of(replace(FORM, pictures=3), (), workspace_of(loras))] == [7, 8, 9]


@pytest.mark.parametrize("seed", ["", " ", "-1"])
def test_an_empty_seed_is_any(loras: Path, seed: str) -> None:
    """Wrong: an empty field is seed 0 for ever, or an error."""
    drawn = {requests_of(replace(FORM, seed=seed), (), workspace_of(loras))[0].seed for _ in range(5)}
    assert len(drawn) > 1


def test_what_is_left_out_is_the_bases_own(loras: Path) -> None:
    """Wrong: an empty size or guidance is sent as 0 and refused."""
    (request,) = requests_of(Form(prompt="x", seed="1", width=0, height=None, guidance=0), (), workspace_of(loras))
    assert (request.width, request.height, request.guidance_scale, request.steps) == (0, 0, None, 20)


def test_a_sweep_is_one_seed_and_one_channel_at_evenly_spread_strengths(loras: Path) -> None:
    """Wrong: something else than the swept strength differs between the pictures of a sweep."""
    channels = (Channel("neon", 0.8), Channel("hero", 0.7), Channel("mine/robot", muted=True))
    drawn = sweep_requests(replace(FORM, seed="", pictures=4), channels, Sweep("neon", 0, 1.2, 5), workspace_of(loras))
    assert len({request.seed for request in drawn}) == 1
    strengths = [{use.name: use.strength for use in request.loras} for request in drawn]
    assert strengths == [
        {"hero": 0.7},
        {"neon": 0.3, "hero": 0.7},
        {"neon": 0.6, "hero": 0.7},
        {"neon": 0.9, "hero": 0.7},
        {"neon": 1.2, "hero": 0.7},
    ]


def test_a_swept_channel_is_heard_though_muted_and_beside_a_solo(loras: Path) -> None:
    """Wrong: a sweep of a muted strip draws the same picture seven times."""
    muted = (Channel("neon", muted=True), Channel("hero", 0.5, solo=True), Channel("mine/robot"))
    drawn = sweep_requests(FORM, muted, Sweep("neon", 0.5, 1, 2), workspace_of(loras))
    assert [[use.name for use in request.loras] for request in drawn] == [["neon", "hero"]] * 2


def test_a_click_on_sweep_alone_goes_from_0_to_1_2_in_7() -> None:
    """Wrong: the promised sweep is another, or its captions carry rounding dust."""
    assert Sweep("neon").values() == (0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2)
    assert sweep_of({"name": "neon", "from": "0.5", "to": 1, "count": 3}) == Sweep("neon", 0.5, 1.0, 3)


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (replace(FORM, width=130), "multiple of 8"),
        (replace(FORM, steps=0), "steps is 0"),
        (replace(FORM, steps=2.5), "whole number"),
        (replace(FORM, pictures=0), "0 pictures"),
        (replace(FORM, pictures=1000), "1 to 64"),
        (replace(FORM, seed="twelve"), "'twelve' is no whole number"),
        (replace(FORM, guidance=0.5), "guidance scale is 0.5"),
        (replace(FORM, sampler="fast"), "'fast' is unknown"),
        (replace(FORM, prompt="a cat <lora:x:1>"), "<lora:x:1>"),
    ],
)
def test_what_cannot_be_drawn_is_said_in_words(loras: Path, form: Form, said: str) -> None:
    """Wrong: a field that a person mistyped ends in a traceback, or in another picture than asked for."""
    with pytest.raises(PromptError, match=said):
        requests_of(form, (), workspace_of(loras))


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "", "gone", "mine/../../x"])
def test_a_channel_names_a_file_below_loras_or_nothing(loras: Path, name: str) -> None:
    """Wrong: a browser can make the engine open a file anywhere, or a file that is gone is a bug."""
    (loras.parent / "x.safetensors").write_bytes(b"x")
    with pytest.raises(AdapterFileError, match="no longer in"):
        requests_of(FORM, [Channel(name)], workspace_of(loras))


@pytest.mark.parametrize(
    "state", [[1], [{"strength": 1}], [{"name": "a", "strength": "nan"}], {"a": 1}, [{"name": "a", "strength": 1e9}]]
)
def test_a_state_that_is_none_is_refused(state: object) -> None:
    """Wrong: nonsense from a browser becomes a request."""
    with pytest.raises(PromptError, match="reload"):
        channels_of(state)


@pytest.mark.parametrize(
    "data", [{}, {"name": "a", "from": "x", "to": 1, "count": 3}, {"name": "a", "from": 0, "to": 1, "count": "inf"}]
)
def test_a_sweep_without_numbers_is_refused(data: dict[str, object]) -> None:
    """Wrong: a mistyped field of the sweep is a traceback."""
    with pytest.raises(PromptError, match="numbers"):
        sweep_of(data)


def test_the_fader_of_all_scales_what_is_heard_and_a_new_channel_takes_it_on(loras: Path) -> None:
    """Wrong: a channel that another tab put on the desk stays as loud as it was, or a figure of sixteen digits."""
    state = [
        {"name": "neon", "strength": 0.7, "text": 0.1, "negative": -0.3, "master": 0.6},
        {"name": "hero", "strength": 1},
    ]
    (request,) = requests_of(FORM, channels_of(state), workspace_of(loras))
    told = [(use.strength, use.text_strength, use.negative) for use in request.loras]
    assert told == [(0.42, 0.06, -0.18), (0.6, None, None)]


def test_a_grid_hears_the_channels_that_it_is_about(loras: Path) -> None:
    """Wrong: an axis over a muted LoRA is refused, or draws the same picture along its whole length."""
    channels = [Channel("neon", muted=True), Channel("hero", 0.5), Channel("mine/robot", 0.0)]
    asked = grid_of({"rows": "strength:neon=0,1", "columns": "text:mine/robot=0,0.5,1", "theme": "dark"})
    table = table_of(FORM, channels, asked, workspace_of(loras))
    assert [use.name for use in table.request.loras] == ["neon", "hero", "mine/robot"]
    assert [(one.loras[0].strength, one.loras[2].text_strength) for one in table.requests] == [
        (0, 0), (0, 0.5), (0, 1), (1, 0), (1, 0.5), (1, 1),
    ]  # fmt: skip
    assert asked.theme == "dark"


@pytest.mark.parametrize(
    ("rows", "columns", "told"),
    [
        ("", "seed=1", "not understood"),
        ("seed=" + ",".join("123456789"), "steps=" + ",".join("123456789"), "81 pictures"),
        ("strength:gone=0,1", "seed=1", "no LoRA gone"),
        ("seed=" + "1," * 2000, "seed=1", "longer"),
    ],
)
def test_a_grid_that_cannot_be_drawn_is_a_sentence(loras: Path, rows: str, columns: str, told: str) -> None:
    """Wrong: a mistyped axis is a traceback, or a thousand pictures are begun."""
    with pytest.raises(PromptError, match=told):
        table_of(FORM, [Channel("neon")], grid_of({"rows": rows, "columns": columns}), workspace_of(loras))


@pytest.mark.parametrize("count", [1, 65])
def test_a_sweep_has_at_least_two_pictures(loras: Path, count: int) -> None:
    """Wrong: a sweep of one, or of a thousand, is begun."""
    with pytest.raises(PromptError, match="2 to 64"):
        sweep_requests(FORM, [Channel("neon")], Sweep("neon", 0, 1, count), workspace_of(loras))


def test_the_command_says_all_that_the_page_says(loras: Path) -> None:
    """Wrong: the copied command draws another picture than the page."""
    form = replace(FORM, prompt="it's a cat", negative_prompt="blurry, text", sampler="dpm++_2m_karras", pictures=2)
    first, *_ = requests_of(form, [Channel("neon", 0.8), Channel("hero", -0.25, 0.5)], workspace_of(loras))
    words = shlex.split(command(first, count=2))
    assert words[:3] == ["diffusion-lora", "generate", "it's a cat"]
    options = list(zip(words[3::2], words[4::2], strict=True))
    uses = [parse_lora_argument(value) for name, value in options if name == "--lora"]
    assert [(use.path, use.strength, use.text_strength) for use in uses] == [
        (loras / "neon.safetensors", 0.8, None),
        (loras / "hero.safetensors", -0.25, 0.5),
    ]
    assert dict(option for option in options if option[0] != "--lora") == {
        "--seed": "7",
        "--steps": "12",
        "--count": "2",
        "--negative": "blurry, text",
        "--guidance": "4",
        "--size": "128x128",
        "--sampler": "dpm++_2m_karras",
    }


def test_the_command_names_base_and_device_where_they_are_not_the_usual() -> None:
    """Wrong: the command draws with pocket what the page draws with another base; or a picked seed is invented."""
    text = command(Request("-x", seed=3), base="runwayml/sd", device="cuda:1", seeded=False)
    assert shlex.split(text)[2:] == ["--steps", "20", "--base", "runwayml/sd", "--device", "cuda:1", "--", "-x"]


def test_a_pictures_request_comes_back_as_form_and_desk(loras: Path) -> None:
    """Wrong: drawing with the settings of a dropped picture draws another one."""
    channels = (Channel("neon", 0.8), Channel("mine/robot", -0.5, 0.25))
    form = replace(FORM, negative_prompt="text", sampler="euler", guidance=2.5)
    (request,) = requests_of(form, channels, workspace_of(loras))
    found = restore(replace(request, base="pocket"), cards_of(loras), base="pocket")
    assert found.channels == channels
    assert found.told == ()
    assert requests_of(found.form, found.channels, workspace_of(loras)) == [request]


def test_blocks_and_steps_go_into_the_request_the_command_and_back(loras: Path) -> None:
    """Wrong: what stands behind More is lost on the way to the picture, in the copied line, or when it is dropped."""
    state = [
        {"name": "neon", "strength": 0.8, "text": 0, "blocks": "down:0,MID:0.5", "steps": "0:1 1:0", "negative": 0.25},
        {"name": "hero", "blocks": "1,0,0,0,0,0,0,1,1,1,1,1", "steps": " 0-0.5 "},
    ]
    channels = channels_of(state)
    (request,) = requests_of(FORM, channels, workspace_of(loras))
    neon, hero = request.loras
    assert (neon.blocks, neon.steps, neon.negative) == ((("down", 0.0), ("MID", 0.5)), "0:1 1:0", 0.25)
    assert (len(hero.blocks), hero.steps, hero.negative) == (12, "0-0.5", None)
    words = shlex.split(command(request))
    given = [parse_lora_argument(word) for option, word in pairwise(words) if option == "--lora"]
    assert [replace(use, name=Path(use.path).stem) for use in given] == [neon, hero]
    found = restore(request, cards_of(loras))
    assert found.channels == channels
    assert found.told == ()
    assert strip(channels[0], None)["course"][0] > strip(channels[0], None)["course"][-1]


@pytest.mark.parametrize("told", [{"steps": "sometimes"}, {"blocks": "down:much"}, {"steps": "0-1" * 200}])
def test_what_is_no_schedule_and_no_list_of_blocks_is_refused(told: dict[str, str]) -> None:
    """Wrong: a typing mistake draws a picture as if nothing had been typed."""
    with pytest.raises(PromptError, match=r"sometimes|much|longer"):
        channels_of([{"name": "neon", **told}])


def test_every_choice_of_blocks_and_steps_is_one_that_is_read() -> None:
    """Wrong: a choice on the page that the library refuses."""
    for blocks, _ in BLOCKS:
        assert looked_at({"blocks": blocks})["blocks"] == blocks
    for steps, _ in STEPS:
        assert looked_at({"steps": steps})["steps"] == steps


def test_a_lora_is_found_by_name_and_by_its_tensors(loras: Path, tmp_path: Path) -> None:
    """Wrong: a picture from another machine, or after a file was renamed, loses its LoRAs."""
    elsewhere = LoraUse("neon", Path("/elsewhere/neon.safetensors"), 0.8)
    renamed = LoraUse("old name", tmp_path / "old.safetensors", 0.5, sha=tensor_hash(loras / "hero.safetensors")[:12])
    found = restore(Request("x", loras=(elsewhere, renamed)), cards_of(loras))
    assert [channel.name for channel in found.channels] == ["neon", "hero"]
    assert found.told == ()


def test_a_lora_that_is_gone_or_changed_is_told_by_name(loras: Path) -> None:
    """Wrong: settings come back in silence without a LoRA, or with another one of the same name."""
    gone = LoraUse("glass", Path("glass.safetensors"), 0.5)
    changed = LoraUse("neon", loras / "neon.safetensors", 0.5, sha="0" * 64)
    found = restore(Request("x", loras=(gone, changed), base="sd15"), cards_of(loras), base="pocket")
    assert [channel.name for channel in found.channels] == ["neon"]
    missing, other, base = found.told
    assert "glass.safetensors" in missing
    assert "neon has changed" in other
    assert "sd15" in base


def test_a_broken_file_is_not_put_on_the_desk(loras: Path) -> None:
    """Wrong: a picture brings a channel back that cannot draw."""
    card = Card("neon", loras / "neon.safetensors", problem="cut off")
    assert restore(Request("x", loras=(LoraUse("neon", card.path),)), [card]).channels == ()


def test_a_strip_tells_kind_rank_and_trigger_word(loras: Path) -> None:
    """Wrong: a strip without what its file says of itself, or one that fails where the file says nothing."""
    (card,) = (card for card in cards_of(loras) if card.name == "neon")
    assert strip(Channel("neon", 0.8), card, "neon.png") == {
        "name": "neon", "strength": 0.8, "text": None, "muted": False, "solo": False,
        "blocks": "", "steps": "", "negative": None, "course": None, "master": 1.0,
        "area": "", "mask": "", "words": "", "kind": "style, rank 8", "trigger": "bprint", "thumb": "neon.png",
    }  # fmt: skip
    assert facts(Card("x", Path("x"))) == {"kind": "", "trigger": "", "thumb": None}
    assert facts(None) == {"kind": "", "trigger": "", "thumb": None}
