"""What it costs to ask who may: the open service beside ones with keys and tokens, in one interleaved run. Linux only.

    python -m loadtest.guarded --rounds 8 --seconds 3

Prints, for one connection and for many, each way's rate as a share of the open service's beside it, and the CPU time of
the service for one request. Medians of the rounds.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import jwt
from cryptography.hazmat.primitives.asymmetric import rsa

from loadtest import bodies, contenders, processes, wrk
from loadtest.bodies import Body
from loadtest.contenders import ContenderFailed, Service
from service.keys import ApiKey, KeyFile, new_key

MODEL, CONNECTIONS, OPEN = "digits", (1, 64), "open"
ISSUER, AUDIENCE = "https://id.example/", "trueodds"
LIFETIME_S = 3600
# High enough to let all in.
RATE, CONCURRENT = 100_000, 1000


@dataclass(frozen=True)
class Way:
    """Settings of a service, and what its clients show."""

    settings: dict[str, str]
    authorization: str = ""


@dataclass(frozen=True)
class Sample:
    """Requests answered each second, and the service's CPU time for one, in µs."""

    rate: float
    cpu_us: float


def ways(folder: Path) -> dict[str, Way]:
    """The open one first, for others are compared with it."""
    limits = {"REQUESTS_PER_SECOND": RATE, "BURST": RATE, "CONCURRENT": CONCURRENT}
    limited = {f"TRUEODDS_OIDC_{name}": str(value) for name, value in limits.items()}
    tokens = with_tokens(folder)
    return {
        OPEN: Way({}),
        "key": with_key(folder / "keys.json"),
        "key, limits": with_key(folder / "limited.json", requests_per_second=RATE, burst=RATE, concurrent=CONCURRENT),
        "token": tokens,
        "token, limits": replace(tokens, settings=tokens.settings | limited),
    }


def with_key(file: Path, **limits: int) -> Way:
    key = new_key()
    entry = {"sha256": sha256(key.encode()).hexdigest(), "scopes": ["infer"], **limits}
    KeyFile(keys={"bench": ApiKey.model_validate(entry)}).write(file)
    return Way({"TRUEODDS_API_KEYS": str(file)}, f"Bearer {key}")


def with_tokens(folder: Path) -> Way:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = json.loads(jwt.get_algorithm_by_name("RS256").to_jwk(key.public_key()))
    file = folder / "jwks.json"
    file.write_text(json.dumps({"keys": [public]}))
    oidc = {"ISSUER": ISSUER, "AUDIENCE": AUDIENCE, "JWKS_URL": file.as_uri()}
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "bench", "scope": "infer", "exp": time.time() + LIFETIME_S}
    settings = {f"TRUEODDS_OIDC_{name}": value for name, value in oidc.items()}
    return Way(settings, f"Bearer {jwt.encode(claims, key, 'RS256')}")


def sample(service: Service, body: Body, connections: int, seconds: int) -> Sample:
    """Raises ContenderFailed for errors, WrkFailed."""
    with (
        processes.Watch(service.pids) as watch,
        wrk.Wrk(service.classify_url(MODEL), body, connections, seconds) as run,
    ):
        load = run.load()
    if load.errors:
        raise ContenderFailed(f"{load.errors} of {load.requests} requests met errors")
    return Sample(load.rate, watch.usage.cpu_s / load.requests * 1e6)


def told(name: str, connections: int, own: Iterable[Sample], beside: Iterable[Sample]) -> str:
    pairs = list(zip(own, beside, strict=True))
    rate = statistics.median(each.rate for each, _ in pairs)
    ratio = statistics.median(each.rate / other.rate for each, other in pairs)
    cpu_us = statistics.median(each.cpu_us for each, _ in pairs)
    more_us = statistics.median(each.cpu_us - other.cpu_us for each, other in pairs)
    return f"c={connections:<3} {name:14} {rate:7.0f}/s  {ratio:6.3f}  {cpu_us:6.1f} us of CPU, {more_us:+6.1f}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.guarded", description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=int, default=3, help="of each sample (default: %(default)s)")
    arguments = parser.parse_args(argv)
    try:
        run(arguments.rounds, arguments.seconds)
    except (ContenderFailed, wrk.WrkFailed, OSError) as reason:
        print(f"guarded: {reason}", file=sys.stderr)
        return 1
    return 0


def run(rounds: int, seconds: int) -> None:
    """Raises ContenderFailed, WrkFailed, OSError."""
    with tempfile.TemporaryDirectory(prefix="trueodds-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        body = bodies.single(MODEL, folder)
        services = {}
        for number, (each, way) in enumerate(ways(folder).items()):
            home = folder / str(number)
            home.mkdir()
            service = stack.enter_context(contenders.service(home, settings=way.settings))
            services[each] = service, replace(body, authorization=way.authorization)
            service.check(MODEL, services[each][1])
        for connections in CONNECTIONS:
            samples: dict[str, list[Sample]] = {each: [] for each in services}
            for _ in range(rounds):
                for each, (service, own) in services.items():
                    samples[each].append(sample(service, own, connections, seconds))
            for each, found in samples.items():
                print(told(each, connections, found, samples[OPEN]), flush=True)


if __name__ == "__main__":
    sys.exit(main())
