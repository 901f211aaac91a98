"""The service in a container, for tests that it passes there as it does as a process of this machine.

`deploy/image.sh abuse` names what they run: the image by KIT_IMAGE, and by KIT_RUN the command line that locks it down.
"""

import json
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

IMAGE = os.environ.get("KIT_IMAGE", "")
RUN = shlex.split(os.environ.get("KIT_RUN", ""))
# What a test keeps for the service lies below this folder.
KEPT = re.compile(rf"{re.escape(tempfile.gettempdir())}/pytest-[^:]*")
STOP_S = 35


@dataclass(frozen=True)
class Container:
    """One that runs, or is to run, in the foreground: its log is the process's output, its status the process's."""

    name: str
    _stopping: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def command(self, port: int, settings: Mapping[str, str]) -> list[str]:
        """Starts it. Files of a test that settings name are where they are outside."""
        kept = {path for value in settings.values() for path in KEPT.findall(value)}
        volumes = [f"--volume={path}:{path}" for path in sorted(kept)]
        variables = [f"--env={name}={value}" for name, value in settings.items()]
        published = ["--rm", f"--name={self.name}", f"--publish=127.0.0.1:{port}:3000"]
        return [*RUN, *published, *volumes, *variables, IMAGE]

    @cached_property
    def pid(self) -> int:
        """Of its first process, as this machine sees it."""
        return int(self.inspected()["State"]["Pid"])

    def inspected(self) -> dict[str, Any]:
        (found,) = json.loads(self._ask("inspect"))
        return dict(found)

    def terminate(self) -> None:
        """Begin to stop it as its users do, who give it the time that it needs."""
        command = [RUN[0], "stop", f"--time={STOP_S}", self.name]
        self._stopping.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))

    def pause(self) -> None:
        self._ask("pause")

    def go_on(self) -> None:
        self._ask("unpause")

    def remove(self) -> None:
        subprocess.run([RUN[0], "rm", "--force", self.name], capture_output=True, check=False)
        for each in self._stopping:
            each.wait(STOP_S)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """One command more in it, as its own user."""
        return subprocess.run(
            [RUN[0], "exec", self.name, *command], capture_output=True, text=True, check=False, timeout=60
        )

    def _ask(self, verb: str) -> str:
        return subprocess.run([RUN[0], verb, self.name], capture_output=True, text=True, check=True, timeout=60).stdout
