"""What only a container has: its walls, and the faults of whoever runs it. See tests.container for how it is started.

The other tests marked `container` run against it too.
"""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from export.sign import main as sign
from service.settings import BUNDLES
from tests import container
from tests.abuse.test_faults import IMAGE, TWO, alive, ask, children, outlast, seconds_until, settled
from tests.conftest import Server, fixtures, free_port, serving
from tests.container import Container
from tests.test_signing import write_keys
from tests.test_tokens import RSA, opened, signed

WRITING = """
import sys
for path in sys.argv[1:]:
    try:
        open(path, "w").close()
        print(path)
    except OSError:
        pass
"""

pytestmark = [
    pytest.mark.container,
    pytest.mark.slow,
    pytest.mark.skipif(not container.IMAGE, reason="there is no image: make image-abuse"),
]


@pytest.fixture(scope="module")
def boxed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Container]]:
    with serving(tmp_path_factory.mktemp("boxed"), TWO) as running:
        assert running.container
        yield running, running.container


def status_of(pid: int) -> dict[str, str]:
    """What the kernel tells of a process."""
    return dict(re.findall(r"^(\w+):\s*(.*)$", Path(f"/proc/{pid}/status").read_text(), re.M))


def test_every_process_is_locked_down(boxed: tuple[Server, Container]) -> None:
    """No root, no capability in any set, no way to new ones, system calls filtered; little memory and few processes."""
    server, inside = boxed
    for pid in (server.pid, *settled(server, 2)):
        status = status_of(pid)
        assert "0" not in status["Uid"].split() + status["Gid"].split()
        sets = {name: int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
        assert set(sets.values()) == {0}, sets
        assert status["NoNewPrivs"] == "1"
    found = inside.inspected()
    assert found["HostConfig"]["Memory"] == 1 << 30
    assert 0 < found["HostConfig"]["PidsLimit"] <= 256
    assert found["HostConfig"]["ReadonlyRootfs"]


def test_nothing_can_be_written_but_temporary_files(boxed: tuple[Server, Container]) -> None:
    """Neither the code nor the models nor anything else of the image."""
    _, inside = boxed
    places = ["/srv/trueodds/service/x", "/srv/trueodds/models/bundles/x", "/opt/venv/x", "/etc/x", "/x", "/var/tmp/x"]
    assert inside.run("python", "-c", WRITING, *places, "/tmp/x").stdout == "/tmp/x\n"
    mounts = inside.run("python", "-c", "print(open('/proc/mounts').read())").stdout
    assert re.search(r"^\S+ / \S+ ro[, ]", mounts, re.M)
    assert re.search(r"^tmpfs /tmp tmpfs \S*nosuid,nodev", mounts, re.M)


def test_a_worker_killed_from_within_is_replaced(boxed: tuple[Server, Container]) -> None:
    """By process 1, which the supervisor is there."""
    server, inside = boxed
    before = settled(server, 2)
    victim = status_of(before[0])["NSpid"].split()[-1]
    assert inside.run("sh", "-c", f"kill -9 {victim}").returncode == 0
    seconds_until(lambda: not alive(before[0]), 2)
    after = settled(server, 2)
    assert len(set(before) & set(after)) == 1
    assert status_of(server.pid)["NSpid"].split()[-1] == "1"


def test_orphans_of_a_container_are_reaped(boxed: tuple[Server, Container]) -> None:
    """What process 1 inherits does not stay behind as a zombie."""
    server, inside = boxed
    assert inside.run("sh", "-c", "(sleep 0.3 &) ; exit 0").returncode == 0
    time.sleep(2)
    listed = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    assert len(listed) == len(children(server.pid)) == 2


def test_a_frozen_container_loses_no_worker(boxed: tuple[Server, Container]) -> None:
    """Frozen for 8 s, longer than a worker may stand still."""
    server, inside = boxed
    before = settled(server, 2)
    try:
        inside.pause()
    except subprocess.CalledProcessError as error:
        pytest.skip(f"containers cannot be frozen here: {error.stderr.strip()[-100:]}")
    time.sleep(8)
    inside.go_on()
    time.sleep(2)
    assert children(server.pid) == before
    assert ask(server) == 200


def test_a_full_tmp_is_outlasted(boxed: tuple[Server, Container], capsys: pytest.CaptureFixture[str]) -> None:
    """It is bounded, so it is full before the memory is; then as on any full disk."""
    server, _ = boxed
    tmp = Path(f"/proc/{server.pid}/root") / "tmp"
    room = os.statvfs(tmp)
    assert room.f_blocks * room.f_frsize <= 256 * 1024 * 1024
    outlast(server, tmp, capsys)


def test_tokens_are_known(tmp_path: Path) -> None:
    """The image has what an identity provider's tokens take."""
    with serving(tmp_path / "home", opened(tmp_path, {"TRUEODDS_WORKERS": "1"})) as running:

        def status(token: str) -> int:
            headers = {"content-type": "image/png", "authorization": f"Bearer {token}"}
            return httpx.post(f"{running.url}/v1/models/digits/classify", content=IMAGE, headers=headers).status_code

        assert [status(signed()), status(signed(scope="feedback")), status("x.y.z")] == [200, 403, 401]
        assert status(signed(ec.generate_private_key(ec.SECP256R1()), "ES256")) == 401
    assert RSA.key_size == 2048


def test_signed_bundles_are_served_and_others_are_not(tmp_path: Path) -> None:
    """The image has what signatures take: its own bundles are not signed, so they do not start."""
    key, public = write_keys(tmp_path / "keys", ec.generate_private_key(ec.SECP256R1()))
    public.chmod(0o644)
    shutil.copytree(BUNDLES / "digits", tmp_path / "bundles" / "digits")
    (directory,) = (tmp_path / "bundles" / "digits").iterdir()
    assert sign([str(directory), "--key", str(key)]) == 0
    settings = {"TRUEODDS_SIGNED_BY": str(public), "TRUEODDS_BUNDLES": str(tmp_path / "bundles"), **TWO}
    with serving(tmp_path / "home", settings) as running:
        image, label = fixtures("digits")[0]
        assert running.post("digits", image).json()["predictions"][0]["label"] == label
    unsigned = Container(f"trueodds-kit-{free_port()}").command(free_port(), {"TRUEODDS_SIGNED_BY": str(public)})
    ended = subprocess.run(unsigned, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "is not signed" in ended.stderr
