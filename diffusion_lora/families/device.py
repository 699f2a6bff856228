"""Which device a name means, checked before anything is loaded."""

import torch

from diffusion_lora.errors import DeviceError

NAMES = "auto, cpu, cuda, cuda:N or mps"


def pick_device(name: str = "auto") -> torch.device:
    """`auto` is CUDA where there is one, else the CPU. mps runs on request only: it is not measured.

    Raises DeviceError for a name that is none, or a device that this machine or this torch lacks.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (":" in name and not (kind == "cuda" and index.isdecimal())):
        raise DeviceError(f"the device {name!r} is unknown; say {NAMES}")
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise DeviceError(
                f"the device {name} was asked for, but torch {torch.__version__} sees no CUDA; say --device cpu"
            )
        if index and int(index) >= torch.cuda.device_count():
            raise DeviceError(
                f"the device {name} was asked for, but there are only {torch.cuda.device_count()}, counted from 0"
            )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise DeviceError("the device mps was asked for, but this is no Mac with Metal, or torch was built without it")
    return torch.device(name)
