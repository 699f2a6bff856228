"""Captioners by name: `embedded`, a folder, or a hub id. The name decides the kind; nothing is loaded to find out."""

from __future__ import annotations

import re
from pathlib import Path

from diffusion_lora.caption import model, tagger
from diffusion_lora.caption.captioner import Captioner, Options
from diffusion_lora.errors import BaseModelError, CaptionerError
from diffusion_lora.families.device import pick_device
from diffusion_lora.families.hub import hub_file, is_hub_id

EMBEDDED = "embedded"
KNOWN = f"say {EMBEDDED} (it knows pocket's drawn world only), a folder, or a hub id such as owner/name"
_TAGGER_ID = re.compile(r"(?i)(^|[/_-])wd(-|14|-v1-4-).*tagger|wd14")


def open_captioner(name: str, options: Options | None = None) -> Captioner:
    """Load a captioner. Raises CaptionerError, DeviceError."""
    options = options or Options()
    device = pick_device(options.device)
    if name == EMBEDDED:
        return model.load(Path(__file__).with_name("embedded"), name, options, device)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if (folder / tagger.MODEL).is_file() or (folder / tagger.TAGS).is_file():
            return tagger.load(folder / tagger.MODEL, folder / tagger.TAGS, name, options, device)
        if not (folder / "config.json").is_file():
            raise CaptionerError(
                f"the folder {name} holds no captioner: neither config.json (a model of transformers) "
                f"nor {tagger.MODEL} with {tagger.TAGS} (a tagger)"
            )
        return model.load(folder, name, options, device)
    if not is_hub_id(name) or folder.exists():
        raise CaptionerError(f"there is no captioner {name!r}; {KNOWN}")
    if _TAGGER_ID.search(name):
        try:
            net, tags = (
                hub_file(name, file, options.revision, known=KNOWN, what="tagger")
                for file in (tagger.MODEL, tagger.TAGS)
            )
        except BaseModelError as error:
            raise CaptionerError(str(error)) from error
        return tagger.load(net, tags, name, options, device)
    return model.load(name, name, options, device)
