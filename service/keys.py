"""API keys: random, named, each with its scopes and limits, and kept as SHA-256 digests in one file.

    python -m service.keys add NAME --scopes infer      makes a key, prints it once and keeps its digest
    python -m service.keys list
    python -m service.keys revoke NAME

A key is 256 random bits, so that its plain digest tells nothing of it: there is nothing to guess, and nothing to salt.
A worker reads the file again when it has changed; one that makes no sense leaves the keys as they were.
"""

import argparse
import hashlib
import hmac
import json
import logging
import os
import secrets
import stat
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.errors import SettingError
from service.files import write_whole
from service.quota import Quota
from service.settings import Settings

Scope = Literal["infer", "feedback", "admin"]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
# So that a key is known for one where it was left lying about.
PREFIX = "trueodds_"
# How long a change of the file may stay unseen.
LOOK_AFTER_S = 0.5

logger = logging.getLogger("trueodds")


class ApiKey(BaseModel):
    """What is kept of a key."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    scopes: Annotated[frozenset[Scope], Field(min_length=1)]
    requests_per_second: Annotated[float | None, Field(gt=0, le=1e6)] = None
    burst: Annotated[int | None, Field(gt=0, le=10**6)] = None
    concurrent: Annotated[int | None, Field(gt=0)] = None

    @model_validator(mode="after")
    def _burst_needs_a_rate(self) -> "ApiKey":
        if self.burst and not self.requests_per_second:
            raise ValueError("burst means nothing without requests_per_second")
        return self

    @property
    def quota(self) -> Quota:
        return Quota.of(self.requests_per_second, self.burst, self.concurrent)


class KeyFile(BaseModel):
    """The keys by their names."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    keys: dict[Name, ApiKey] = {}

    @model_validator(mode="after")
    def _no_key_twice(self) -> "KeyFile":
        if len({key.sha256 for key in self.keys.values()}) < len(self.keys):
            raise ValueError("two names have the same key")
        return self

    @classmethod
    def read(cls, path: Path) -> "KeyFile":
        """Of JSON, or TOML by its name. Raises SettingError, which never quotes what stands in the file."""
        try:
            with path.open("rb") as file:
                # Who may write it makes keys.
                if os.fstat(file.fileno()).st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                    raise SettingError(f"{path} may be written by others; chmod go-w it.")
                content = file.read()
            return cls.model_validate(
                tomllib.loads(content.decode()) if path.suffix == ".toml" else json.loads(content)
            )
        except OSError as error:
            raise SettingError(f"the API keys in {path} cannot be read ({error.strerror}).") from error
        except ValidationError as error:
            told = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
            raise SettingError(f"{path} is no file of API keys: {told}") from None
        except ValueError:
            raise SettingError(f"{path} is neither JSON nor, by the name .toml, TOML.") from None

    def write(self, path: Path) -> None:
        """As JSON, whole or not at all, for this user's eyes unless the file was there for others'."""
        document = self.model_dump(mode="json", exclude_none=True)
        for key in document["keys"].values():
            key["scopes"].sort()
        mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o600
        content = json.dumps(document, indent=2) + "\n"
        write_whole(path, content.encode(), mode & ~(stat.S_IWGRP | stat.S_IWOTH))


class KeyRing:
    """The keys of a file as it is now. `generation` grows whenever it has changed: what was known before is not."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises SettingError."""
        self._path = path
        self._clock = clock
        self.generation = 0
        self._seen = self._signature()
        self._keys = KeyFile.read(path).keys
        self._look_at = clock() + LOOK_AFTER_S

    def refresh(self) -> int:
        """Read the file again if it has changed; now and then only, for a look costs a µs. Returns the generation."""
        now = self._clock()
        if now >= self._look_at:
            self._look_at = now + LOOK_AFTER_S
            seen = self._signature()
            if seen != self._seen:
                self._seen = seen
                self._read_again()
        return self.generation

    def find(self, key: bytes) -> tuple[str, ApiKey] | None:
        """The name and entry of a key. Takes as long for a wrong key as for any right one."""
        digest = hashlib.sha256(key).hexdigest()
        found = None
        for name, entry in self._keys.items():
            if hmac.compare_digest(entry.sha256, digest):
                found = name, entry
        return found

    def _read_again(self) -> None:
        try:
            self._keys = KeyFile.read(self._path).keys
        except SettingError as error:
            logger.warning("the API keys stay as they were: %s", error)
        else:
            self.generation += 1

    def _signature(self) -> tuple[int, ...]:
        """Of the file's state, as far as a change shows without reading it."""
        try:
            found = self._path.stat()
        except OSError:
            return ()
        return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


def new_key() -> str:
    return PREFIX + secrets.token_urlsafe(32)


def main(argv: list[str] | None = None) -> int:
    """Returns 1 where it could not be done, having said why."""
    parser = argparse.ArgumentParser(prog="python -m service.keys", description="Make, list and revoke API keys.")
    parser.add_argument("--file", type=Path, help="a JSON file, made if it is not there (default: TRUEODDS_API_KEYS)")
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("add", help="make a key and print it, this once")
    add.add_argument("name", help="letters, digits, '.', '_' and '-'")
    add.add_argument("--scopes", nargs="+", required=True, choices=get_args(Scope))
    add.add_argument("--requests-per-second", type=float)
    add.add_argument("--burst", type=int, help="requests at once (default: one second's)")
    add.add_argument("--concurrent", type=int, help="requests under way at a time")
    commands.add_parser("list", help="names, scopes and limits")
    commands.add_parser("revoke", help="forget a key").add_argument("name")
    arguments = parser.parse_args(argv)
    try:
        return _obey(arguments)
    except (SettingError, OSError) as error:
        print(f"trueodds: {error}", file=sys.stderr)
        return 1


def _obey(arguments: argparse.Namespace) -> int:
    path = arguments.file or Settings.from_environment().api_keys
    if path is None:
        raise SettingError("there is no file to keep keys in; set TRUEODDS_API_KEYS or name one with --file.")
    if path.suffix == ".toml" and arguments.command != "list":
        raise SettingError(f"{path} is TOML, which is written by hand; name a .json file.")
    keys = KeyFile.read(path).keys if path.exists() or arguments.command != "add" else {}
    if arguments.command == "list":
        for name, key in keys.items():
            print(name, ",".join(sorted(key.scopes)), _limits(key), sep="\t")
        return 0
    if (arguments.name in keys) != (arguments.command == "revoke"):
        raise SettingError(f"there is {'already a' if arguments.name in keys else 'no'} key {arguments.name!r}.")
    if arguments.command == "revoke":
        KeyFile(keys={name: key for name, key in keys.items() if name != arguments.name}).write(path)
        return 0
    made = new_key()
    limits = {name: getattr(arguments, name) for name in ("requests_per_second", "burst", "concurrent")}
    entry = {"sha256": hashlib.sha256(made.encode()).hexdigest(), "scopes": arguments.scopes, **limits}
    try:
        added = KeyFile.model_validate({"keys": {**keys, arguments.name: entry}})
    except ValidationError as error:
        raise SettingError("; ".join(each["msg"] for each in error.errors())) from None
    added.write(path)
    print(made)
    return 0


def _limits(key: ApiKey) -> str:
    limits = {"/s": key.requests_per_second, " at once": key.burst, " under way": key.concurrent}
    return ", ".join(f"{number:g}{unit}" for unit, number in limits.items() if number) or "no limits"


if __name__ == "__main__":
    sys.exit(main())
