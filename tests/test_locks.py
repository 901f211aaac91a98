"""requirements/: whatever is installed has one version and known bytes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
REQUIREMENT = re.compile(r"[a-z0-9][a-z0-9.-]*==[^\s;]+( ; [^\\]+)?( --hash=sha256:[0-9a-f]{64})+")


def requirements(lock: Path) -> list[str]:
    """One a line, without comments."""
    joined = lock.read_text().replace("\\\n", " ")
    lines = (re.sub(r"\s+", " ", line.partition("#")[0]).strip() for line in joined.splitlines())
    return list(filter(None, lines))


def names(lock: str) -> set[str]:
    return {line.partition("==")[0] for line in requirements(ROOT / "requirements" / f"{lock}.lock")}


def test_every_lock_is_looked_at() -> None:
    """The Makefile makes a bill of materials of each, and each has an .in file beside it."""
    listed = re.findall(r"^LOCKS := (.*)$", (ROOT / "Makefile").read_text(), re.M)[0].split()
    assert sorted(listed) == sorted(lock.stem for lock in LOCKS)
    assert all(lock.with_suffix(".in").is_file() for lock in LOCKS)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_every_requirement_has_one_version_and_hashes(lock: Path) -> None:
    """No line names anything but a package, `==` a version and SHA-256 digests: no option, path or address either."""
    found = requirements(lock)
    assert found
    for line in found:
        assert REQUIREMENT.fullmatch(line), line


def test_the_lock_of_torch_is_of_what_is_asked_for() -> None:
    """It is written by hand, for torch's CPU build is not where the rest comes from."""
    (asked,) = requirements(ROOT / "requirements" / "torch.in")
    (locked,) = requirements(ROOT / "requirements" / "torch.lock")
    assert locked.partition(" ")[0] == asked


def test_a_server_gets_little() -> None:
    """What signs, trains and tests is no part of what serves; verifying takes three packages."""
    assert names("signing") == {"cryptography", "cffi", "pycparser"}
    assert not (names("serve") | names("serve-gpu")) & {"torch", "model-signing", "sigstore", "bandit", "pytest"}


@pytest.mark.slow
def test_the_bill_of_materials_lists_the_lock(tmp_path: Path) -> None:
    """Each package with its version and digests, in CycloneDX."""
    output = tmp_path / "serve.cdx.json"
    command = ["-W", "ignore::UserWarning", "-m", "cyclonedx_py", "requirements", "requirements/serve.lock"]
    subprocess.run([sys.executable, *command, "--output-file", str(output)], cwd=ROOT, check=True, timeout=120)
    document = json.loads(output.read_text())
    assert document["bomFormat"] == "CycloneDX"
    assert {component["name"] for component in document["components"]} == names("serve")
    assert all(component["version"] for component in document["components"])
    assert all(component["externalReferences"][0]["hashes"] for component in document["components"])
