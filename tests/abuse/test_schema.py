"""The OpenAPI document is true: whatever is asked by it, or against it, is answered as it says."""

from collections import Counter
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import CheckContext
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.conftest import Server, fixtures

GENERATION = schemathesis.GenerationMode
CLASSIFY = "/v1/models/{name}/classify"
FEEDBACK, DRIFT = "/v1/feedback", "/v1/models/{name}/drift"
CALIBRATION = "/v1/models/{name}/calibration"
PATHS = ["/v1/models", "/v1/models/{name}", CALIBRATION, CLASSIFY, DRIFT, FEEDBACK, "/livez", "/readyz"]
# Where nothing is given, nothing can be given wrongly.
ASKED = [(path, GENERATION.POSITIVE) for path in PATHS] + [(path, GENERATION.NEGATIVE) for path in (CLASSIFY, FEEDBACK)]

schemathesis.openapi.media_type("image/*", st.sampled_from([body for body, _ in fixtures("digits")[:8]]) | st.binary())
schemathesis.openapi.media_type("application/x-npy", st.binary())


def only_told_to_wait(context: CheckContext, response: schemathesis.Response, case: "schemathesis.Case[Any]") -> None:
    """No 5xx but 503, which says when to come back."""
    assert response.status_code < 500 or (response.status_code == 503 and "retry-after" in response.headers)


CHECKS = [
    only_told_to_wait,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.mark.slow
@pytest.mark.parametrize(("path", "mode"), ASKED, ids=str)
def test_whatever_is_asked_is_answered_as_documented(
    server: Server, path: str, mode: schemathesis.GenerationMode
) -> None:
    """Statuses, media types, headers and bodies are among the documented, as often as not of a model there is."""
    schema = schemathesis.openapi.from_url(f"{server.url}/docs.json")
    (method,) = schema[path]
    statuses: Counter[int] = Counter()

    @settings(
        max_examples={CLASSIFY: 600, FEEDBACK: 100}.get(path, 20),
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(case=schema[path][method].as_strategy(generation_mode=mode), known=st.booleans())
    def ask(case: "schemathesis.Case[Any]", known: bool) -> None:
        if known and "{name}" in path:
            case.path_parameters = {"name": "digits"}
        statuses[case.call_and_validate(checks=CHECKS, timeout=10).status_code] += 1

    ask()
    print(path, dict(statuses))
    # No id that is made up was ever given.
    assert statuses[404 if path == FEEDBACK else 200] or mode is GENERATION.NEGATIVE
    assert path != CLASSIFY or len(statuses) >= 4


def test_every_path_of_the_document_is_asked(server: Server) -> None:
    """A new one is to be added here."""
    assert sorted(httpx.get(f"{server.url}/docs.json").json()["paths"]) == sorted(PATHS)
