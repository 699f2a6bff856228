"""The `users` commands: who may log in to a page that other machines reach. Thin, as `cli` is."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from diffusion_lora.errors import ServiceError

PASSWORD = "DIFFUSION_LORA_PASSWORD"

app = typer.Typer(help="Who may log in to a page that other machines reach.", no_args_is_help=True)

_Name = Annotated[str, typer.Argument(metavar="NAME", help="Letters, digits, - _ and .")]
_Auth = Annotated[
    Path | None,
    typer.Option("--auth", metavar="FILE", help="The file of `ui --auth`; by default users.json in the workspace."),
]


@app.command()
def add(name: _Name, auth: _Auth = None) -> None:
    """Add a user, or give one another password. It is asked for, or read from $DIFFUSION_LORA_PASSWORD."""
    from diffusion_lora.accounts import add_user

    path = _file(auth)
    new = add_user(path, name, _password(name))
    print(f"{name} {'is added' if new else 'has another password'}: {path}")


@app.command("list")
def list_users(auth: _Auth = None) -> None:
    """The users there are."""
    from diffusion_lora.accounts import read_users

    for name in read_users(_file(auth)):
        print(name)


@app.command()
def remove(name: _Name, auth: _Auth = None) -> None:
    """Let a user in no longer; their pictures and runs stay."""
    from diffusion_lora.accounts import remove_user

    remove_user(_file(auth), name)
    print(f"{name} is removed")


def _file(auth: Path | None) -> Path:
    from diffusion_lora.accounts import FILE
    from diffusion_lora.workspace import Workspace

    return auth or Workspace.at().root / FILE


def _password(name: str) -> str:
    given = os.environ.get(PASSWORD)
    if not given and sys.stdin.isatty():
        given = typer.prompt(f"password for {name}", hide_input=True, confirmation_prompt=True)
    if not given:
        raise ServiceError(f"{name} needs a password: put it into the variable {PASSWORD}")
    return str(given)
