"""service.settings: each variable is understood or refused by name, and no worker takes another's cores."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from service import settings
from service.errors import SettingError
from service.settings import Settings, available_cores

PIN = f"digits/1@sha256:{'0' * 64}"
EXAMPLES: dict[str, tuple[str, Any]] = {
    "bundles": ("/srv/bundles", Path("/srv/bundles")),
    "models": ("digits, cifar10,", ("digits", "cifar10")),
    "pinned": (f"digits/1@sha256:{'0' * 64}, cifar10/2.1@sha256:{'a' * 64}", (PIN, f"cifar10/2.1@sha256:{'a' * 64}")),
    "signed_by": ("/etc/trueodds/public.pem", Path("/etc/trueodds/public.pem")),
    "backend": ("torchscript", "torchscript"),
    "device": ("cuda", "cuda"),
    "variant": ("int8", "int8"),
    "winograd": ("false", False),
    "workers": ("3", 3),
    "threads": ("4", 4),
    "max_batch_size": ("8", 8),
    "max_queue_size": ("9", 9),
    "interactive_share": ("0.5", 0.5),
    "max_wait_ms": ("250", 250),
    "max_body_bytes": ("1000", 1000),
    "max_pixels": ("4096", 4096),
    "max_images": ("5", 5),
    "max_explained": ("0", 0),
    "formats": ("png, tiff", ("png", "tiff")),
    "max_queue_bytes": ("1000000", 1_000_000),
    "header_timeout_s": ("3", 3),
    "body_timeout_s": ("7", 7),
    "keep_alive_s": ("60", 60),
    "drain_s": ("2.5", 2.5),
    "compiled": ("/var/cache/trueodds", Path("/var/cache/trueodds")),
    "cache_bytes": ("4096", 4096),
    "access_log_sample": ("0.5", 0.5),
    "feedback": ("off", "off"),
    "feedback_remembers": ("1000", 1000),
    "feedback_max": ("10", 10),
    "api_keys": ("/etc/trueodds/keys.json", Path("/etc/trueodds/keys.json")),
    "metrics_access": ("admin", "admin"),
    "docs_access": ("closed", "closed"),
    "admin_port": ("3001", 3001),
    "admin_host": ("0.0.0.0", "0.0.0.0"),
    "start_s": ("600", 600),
    "oidc_issuer": ("https://id.example", "https://id.example"),
    "tls_cert": ("/etc/trueodds/cert.pem", Path("/etc/trueodds/cert.pem")),
    "tls_key": ("/etc/trueodds/key.pem", Path("/etc/trueodds/key.pem")),
    "tls_client_ca": ("/etc/trueodds/clients.pem", Path("/etc/trueodds/clients.pem")),
    "oidc_audience": ("trueodds", "trueodds"),
    "oidc_jwks_url": ("file:///etc/trueodds/jwks.json", "file:///etc/trueodds/jwks.json"),
    "oidc_requests_per_second": ("2.5", 2.5),
    "oidc_burst": ("10", 10),
    "oidc_concurrent": ("3", 3),
}


def test_every_field_has_an_example() -> None:
    """The table above leaves out no setting."""
    assert EXAMPLES.keys() == Settings.model_fields.keys()


@pytest.mark.parametrize("field", EXAMPLES)
def test_each_field_is_set_by_its_variable_alone(field: str) -> None:
    """TRUEODDS_<NAME> sets the field and leaves the others at their defaults."""
    text, value = EXAMPLES[field]
    given = Settings.from_environment({"TRUEODDS_" + field.upper(): text})
    assert getattr(given, field) == value
    assert getattr(Settings(), field) != value
    assert given.model_copy(update={field: getattr(Settings(), field)}) == Settings()


def test_other_peoples_variables_are_left_alone() -> None:
    """Without our variables the defaults hold."""
    assert Settings.from_environment({"PATH": "/bin", "BENTOML_HOME": "x", "MAX_IMAGES": "1"}) == Settings()


def test_the_environment_of_the_process_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an argument the settings come from os.environ as it is at the call."""
    monkeypatch.setenv("TRUEODDS_MAX_IMAGES", "17")
    assert Settings.from_environment().max_images == 17


@pytest.mark.parametrize("name", ["TRUEODDS_BATCH_SIZE", "TRUEODDS_", "TRUEODDS_WORKERS_", "TRUEODDS_PREFIX"])
def test_a_variable_nobody_reads_is_an_error(name: str) -> None:
    """A misspelt variable is named, and so are those there are."""
    with pytest.raises(SettingError, match=f"^{name} is not a setting") as refusal:
        Settings.from_environment({name: "1"})
    assert all("TRUEODDS_" + field.upper() in str(refusal.value) for field in Settings.model_fields)


@pytest.mark.parametrize(
    ("field", "text"),
    [
        *((field, text) for field in ("max_queue_size", "max_queue_bytes", "max_wait_ms") for text in ("0", "-1", "x")),
        *((field, text) for field in ("max_batch_size", "cache_bytes") for text in ("-1", "1.5", "x")),
        *(("feedback_remembers", text) for text in ("-1", "1.5", "x", "1e9")),
        *(("feedback_max", text) for text in ("0", "-1", "x")),
        *((field, text) for field in ("max_body_bytes", "max_pixels", "max_images") for text in ("0", "", "1.5")),
        *((field, text) for field in ("workers", "threads") for text in ("-1", "auto", "1e3")),
        *((field, "0") for field in ("header_timeout_s", "body_timeout_s", "keep_alive_s", "start_s")),
        *(("admin_port", text) for text in ("-1", "65536", "x")),
        *(("drain_s", text) for text in ("-1", "21", "nan", "inf")),
        *(
            (field, text)
            for field in ("access_log_sample", "interactive_share")
            for text in ("-0.1", "1.1", "nan", "x")
        ),
        *(("pinned", text) for text in ("digits", "digits/1", PIN[:-1], PIN.upper(), "../x/1" + PIN[8:])),
        *(("formats", text) for text in ("", "svg", "PNG")),
        ("metrics_access", "secret"),
        ("docs_access", ""),
        ("backend", "tensorflow"),
        ("device", "gpu"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(field: str, text: str) -> None:
    """The variable and its value are named."""
    name = "TRUEODDS_" + field.upper()
    with pytest.raises(SettingError, match=f"^{name}={text!r}: "):
        Settings.from_environment({name: text})


def test_all_mistakes_are_told_at_once() -> None:
    """Nobody has to restart once per mistake."""
    with pytest.raises(SettingError) as refusal:
        Settings.from_environment({"TRUEODDS_DEVICE": "gpu", "TRUEODDS_WORKERS": "x", "TRUEODDS_PORT": "1"})
    assert all(name in str(refusal.value) for name in ("TRUEODDS_DEVICE=", "TRUEODDS_WORKERS=", "TRUEODDS_PORT is not"))


def test_where_labels_are_kept_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the user's folder for what outlasts a restart; beside temporary files for one without a home."""
    monkeypatch.setenv("XDG_STATE_HOME", "/var/lib/a b")
    assert Settings().feedback == "sqlite:///var/lib/a%20b/trueodds/feedback.sqlite3"
    monkeypatch.setenv("XDG_STATE_HOME", "")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert Settings().feedback == "sqlite:///home/somebody/.local/state/trueodds/feedback.sqlite3"
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert re.search(r"/state-\d+/trueodds/feedback\.sqlite3$", Settings().feedback)


def test_the_address_of_labels_is_not_shown() -> None:
    """It may hold a password."""
    given = Settings.from_environment({"TRUEODDS_FEEDBACK": "postgresql://u:s3cret@h/d"})
    assert "s3cret" not in repr(given) + str(given)


def test_settings_do_not_change() -> None:
    """They are read once and then hold."""
    with pytest.raises(ValidationError, match="frozen"):
        Settings().workers = 3


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "400000 100000\n"}, 4),
        ({"cpu.max": "350000 100000\n"}, 3),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "1600000 100000\n"}, 8),
        ({"cpu.max": "25000 10000\n"}, 2),
        ({"cpu.max": ""}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "20000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu/cpu.cfs_quota_us": "200000\n"}, 8),
        ({"cpu.max": "300000 100000\n", "cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 3),
    ],
)
def test_a_control_groups_quota_bounds_the_cores(
    files: dict[str, str], cores: int, tmp_path: Path, eight_cores: None
) -> None:
    """Version 2's cpu.max or version 1's cfs quota, rounded down, at least one, at most the affinity mask."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_cores(tmp_path) == cores


def test_the_machine_has_a_core() -> None:
    """The real files of this machine are understood."""
    assert 1 <= available_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize("cores", [1, 2, 3, 4, 6, 8, 64])
def test_workers_and_threads_together_fill_the_cores_and_no_more(cores: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker a core unless told; threads share what is left, so only workers beyond the cores exceed them."""
    monkeypatch.setattr(settings, "available_cores", lambda: cores)
    assert (Settings().worker_count, Settings().thread_count) == (cores, 1)
    for workers in range(1, 2 * cores + 1):
        given = Settings(workers=workers)
        assert given.worker_count == workers
        assert given.thread_count >= 1
        assert workers * given.thread_count <= max(cores, workers)
        assert workers * (given.thread_count + 1) > cores
    assert Settings(workers=1).thread_count == cores
    assert Settings(threads=5).thread_count == 5
