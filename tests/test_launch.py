"""service.launch: what would keep the service from starting is found in a process of its own, which tells of it."""

import select
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PROGRAM = """
import os, signal, sys, time
from service import launch
from service.errors import StartupError

def refuse(): raise StartupError("there are no models.")
def crash(): raise ZeroDivisionError
def die(): os.kill(os.getpid(), signal.SIGKILL)
def hoard():
    global kept
    kept = bytearray(os.urandom(1 << 20) * 64)
def outlive():
    print(os.getpid(), flush=True)
    time.sleep(60)

print(launch.apart({check}))
print("kept" in globals())
"""


def ended(check: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROGRAM.format(check=check)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_what_it_takes_is_gone_with_it() -> None:
    """Nothing is wrong, and none of its memory stays."""
    found = ended("hoard")
    assert (found.returncode, found.stdout.split(), found.stderr) == (0, ["True", "False"], "")


def test_what_is_wrong_is_said_once() -> None:
    """In one line."""
    found = ended("refuse")
    assert (found.stdout.split(), found.stderr) == (["False", "False"], "trueodds: there are no models.\n")


def test_a_mistake_of_ours_is_told_whole() -> None:
    """With a traceback, and nothing starts."""
    found = ended("crash")
    assert found.stdout.split() == ["False", "False"]
    assert found.stderr.endswith("ZeroDivisionError\n")


def test_one_that_is_killed_takes_its_parent_along() -> None:
    """By the same signal, of which the supervisor tells."""
    found = ended("die")
    assert (found.returncode, found.stdout) == (-9, "")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems let it end by itself")
def test_it_does_not_outlive_its_parent() -> None:
    """Killed, the parent cannot end it."""
    command = [sys.executable, "-c", PROGRAM.format(check="outlive")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        assert int(parent.stdout.readline())
        parent.kill()
        # The child has the other end too, and would for a minute.
        readable, _, _ = select.select([parent.stdout], [], [], 20)
        assert readable
        assert parent.stdout.read() == ""
