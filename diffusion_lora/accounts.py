"""Who may use a page that other machines reach: names and argon2id hashes of their passwords, in one JSON file.

    {"users": {"ann": "$argon2id$v=19$..."}}

The file is mode 0600 and holds no password. Checking one takes some 50 ms on purpose; what was right is remembered for
the life of the process, by a keyed hash, until the file changes. Who is asked, and how often, is the page's. No torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from diffusion_lora.errors import ServiceError
from diffusion_lora.run import cannot_write

if TYPE_CHECKING:
    from argon2 import PasswordHasher

FILE = "users.json"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")
_SHORTEST = 8
_MAX_BYTES = 1 << 20


class Accounts:
    """The accounts in a file, read again when it changes. May be used from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._key = secrets.token_bytes(16)
        self._known: dict[bytes, str] = {}
        self._seen: tuple[int, int] = (0, 0)
        self._users: dict[str, str] = {}
        self._lock = threading.Lock()
        # What an unknown name is checked against: an answer that comes sooner would tell which names there are.
        self._decoy = _hasher().hash(secrets.token_hex())

    def check(self, name: str, password: str) -> bool:
        """Whether this is a user's name and password. Raises ServiceError when the file cannot be read."""
        with self._lock:
            stat = self._stat()
            if stat != self._seen:
                self._users, self._seen = read_users(self.path), stat
                self._known.clear()
            users = self._users
        mark = hashlib.blake2b(f"{name}\0{password}".encode(), key=self._key, digest_size=32).digest()
        if self._known.get(mark) == name and name in users:
            return True
        if not _is_right(users.get(name, self._decoy), password) or name not in users:
            return False
        self._known[mark] = name
        return True

    def _stat(self) -> tuple[int, int]:
        try:
            stat = self.path.stat()
        except OSError:
            return (0, -1)
        return stat.st_mtime_ns, stat.st_size


def read_users(path: Path) -> dict[str, str]:
    """The hashes by name. Raises ServiceError for a file that is not there, or is none of ours."""
    try:
        with path.open("rb") as file:
            users = json.loads(file.read(_MAX_BYTES))["users"]
        if not isinstance(users, dict) or not all(_is_entry(name, text) for name, text in users.items()):
            raise ValueError("users is no table of names and argon2 hashes")
    except FileNotFoundError:
        raise ServiceError(f"there is no {path}: make it with `diffusion-lora users add NAME --auth {path}`") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ServiceError(f"{path} cannot be read as accounts ({error}): make it anew with `users add`") from None
    return users


def add_user(path: Path, name: str, password: str) -> bool:
    """Note a user, or another password for one; whether the name is new. Raises ServiceError, OutputError."""
    if not _NAME.fullmatch(name) or name.endswith("."):
        raise ServiceError(f"the name {name!r} is none for a user: letters, digits, - _ and . are, up to 40 of them")
    if len(password) < _SHORTEST:
        raise ServiceError(f"the password has {len(password)} characters: give {_SHORTEST} or more")
    users = read_users(path) if path.exists() else {}
    taken = next((other for other in users if other.lower() == name.lower() and other != name), None)
    if taken is not None:
        raise ServiceError(f"there is a user {taken} already, whose name differs in its case alone: choose another")
    _write(path, {**users, name: _hasher().hash(password)})
    return name not in users


def remove_user(path: Path, name: str) -> None:
    """Forget a user; what is theirs stays. Raises ServiceError, OutputError."""
    users = read_users(path)
    if name not in users:
        raise ServiceError(f"there is no user {name!r} in {path}; there are: {', '.join(users) or 'none'}")
    _write(path, {other: text for other, text in users.items() if other != name})


def _write(path: Path, users: dict[str, str]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump({"users": users}, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def _is_entry(name: object, text: object) -> bool:
    return isinstance(name, str) and isinstance(text, str) and text.startswith("$argon2id$")


def _is_right(text: str, password: str) -> bool:
    from argon2.exceptions import Argon2Error, InvalidHashError

    try:
        return _hasher().verify(text, password)
    except (Argon2Error, InvalidHashError):
        return False


def _hasher() -> PasswordHasher:
    from argon2 import PasswordHasher

    return PasswordHasher()
