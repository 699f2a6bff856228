"""Drawing through the engine: what is streamed, what is saved, what stays hot, what cancels."""

import base64
import io
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffusion_lora.generate.reading import read_picture, read_request
from diffusion_lora.generate.request import LoraUse, Request
from webui.engine import (
    Cancelled,
    DrawingEvent,
    Drawn,
    End,
    Failed,
    Preview,
    Queued,
    Start,
    Step,
)

CAT = Request("a big red cat on a sky background", seed=3, steps=6)
LONG = Request("a big red cat on a sky background", seed=3, steps=900)
STYLE = LoraUse("style", Path("loras/style.safetensors"))


def of_kind(kind: Any, events: Iterable[DrawingEvent]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def test_a_picture_is_streamed_step_by_step_and_saved(engine: Any) -> None:
    """The page would see nothing of the drawing, or the picture would be lost with the page."""
    events = list(engine.client.generate([CAT]))
    assert isinstance(events[0], Start)
    assert isinstance(events[-1], End)
    assert [step.done for step in of_kind(Step, events)] == [1, 2, 3, 4, 5, 6]
    (drawn,) = of_kind(Drawn, events)
    assert drawn.path.startswith("pictures/")
    assert drawn.request.base == "pocket"
    assert read_request(engine.workspace.root / drawn.path) == drawn.request


def test_glimpses_are_pictures_and_become_the_picture(engine: Any) -> None:
    """What is shown while drawing would be noise, or of another picture."""
    events = list(engine.client.generate([Request("a big red cat on a sky background", seed=3, steps=40)]))
    (drawn,) = of_kind(Drawn, events)
    glimpses = [
        Image.open(io.BytesIO(base64.b64decode(glimpse.webp))).convert("RGB") for glimpse in of_kind(Preview, events)
    ]
    assert glimpses
    final = np.asarray(Image.open(engine.workspace.root / drawn.path), dtype=float)
    far = [np.abs(np.asarray(glimpse, dtype=float) - final).mean() for glimpse in glimpses]
    assert far[-1] < 20
    assert far[-1] <= far[0]


def test_without_previews_there_are_none_and_the_pixels_are_the_same(engine: Any) -> None:
    """Looking at a picture in the making would change it."""
    paths = []
    for previews in (False, True):
        events = list(engine.client.generate([CAT], previews=previews))
        paths += [engine.workspace.root / drawn.path for drawn in of_kind(Drawn, events)]
        assert previews or not of_kind(Preview, events)
    with Image.open(paths[0]) as first, Image.open(paths[1]) as second:
        assert first.tobytes() == second.tobytes()


def test_a_sweep_is_one_batch_and_its_zero_is_the_base(engine: Any) -> None:
    """A sweep would take a pass for each of its pictures, or draw others than the single requests do."""
    strengths = (0.0, 0.5, 1.0)
    sweep = [Request(CAT.prompt, seed=3, steps=6, loras=(STYLE.at(strength),)) for strength in strengths]
    events = list(engine.client.generate(sweep))
    assert len(of_kind(Step, events)) == 6
    drawn = of_kind(Drawn, events)
    assert [picture.request.loras[0].strength for picture in drawn] == list(strengths)
    alone = [of_kind(Drawn, engine.client.generate([request]))[0] for request in (CAT, *sweep[1:])]
    for one, other in zip(drawn, alone, strict=True):
        pixels = [np.asarray(Image.open(engine.workspace.root / each.path), dtype=int) for each in (one, other)]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1  # a batch rounds differently
    assert np.abs(pixels[0] - np.asarray(Image.open(engine.workspace.root / drawn[0].path), dtype=int)).mean() > 2


def test_adapters_stay_hot_and_a_fader_touches_no_weight(engine: Any) -> None:
    """Each draw would read files and rebuild layers, and moving a fader would cost what loading costs."""
    hero = LoraUse("hero", Path("loras/hero.safetensors"))

    def draw(*loras: LoraUse) -> int:
        events = list(engine.client.generate([Request(CAT.prompt, steps=1, loras=loras)]))
        assert isinstance(events[-1], End)
        return int(engine.client.status().loads)

    loads = draw(STYLE, hero)
    assert draw(STYLE, hero) == loads
    assert draw(STYLE.at(0.3), hero.at(-0.5)) == loads
    assert draw(STYLE.at(2.0)) == loads  # one leaves, the other stays
    assert draw(STYLE, hero) == loads + 1


def test_cancel_takes_effect_within_a_step_and_leaves_the_engine_able(engine: Any) -> None:
    """A person would wait for a drawing they do not want."""
    drawing = engine.client.generate([LONG])
    start = next(drawing)
    while not isinstance(next(drawing), Step):
        pass
    assert engine.client.status().state == "busy"
    assert engine.client.cancel(start.id)
    rest = list(drawing)
    assert isinstance(rest[-1], Cancelled)
    assert len(rest) < 100, "of nine hundred steps"
    assert not engine.client.cancel(start.id)
    assert isinstance(list(engine.client.generate([CAT]))[-1], End)


def test_hanging_up_cancels(engine: Any) -> None:
    """A closed page would leave the engine drawing for nobody."""
    drawing = engine.client.generate([LONG])
    while not isinstance(next(drawing), Step):
        pass
    drawing.close()
    engine.wait_until("ready")


def test_one_drawing_at_a_time_and_each_in_its_turn(engine: Any) -> None:
    """Two drawings would share the model, or the second would not know that it waits, or could not be cancelled."""
    first, second, third = (engine.client.generate([LONG]) for _ in range(3))
    starts = [next(drawing) for drawing in (first, second, third)]
    assert next(second) == Queued(1)
    assert next(third) == Queued(2)
    assert engine.client.cancel(starts[1].id)
    assert list(second) == [Cancelled()]
    assert next(third) == Queued(1)
    first.close()
    assert isinstance(next(third), Step | Preview)
    third.close()
    engine.wait_until("ready")


def test_callers_whose_pictures_are_alike_share_a_batch_and_each_gets_its_own(engine: Any) -> None:
    """Two callers would take two passes, or one would get the other's pictures, steps or adapters."""
    requests = [Request(CAT.prompt, seed=seed, steps=6, loras=(STYLE.at(seed / 10),)) for seed in (1, 2, 3)]
    alone = [of_kind(Drawn, engine.client.generate([request]))[0] for request in requests]
    first = engine.client.generate([LONG])
    while not isinstance(next(first), Step):
        pass
    calls = [engine.client.generate(requests[:1]), engine.client.generate(requests[1:])]
    for call in calls:
        assert isinstance(next(call), Start)
        assert isinstance(next(call), Queued)
    first.close()
    told = [list(call) for call in calls]
    for events in told:
        assert isinstance(events[-1], End)
        assert [(step.done, step.total) for step in of_kind(Step, events)] == [(done, 6) for done in range(1, 7)]
    drawn = [picture for events in told for picture in of_kind(Drawn, events)]
    assert [picture.index for picture in drawn] == [0, 0, 1]
    for one, other in zip(drawn, alone, strict=True):
        assert one.request == other.request
        assert engine.workspace.relative(engine.workspace.root / one.path) != other.path
        reading = read_picture(engine.workspace.root / one.path)
        assert reading.company is not None
        assert reading.company.rows == 6, "three pictures, two halves each: one batch"
        pixels = [np.asarray(Image.open(engine.workspace.root / each.path), dtype=int) for each in (one, other)]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1


def test_of_callers_in_one_batch_one_cancels_and_one_asks_for_nonsense(engine: Any) -> None:
    """Others in the batch would lose their pictures with the caller who gave up, or whose strength made no numbers."""
    first = engine.client.generate([LONG])
    while not isinstance(next(first), Step):
        pass
    wild = Request(LONG.prompt, seed=5, steps=15, loras=(STYLE.at(1e30),))
    calls = [engine.client.generate([replace(wild, loras=uses)]) for uses in ((), (), wild.loras)]
    ids = [next(call).id for call in calls]
    assert all(isinstance(next(call), Queued) for call in calls)
    first.close()
    while not isinstance(next(calls[0]), Step):
        pass
    assert engine.client.cancel(ids[0])
    assert isinstance(list(calls[0])[-1], Cancelled)
    assert isinstance(list(calls[1])[-1], End)
    (*_, last) = calls[2]
    assert isinstance(last, Failed)
    assert "no numbers" in last.text
    engine.wait_until("ready")


def test_a_broken_lora_is_told_in_a_sentence(engine: Any) -> None:
    """A damaged file would be a traceback, or would end the engine."""
    for name, words in (("broken", "cut off"), ("nowhere", "does not exist")):
        request = Request(CAT.prompt, steps=1, loras=(LoraUse(name, Path(f"loras/{name}.safetensors")),))
        (*_, last) = engine.client.generate([request])
        assert isinstance(last, Failed)
        assert words in last.text
    assert isinstance(list(engine.client.generate([CAT]))[-1], End)


def test_a_request_for_another_base_is_refused(engine: Any) -> None:
    """A picture's settings would be drawn by a base that it was not made with."""
    (*_, last) = engine.client.generate([Request("a cat", base="elsewhere/model")])
    assert isinstance(last, Failed)
    assert "elsewhere/model" in last.text


def test_adapters_are_listed_the_broken_one_with_its_problem(engine: Any) -> None:
    """The desk would have nothing to offer, or would offer what cannot be loaded."""
    cards = {card.name: card for card in engine.client.adapters()}
    assert list(cards) == ["broken", "hero", "style"]
    assert (cards["style"].rank, cards["style"].alpha, cards["style"].trigger_word) == (4, 2.0, "word1")
    assert cards["style"].base == "pocket"
    assert cards["style"].problem == ""
    assert "cut off" in cards["broken"].problem


@pytest.mark.slow
def test_the_command_line_draws_the_same_pixels(engine: Any, command_line: Any, tmp_path: Path) -> None:
    """What one sees on the page could not be made again by the command beside it."""
    style = engine.workspace.loras / "style.safetensors"
    done = command_line(
        "generate", CAT.prompt, "--lora", f"{style}:0.7", "--seed", 3, "--count", 2, "--steps", 6, "--out", tmp_path,
        "--negative", "blurry", "--device", "cpu",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    requests = [
        Request(CAT.prompt, negative_prompt="blurry", seed=seed, steps=6, loras=(STYLE.at(0.7),)) for seed in (3, 4)
    ]
    drawn = of_kind(Drawn, engine.client.generate(requests))
    commanded = sorted(tmp_path.glob("*.png"))
    for mine, theirs in zip(drawn, commanded, strict=True):
        with Image.open(engine.workspace.root / mine.path) as one, Image.open(theirs) as other:
            assert one.tobytes() == other.tobytes()
        assert read_request(theirs) == mine.request
