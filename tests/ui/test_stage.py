"""What the stage shows as the engine tells it: waiting, glimpses, pictures, and each way to end."""

from pathlib import Path

from PIL import Image

from diffusion_lora.generate.picture import save_png
from diffusion_lora.generate.request import LoraUse, Request
from diffusion_lora.generate.wire import Cancelled, Drawn, End, Failed, Preview, Queued, SheetDrawn, Step, Waiting
from diffusion_lora.workspace import Workspace
from webui.desk import Form, Sweep
from webui.stage import Stage, earlier, trouble
from webui.tables import grid_of, table_of

ONE = Request("a red cat", seed=7)


def stage(*requests: Request, sweep: Sweep | None = None) -> Stage:
    """A stage whose pictures have plain addresses."""
    return Stage(requests, lambda path: f"at/{path}", sweep)


def test_a_drawing_is_shown_from_the_wait_to_the_picture() -> None:
    """Wrong: a person looks at an empty stage, or at a glimpse after the picture is there."""
    shown = stage(ONE)
    assert shown.value()["phase"] == "waiting"
    shown.take(Waiting("Waiting for hero, which trains."))
    assert shown.value()["text"] == "Waiting for hero, which trains."
    shown.take(Queued(2))
    assert "2 drawings before" in shown.value()["text"]
    shown.take(Step(5, 20))
    shown.take(Preview(0, "AAAA"))
    value = shown.value()
    assert (value["phase"], value["text"], value["progress"]) == ("drawing", "", 0.25)
    assert value["told"].startswith("step 5 of 20")
    assert value["cells"][0]["src"] == "data:image/webp;base64,AAAA"
    assert value["cells"][0]["name"] == ""
    shown.take(Drawn(0, "pictures/00001-7.png", Request("a red cat", seed=7, width=256, height=128), ("a note",)))
    shown.take(End(9.4, 2.6))
    value = shown.value()
    assert (value["phase"], value["progress"], value["ratio"]) == ("done", 0, 2)
    assert value["figures"] == "9.4 s, 2.6 steps/s, seed 7"
    assert value["notes"] == ["A note."]
    assert (value["cells"][0]["src"], value["cells"][0]["name"]) == ("at/pictures/00001-7.png", "00001-7.png")


def test_a_sweep_carries_its_values() -> None:
    """Wrong: a row of pictures that does not say which strength each is, so that no click can set the fader."""
    sweep = Sweep("mine/neon", 0, 1.2, 7)
    value = stage(*[ONE] * 7, sweep=sweep).value()
    assert value["title"] == "neon from 0 to 1.2, one batch of 7"
    assert [cell["caption"] for cell in value["cells"]] == ["0", "0.2", "0.4", "0.6", "0.8", "1", "1.2"]
    assert [cell["value"] for cell in value["cells"]] == list(sweep.values())
    assert value["sweep"] == "mine/neon"


def test_a_grid_stands_in_its_columns_and_ends_with_a_sheet(tmp_path: Path) -> None:
    """Wrong: a table whose pictures stand in other columns than its values, or a sheet that nobody gets to see."""
    asked = grid_of({"rows": "guidance=2,4", "columns": "seed=1,2,3"})
    table = table_of(Form("a red cat", seed="7"), (), asked, Workspace(tmp_path))
    shown = Stage(table.requests, lambda path: f"at/{path}", table=table)
    value = shown.value()
    assert (value["columns"], value["sheet"]) == (3, "")
    assert [cell["caption"] for cell in value["cells"]] == ["2, 1", "2, 2", "2, 3", "4, 1", "4, 2", "4, 3"]
    assert [(request.guidance_scale, request.seed) for request in table.requests][2:4] == [(2, 3), (4, 1)]
    shown.take(SheetDrawn("pictures/sheets/00001.png"))
    shown.take(End(2, 10))
    assert shown.value()["sheet"] == "at/pictures/sheets/00001.png"


def test_several_pictures_are_told_apart_by_their_seeds() -> None:
    """Wrong: the seed of the one a person likes cannot be seen."""
    shown = stage(ONE, Request("a red cat", seed=8))
    shown.take(End(2, 10))
    assert [cell["caption"] for cell in shown.value()["cells"]] == ["seed 7", "seed 8"]
    assert shown.value()["figures"].endswith("seeds 7 to 8")


def test_after_a_cancel_only_pictures_stay() -> None:
    """Wrong: a glimpse looks like a result that can be downloaded."""
    shown = stage(ONE, Request("a red cat", seed=8))
    shown.take(Step(30, 40))
    shown.take(Drawn(0, "pictures/00001-7.png", Request("a red cat", seed=7, width=128, height=128)))
    shown.take(Preview(1, "AAAA"))
    shown.take(Cancelled())
    value = shown.value()
    assert (value["phase"], [cell["name"] for cell in value["cells"]]) == ("cancelled", ["00001-7.png"])
    assert value["text"] == "Cancelled after step 30 of 40."


def test_a_failure_is_one_sentence() -> None:
    """Wrong: the stage goes on saying that it draws."""
    shown = stage(ONE)
    shown.take(Failed("the engine stopped"))
    assert (shown.value()["phase"], shown.value()["text"]) == ("failed", "The engine stopped.")
    assert shown.value()["cells"] == []
    assert trouble("no such thing")["text"] == "No such thing."


def test_an_earlier_picture_says_what_made_it(tmp_path: Path) -> None:
    """Wrong: a picture of the film strip comes without its strengths and its seed."""
    request = Request(
        "a cat", seed=5, steps=1, width=128, height=64, loras=(LoraUse("neon", Path("n.safetensors"), 0.8),)
    )
    picture = save_png(tmp_path, Image.new("RGB", (128, 64)), "5")
    value = earlier(picture, request, "at/it.png")
    assert value["figures"].startswith("neon 0.8, 1 step, seed 5, today")
    assert (value["ratio"], value["title"], value["cells"][0]["name"]) == (2, "a cat", picture.name)
