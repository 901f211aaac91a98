"""The ids of requests that bring none of their own."""

import os
from itertools import count

# So that no two workers ever give the same.
PREFIX, NUMBERS = os.urandom(10).hex(), count()


def new_request_id() -> str:
    """32 hexadecimal digits."""
    return f"{PREFIX}{next(NUMBERS):012x}"
