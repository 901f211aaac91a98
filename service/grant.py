"""What a credential allows, and the refusal of one that allows nothing."""

from dataclasses import dataclass

from service.errors import Unauthorised
from service.quota import Meter
from service.subjects import SubjectMeter


@dataclass(frozen=True)
class Grant:
    """Holds as long as the keys are of this generation; until `expires`, in Unix seconds."""

    scopes: frozenset[str]
    expires: float = float("inf")
    generation: int = 0
    meter: Meter | SubjectMeter | None = None


def invalid_token(detail: str) -> Unauthorised:
    """As RFC 6750, section 3.1, has it."""
    return Unauthorised(detail, b'Bearer realm="trueodds", error="invalid_token"')
