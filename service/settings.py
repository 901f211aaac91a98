"""The settings, each from one environment variable; the only reader of the environment."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from service.backends import Device
from service.documents import Pin, Precision
from service.errors import SettingError
from service.protocol import Deadlines
from service.tls import Tls, chosen
from service.trust import Trust

PREFIX = "TRUEODDS_"
BUNDLES = Path(__file__).parent.parent / "models" / "bundles"


def _comma_separated(value: object) -> object:
    return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value


Positive = Annotated[int, Field(gt=0)]
Access = Literal["open", "admin", "closed"]
Port = Annotated[int, Field(ge=0, le=65535)]
Share = Annotated[float, Field(ge=0, le=1)]
ImageFormat = Literal["jpeg", "png", "gif", "webp", "bmp", "tiff", "avif"]


class Settings(BaseModel):
    """Every field is set by TRUEODDS_<NAME>; docs/settings.md tells people about each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bundles: Path = BUNDLES
    models: Annotated[tuple[str, ...], BeforeValidator(_comma_separated)] = ()
    pinned: Annotated[tuple[Pin, ...], BeforeValidator(_comma_separated)] = ()
    signed_by: Path | None = None
    variant: Precision = "float32"
    backend: Literal["onnx", "torchscript"] = "onnx"
    device: Device = "auto"
    winograd: bool = True
    workers: Annotated[int, Field(ge=0)] = 0
    threads: Annotated[int, Field(ge=0)] = 0
    # 0: as measured on this machine, see service.tuning.
    max_batch_size: Annotated[int, Field(ge=0)] = 0
    max_queue_size: Positive = 1024
    max_queue_bytes: Positive = 256 * 1024 * 1024
    interactive_share: Share = 0.25
    max_wait_ms: Positive = 10_000
    max_body_bytes: Positive = 10 * 1024 * 1024
    max_pixels: Positive = 25_000_000
    max_images: Positive = 256
    # Of one request; 0: none.
    max_explained: Annotated[int, Field(ge=0)] = 4
    formats: Annotated[tuple[ImageFormat, ...], BeforeValidator(_comma_separated), Field(min_length=1)] = (
        "png",
        "jpeg",
        "gif",
        "webp",
        "bmp",
    )
    header_timeout_s: Positive = 10
    body_timeout_s: Positive = 30
    keep_alive_s: Positive = 75
    drain_s: Annotated[float, Field(ge=0, le=20)] = 1.0
    start_s: Positive = 120
    cache_bytes: Annotated[int, Field(ge=0)] = 0
    compiled: Path = Field(default_factory=lambda: _cache_home() / "trueodds")
    access_log_sample: Share = 0.01
    # A URL, which may hold a password.
    feedback: str = Field(default_factory=lambda: f"sqlite://{_feedback_path()}", repr=False)
    feedback_remembers: Annotated[int, Field(ge=0, le=10**8)] = 65_536
    feedback_max: Positive = 1_000_000
    api_keys: Path | None = None
    metrics_access: Access = "open"
    docs_access: Access = "open"
    # Of the socket that service.__main__ opens; 0: none.
    admin_port: Port = 0
    admin_host: str = "127.0.0.1"
    oidc_issuer: str | None = None
    oidc_audience: str | None = None
    oidc_jwks_url: str | None = None
    oidc_requests_per_second: Annotated[float, Field(ge=0, le=1e6)] = 0.0
    oidc_burst: Annotated[int, Field(ge=0, le=10**6)] = 0
    oidc_concurrent: Annotated[int, Field(ge=0)] = 0
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """Raises SettingError for a variable that is unknown or makes no sense."""
        given = {
            key.removeprefix(PREFIX).lower(): value for key, value in environment.items() if key.startswith(PREFIX)
        }
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise SettingError("; ".join(map(_complaint, error.errors()))) from error

    @property
    def trust(self) -> Trust:
        return Trust(self.pinned, self.signed_by)

    @property
    def tls(self) -> Tls | None:
        """Raises SettingError."""
        return chosen(self.tls_cert, self.tls_key, self.tls_client_ca)

    @property
    def deadlines(self) -> Deadlines:
        return Deadlines(self.header_timeout_s, self.body_timeout_s, self.keep_alive_s)

    @property
    def worker_count(self) -> int:
        """Processes: as set, else one for each core this process may use."""
        return self.workers or available_cores()

    @property
    def thread_count(self) -> int:
        """Threads within one inference: as set, else so that all workers together fill the cores and no more."""
        return self.threads or max(1, available_cores() // self.worker_count)


def _cache_home() -> Path:
    """As the XDG Base Directory Specification has it; beside other temporary files for a user without a home."""
    return _home("XDG_CACHE_HOME", "~/.cache", "cache")


def _feedback_path() -> str:
    """The same specification's folder for what should outlast a restart, as in a URL."""
    path = _home("XDG_STATE_HOME", "~/.local/state", "state") / "trueodds" / "feedback.sqlite3"
    return path.as_uri().removeprefix("file://")


def _home(variable: str, usual: str, kind: str) -> Path:
    home = Path(os.environ.get(variable) or os.path.expanduser(usual))  # noqa: PTH111  must not raise
    return home if home.is_absolute() else Path(tempfile.gettempdir()) / f"{kind}-{os.geteuid()}"


def available_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores this process may really use: its affinity mask and its control group's quota, at least one."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, int(_quota(cgroup) or allowed)))


def _quota(cgroup: Path) -> float | None:
    """CPUs granted by cgroup v2's cpu.max or v1's cfs quota; None for no limit."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    return None if quota in ("max", "-1") else int(quota) / int(period)


def _complaint(error: object) -> str:
    assert isinstance(error, dict)
    name = PREFIX + str(error["loc"][0]).upper()
    if error["type"] == "extra_forbidden":
        known = ", ".join(PREFIX + field.upper() for field in Settings.model_fields)
        return f"{name} is not a setting; the settings are {known}"
    return f"{name}={error['input']!r}: {error['msg']}"
