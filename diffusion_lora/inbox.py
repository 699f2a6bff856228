"""Speaking to a run: a request is a small file in `RUN/inbox/`, taken by the run after its next step.

    stop      save, write the adapter so far, end
    pause     the same, to go on later
    sample    draw the previews now

The answer is an event of that run. Writing is by rename, so that a request is there or not. No torch here.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, get_args

from diffusion_lora.errors import RunError
from diffusion_lora.run import cannot_write

Request = Literal["stop", "pause", "sample"]
REQUESTS: tuple[Request, ...] = get_args(Request)


def ask(run_folder: Path, request: Request) -> None:
    """Leave a request for the process that carries out a run; asking twice is asking once.

    Raises RunError if there is no such run, OutputError.
    """
    if not (run_folder / "config.toml").is_file():
        raise RunError(f"{run_folder} is not a run folder: it has no config.toml")
    inbox = run_folder / "inbox"
    temporary = inbox / f".{request}.{os.getpid()}.tmp"
    try:
        inbox.mkdir(exist_ok=True)
        temporary.touch()
        temporary.replace(inbox / request)
    except OSError as error:
        raise cannot_write(inbox / request, error) from error


def taken(run_folder: Path) -> list[Request]:
    """The requests in a run's inbox, removed from it, in the order of `REQUESTS`. Raises OutputError."""
    found: list[Request] = []
    try:
        names = set(os.listdir(run_folder / "inbox"))  # noqa: PTH208 -- after every step: no objects for an empty folder
        for name in REQUESTS:
            if name in names:
                (run_folder / "inbox" / name).unlink(missing_ok=True)
                found.append(name)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise cannot_write(run_folder / "inbox", error) from error
    return found
