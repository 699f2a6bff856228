"""Names of files and canonical layer keys: every spelling that trainers use, and what is none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from diffusion_lora.errors import AdapterFileError
from diffusion_lora.lora.formats import foreign, kohya, names, paths, peft
from diffusion_lora.lora.formats.forms import DOWN, MAGNITUDE, MID, UP, Form, form_of
from diffusion_lora.lora.formats.reading import read_names
from diffusion_lora.lora.header import Header, TensorInfo

Q = "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
QD = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
PROCESSOR = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor"
TEXT = "encoder_layers_3_self_attn_out_proj"
TEXTD = "text_model.encoder.layers.3.self_attn"


@pytest.mark.parametrize(
    ("name", "key", "suffix", "spelling"),
    [
        (f"lora_unet_{Q}.lora_down.weight", f"unet.{Q}", DOWN, names.KOHYA),
        (f"lora_unet_{Q}.lora_mid.weight", f"unet.{Q}", MID, names.KOHYA),
        (f"lora_unet_{Q}.dora_scale", f"unet.{Q}", MAGNITUDE, names.KOHYA),
        ("lora_unet_conv_in.diff_b", "unet.conv_in", "diff_b", names.KOHYA),
        (f"lora_te_text_model_{TEXT}.alpha", f"te.{TEXT}", "alpha", names.KOHYA),
        (f"lora_te1_text_model_{TEXT}.alpha", f"te1.{TEXT}", "alpha", names.KOHYA),
        ("lora_te2_text_projection.lora_up.weight", "te2.text_projection", UP, names.KOHYA),
        (
            "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q.lora_up.weight",
            f"unet.{Q}",
            UP,
            names.KOHYA_ORIGINAL,
        ),
        (f"lora_unet_unet_{Q}_lora_down.weight", f"unet.{Q}", DOWN, names.KOHYA_DOUBLED),
        (f"unet.{QD}.lora_A.weight", f"unet.{Q}", DOWN, names.DIFFUSERS),
        (f"unet.{QD}.lora_B.default.weight", f"unet.{Q}", UP, names.DIFFUSERS),
        (f"unet.{QD}.lora_magnitude_vector", f"unet.{Q}", names.PEFT_MAGNITUDE, names.DIFFUSERS),
        (f"text_encoder_2.{TEXTD}.out_proj.lora_A.weight", f"te2.{TEXT}", DOWN, names.DIFFUSERS),
        ("text_encoder.encoder.layers.3.self_attn.out_proj.lora_B.weight", f"te.{TEXT}", UP, names.DIFFUSERS),
        (f"unet.{QD}.lora.down.weight", f"unet.{Q}", DOWN, names.DIFFUSERS_MIDDLE),
        (f"text_encoder.{TEXTD}.out_proj.lora_linear_layer.up.weight", f"te.{TEXT}", UP, names.DIFFUSERS_MIDDLE),
        (f"{PROCESSOR}.to_q_lora.down.weight", f"unet.{Q}", DOWN, names.DIFFUSERS_PROCESSORS),
        (f"unet.{PROCESSOR}.to_q_lora.up.weight", f"unet.{Q}", UP, names.DIFFUSERS_PROCESSORS),
        (f"{PROCESSOR}.to_out_lora.up.weight", f"unet.{Q[:-1]}out_0", UP, names.DIFFUSERS_PROCESSORS),
        (f"text_encoder.{TEXTD}.to_out_lora.up.weight", f"te.{TEXT}", UP, names.DIFFUSERS_PROCESSORS),
        (f"base_model.model.{QD}.lora_A.weight", f"unet.{Q}", DOWN, names.PEFT),
        (f"base_model.model.{TEXTD}.out_proj.lora_A.weight", f"te.{TEXT}", DOWN, names.PEFT),
        (f"{QD}.lora_A.weight", f"unet.{Q}", DOWN, names.PEFT),
        (f"base_model.model.unet.{QD}.lora_A.weight", f"unet.{Q}", DOWN, names.PEFT),
        (f"lycoris_{Q}.lokr_w1", f"unet.{Q}", "lokr_w1", names.LYCORIS),
        (f"lycoris_text_model_{TEXT}.hada_w1_a", f"te.{TEXT}", "hada_w1_a", names.LYCORIS),
        ("diffusion_model.middle_block.1.proj_in.lora_up.weight", "unet.mid_block_attentions_0_proj_in", UP, "ComfyUI"),
        (f"text_encoders.clip_g.transformer.{TEXTD}.out_proj.lora_A.weight", f"te2.{TEXT}", DOWN, names.COMFY),
    ],
)
def test_every_spelling_becomes_one_key(name: str, key: str, suffix: str, spelling: str) -> None:
    """A spelling that is not known would be left out, and half a LoRA is weaker than the user asked for."""
    parsed = names.parse(name)
    assert parsed is not None
    assert (parsed.key, parsed.suffix, parsed.spelling) == (key, suffix, spelling)


@pytest.mark.parametrize(
    "name",
    [
        "lora_unet_.alpha",
        "lora_unet_conv_in.weight",
        "lora_unet_double_blocks_0_img_attn_proj.lora_down.weight",
        "transformer.transformer_blocks.0.attn.to_q.lora_A.weight",
        "lora_unet_output_blocks_3_2_proj_in.alpha",
        "lora_te_text_model_encoder_layers_0_visual.alpha",
        "unet.conv_in.lora_C.weight",
        "unet:0:down",
        "",
        "lora_unet_" + "down_blocks_" * 100 + ".alpha",
    ],
)
def test_what_is_no_layer_of_stable_diffusion_is_not_guessed(name: str) -> None:
    """A guessed layer would make the bank refuse the rest of the file, or worse, take the wrong one."""
    assert names.parse(name) is None


@pytest.mark.parametrize(
    ("key", "kohya_name", "peft_name"),
    [
        ("unet.conv_in", "lora_unet_conv_in", "unet.conv_in"),
        (f"unet.{Q}", f"lora_unet_{Q}", f"unet.{QD}"),
        (f"te.{TEXT}", f"lora_te_text_model_{TEXT}", f"text_encoder.{TEXTD}.out_proj"),
        (f"te1.{TEXT}", f"lora_te1_text_model_{TEXT}", f"text_encoder.{TEXTD}.out_proj"),
        ("te2.text_projection", "lora_te2_text_projection", "text_encoder_2.text_projection"),
    ],
)
def test_names_that_are_written_are_read_back(key: str, kohya_name: str, peft_name: str) -> None:
    """diffusers' names do not tell the first encoder of two from an only one: the rest of a file does."""
    assert (kohya.module_name(key), peft.module_name(key)) == (kohya_name, peft_name)
    again = names.parse(f"{kohya_name}.lora_down.weight")
    assert again is not None
    assert again.key == key
    dotted = names.parse(f"{peft_name}.lora_A.weight")
    assert dotted is not None
    assert dotted.key == key.replace("te1.", "te.")


def test_what_a_format_has_no_name_for_is_an_error() -> None:
    with pytest.raises(ValueError, match="vae"):
        kohya.module_name("vae.conv_in")
    with pytest.raises(ValueError, match="vae"):
        peft.module_name("vae.conv_in")
    with pytest.raises(ValueError, match="no path of a Stable Diffusion UNet"):
        peft.module_name("unet.something_else")


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_every_layer_of_a_family_has_one_name_in_each_spelling(lora_data: Path, family: str) -> None:
    """Against the whole key map of real checkpoints, original names and diffusers': a layer that two names share, or
    that comes back as another, would take the wrong weights."""
    file = lora_data.parent / "configs" / "keymaps" / f"stable_diffusion_{family}.json"
    pairs = json.loads(file.read_text())["ldm_diffusers_keymap"].items()
    unet = {
        (old.removeprefix("model.diffusion_model.").rpartition(".")[0], new.removeprefix("unet_").rpartition(".")[0])
        for old, new in pairs
        if old.startswith("model.diffusion_model.")
    }
    assert len(unet) == {"sd1": 391, "sd2": 391, "sdxl": 1050}[family]
    assert len({new.replace(".", "_") for _, new in unet}) == len(unet), "flat names are unambiguous"
    for old, new in unet:
        flat = new.replace(".", "_")
        assert paths.dotted(flat, text=False) == new
        assert paths.from_original(old.replace(".", "_")) == flat
        for name in (f"lora_unet_{flat}.alpha", f"lora_unet_{old.replace('.', '_')}.alpha", f"unet.{new}.alpha"):
            parsed = names.parse(name)
            assert parsed is not None
            assert parsed.key == f"unet.{flat}"
    text = {new.split("_", 1)[1].removeprefix("text_model.") for _, new in pairs if new.startswith("te")}
    for path in {path.rpartition(".")[0] for path in text if path.startswith("encoder.")}:
        assert paths.dotted(path.replace(".", "_"), text=True) == path


@pytest.mark.parametrize(
    ("shapes", "form"),
    [
        ({DOWN: (4, 320), UP: (640, 4)}, Form("LoRA", 4, (640, 320))),
        ({DOWN: (4, 320, 3, 3), UP: (640, 4, 1, 1)}, Form("LoRA", 4, (640, 320, 3, 3))),
        ({DOWN: (4, 320, 1, 1), UP: (640, 4, 1, 1), MID: (4, 4, 3, 3)}, Form("LoRA", 4, (640, 320, 3, 3))),
        ({DOWN: (4, 320), UP: (640, 4), MAGNITUDE: (640, 1)}, Form("LoRA", 4, (640, 320), has_magnitude=True)),
        ({DOWN: (4, 320), UP: (640, 4), MAGNITUDE: (1, 320)}, Form("LoRA", 4, (640, 320), has_magnitude=True)),
        (
            {"hada_w1_a": (8, 2), "hada_w1_b": (2, 6), "hada_w2_a": (8, 2), "hada_w2_b": (2, 6)},
            Form("LoHa", 2, (8, 6)),
        ),
        ({"lokr_w1": (2, 3), "lokr_w2": (4, 5, 3, 3)}, Form("LoKr", None, (8, 15, 3, 3))),
        ({"lokr_w1": (2, 3), "lokr_w2_a": (4, 7), "lokr_w2_b": (7, 5)}, Form("LoKr", 7, (8, 15))),
        (
            {"lokr_w1": (2, 3), "lokr_w2_a": (7, 4), "lokr_w2_b": (7, 5), "lokr_t2": (7, 7, 3, 3)},
            Form("LoKr", 7, (8, 15, 3, 3)),
        ),
        ({"diff": (8, 6), "diff_b": (8,)}, Form("full", None, (8, 6))),
    ],
)
def test_shapes_tell_the_form(shapes: dict[str, tuple[int, ...]], form: Form) -> None:
    assert form_of(shapes) == form


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({}, "no matrices"),
        ({DOWN: (4, 320)}, "no up matrix"),
        ({UP: (4, 320)}, "no down matrix"),
        ({DOWN: (4, 320), UP: (640, 5)}, "differ in rank"),
        ({DOWN: (4,), UP: (640, 4)}, "not those of a LoRA"),
        ({DOWN: (0, 320), UP: (640, 0)}, "empty"),
        ({DOWN: (4, 320, 3, 3), UP: (640, 4, 1, 1), MID: (4, 4, 3, 3)}, "does not lie between"),
        ({DOWN: (4, 320), UP: (640, 4), "lokr_w1": (2, 2)}, "LoRA and LoKr"),
        ({DOWN: (4, 320), UP: (640, 4), MAGNITUDE: (7, 1)}, "magnitude of 7 x 1"),
        ({"hada_w1_a": (8, 2), "hada_w1_b": (2, 6), "hada_w2_a": (8, 2)}, "no hada_w2_b"),
        ({"hada_w1_a": (8, 2), "hada_w1_b": (2, 6), "hada_w2_a": (8, 2), "hada_w2_b": (2, 7)}, "8 x 6 and 8 x 7"),
        ({"lokr_w1": (2, 3), "lokr_w1_a": (2, 2), "lokr_w2": (2, 2)}, "both whole and as a product"),
        ({"lokr_w1": (2, 3)}, "no lokr_w2"),
        ({"lokr_w1": (2, 3), "lokr_w2_b": (2, 2)}, "no lokr_w2_a"),
        ({"diff": (8,)}, "not one of a linear or convolution"),
        ({"diff_b": (8,)}, "no matrices"),
    ],
)
def test_shapes_that_make_no_layer_are_told(shapes: dict[str, tuple[int, ...]], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        form_of(shapes)


def header_of(shapes: dict[str, tuple[int, ...]], metadata: dict[str, str] | None = None) -> Header:
    return Header(
        Path("a.safetensors"),
        {name: TensorInfo("F32", shape, 0, 0) for name, shape in shapes.items()},
        metadata or {},
        0,
    )


def pair(module: str, width: int = 768, kind: str = "lora_%s.weight") -> dict[str, tuple[int, ...]]:
    return {f"{module}.{kind % 'down'}": (4, width), f"{module}.{kind % 'up'}": (320, 4)}


K = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
DEEP = "lora_unet_mid_block_attentions_0_transformer_blocks_7_attn1_to_q"
TE1 = f"lora_te1_text_model_{TEXT}"
TE2 = f"lora_te2_text_model_{TEXT}"


@pytest.mark.parametrize(
    ("shapes", "metadata", "component"),
    [
        (pair(TE1) | pair(K, 768), {}, "te"),  # diffusers' converter numbers the encoder of SD 1 too
        (pair(TE1) | pair(K, 2048), {}, "te1"),
        (pair(TE1) | pair(TE2), {}, "te1"),
        (pair(TE1) | pair(DEEP, 1280), {}, "te1"),
        (pair(TE1) | pair("lora_unet_conv_in", 4), {"ss_base_model_version": "sdxl_base_v1-0"}, "te1"),
        (pair(TE1) | pair("lora_unet_conv_in", 4), {}, "te"),
        (pair(TE1), {}, "te1"),
        (pair(f"lora_te_text_model_{TEXT}"), {}, "te"),
    ],
)
def test_the_rest_of_a_file_tells_which_text_encoder_the_first_is(
    shapes: dict[str, tuple[int, ...]], metadata: dict[str, str], component: str
) -> None:
    """InvokeAI skips the text encoder of an SD 1 file that calls it te1: read here, it acts."""
    layers = read_names(header_of(shapes, metadata)).layers
    assert {key.split(".")[0] for key in layers if TEXT in key} - {"te2"} == {component}


def test_what_is_left_out_is_named_with_its_reason() -> None:
    """Other tools say it in a console line, or not at all."""
    strangers = {
        "lora_unet_conv_in.w_norm": "normalisation",
        "bundle_emb.mine.something": "embedding",
        "lora_unet_conv_out.oft_blocks": "OFT",
        "lora_unet_conv_out.alpha": "known",
        "lora_unet_something.lora_up.weight": "known",
        f"{K}.lora_up.bias": "bias",
        f"{K}.diff_b": "bias",
        "stranger": "unknown name",
    }
    reading = read_names(header_of(pair(K) | dict.fromkeys(strangers, (1,))))
    assert list(reading.layers) == [f"unet.{K.removeprefix('lora_unet_')}"]
    assert reading.matched == 2
    assert reading.unread.keys() == strangers.keys()
    for name, words in strangers.items():
        assert words in reading.unread[name], name


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (f"{K}.oft_blocks", "OFT or BOFT"),
        (f"{K}.a1.weight", "GLoRA"),
        (f"{K}.on_input", "IA3"),
        (f"{K}.w_norm", "normalisation layers alone"),
        ("unet:0:down", "cloneofsimo"),
        ("emb_params", "textual-inversion"),
        ("bundle_emb.x.string_to_param", "bundle of textual-inversion"),
        ("lllite_unet_x.down.0.weight", "ControlNet-LLLite"),
        ("model.diffusion_model.out.2.weight", "whole checkpoint"),
        ("lora_unet_double_blocks_0_img_attn_proj.lora_down.weight", "diffusion transformer"),
        ("transformer.x.attn.to_q.lora_A.weight", "diffusion transformer"),
        ("diffusion_model.blocks.0.self_attn.q.lora_A.weight", "diffusion transformer"),
        ("base_model.model.h.0.attn.c_attn.lora_A.weight", "no Stable Diffusion"),
        ("down_blocks.0.resnets.0.conv1.weight", "part of a base model"),
        ("something", "none of its 1 tensors has a name that is known, the first is something"),
    ],
)
def test_a_file_of_nothing_that_is_read_is_refused_by_what_it_is(name: str, words: str) -> None:
    with pytest.raises(AdapterFileError, match=words):
        read_names(header_of({name: (4, 4)}))


def test_a_file_for_flux_is_refused_though_its_text_encoder_is_that_of_sd_1() -> None:
    """Its text part alone would act, weakly, and the user would wonder."""
    other = {"lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": (4, 4)}
    with pytest.raises(AdapterFileError, match="diffusion transformer"):
        read_names(header_of(pair(TE1) | other))


def test_two_tensors_of_one_place_are_refused() -> None:
    """Whichever came last would win in silence."""
    with pytest.raises(AdapterFileError, match="ambiguous"):
        read_names(header_of(pair("unet.conv_in", 4) | pair("lora_unet_conv_in", 4)))


def test_pefts_settings_tell_the_scale_and_a_tensor_tells_it_better() -> None:
    """Without them alpha would be taken for the rank: up to 16 times too strong."""
    settings = {
        "unet.lora_alpha": 2,
        "unet.alpha_pattern": {"attentions.0.proj_in": 1, "^mid_block\\.resnets\\.0\\.conv1": 3},
        "unet.use_rslora": True,
        "text_encoder.lora_alpha": 8,
    }
    modules = ["unet.mid_block.attentions.0.proj_in", "unet.mid_block.resnets.0.conv1", "unet.conv_in"]
    shapes = {name: shape for module in modules for name, shape in pair(module, 4).items()}
    shapes |= pair(f"text_encoder.{TEXTD}.out_proj") | {"unet.conv_in.alpha": ()}
    layers = read_names(header_of(shapes, {peft.METADATA_KEY: json.dumps(settings)})).layers
    assert {key: (layer.alpha, layer.rs) for key, layer in layers.items()} == {
        "unet.mid_block_attentions_0_proj_in": (1.0, True),
        "unet.mid_block_resnets_0_conv1": (3.0, True),
        "unet.conv_in": (None, False),
        f"te.{TEXT}": (8.0, False),
    }


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("{", "not JSON"),
        ("[" * 2000, "not JSON"),
        ("3", "not JSON"),
        ('{"unet.lora_alpha": "much"}', "not a number"),
        ('{"unet.lora_alpha": 4, "unet.alpha_pattern": [1]}', "not a table"),
        ('{"unet.lora_alpha": 4, "unet.alpha_pattern": {"(a+)+$": 1}}', "only plain paths"),
        ('{"unet.peft_type": "LOKR"}', "of type LOKR"),
        ('{"unet.lora_bias": true}', "biases"),
        ('{"unet.modules_to_save": ["conv_in"]}', "whole layers"),
    ],
)
def test_settings_that_would_change_the_scale_and_are_not_understood_are_refused(settings: str, words: str) -> None:
    with pytest.raises(AdapterFileError, match=words):
        read_names(header_of(pair("unet.conv_in", 4), {peft.METADATA_KEY: settings}))


def test_unknown_names_are_not_called_anything() -> None:
    assert foreign.describe(["a", "b"]) is None
    assert foreign.describe([]) is None


def test_headers_and_formats_load_no_torch() -> None:
    """The page and the queue read headers; torch would cost them a second and a gigabyte."""
    modules = ("header", "formats.reading", "formats.kohya")
    code = (
        ";".join(f"import diffusion_lora.lora.{name}" for name in modules) + ";import sys;print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
