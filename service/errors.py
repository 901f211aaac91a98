"""Everything that can go wrong with a request, each as the RFC 9457 problem it is answered with.

    Problem
    ├── UndecodableImage      400
    ├── MalformedRequest      400
    ├── Unauthorised          401
    ├── Forbidden             403
    ├── UnknownModel          404
    ├── UnknownPath           404
    ├── UnknownAnswer         404
    ├── MethodNotAllowed      405
    ├── NotAcceptable         406
    ├── BodyTimeout           408
    ├── OtherLabel            409
    ├── BodyTooLarge          413
    ├── ImageTooLarge         413
    ├── UnsupportedImage      415
    ├── UnsupportedMediaType  415
    ├── BadParameter          422
    ├── TooManyRequests       429, with Retry-After
    ├── Overloaded            503, with Retry-After
    │   ├── NotReady          503, with Retry-After
    │   └── FeedbackUnavailable  503, with Retry-After
    └── InternalError         500

Whoever starts the service may meet

    StartupError
    ├── BundleError   a bundle that must not be served
    ├── BackendError  a runtime or device that is not there
    └── SettingError  an environment variable that makes no sense
"""


class Problem(Exception):
    """Answered as `application/problem+json`. `detail` names the problem and the remedy, for the client's eyes."""

    status = 500
    slug = "internal-error"
    title = "Internal error"

    def __init__(self, detail: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.headers = headers

    def document(self, request_id: str) -> dict[str, str | int]:
        """The members of RFC 9457, section 3.1, and the request's id."""
        return {
            "type": f"urn:trueodds:problem:{self.slug}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "request_id": request_id,
        }


class UndecodableImage(Problem):
    status, slug, title = 400, "undecodable-image", "Undecodable image"


class MalformedRequest(Problem):
    status, slug, title = 400, "malformed-request", "Malformed request"


class Unauthorised(Problem):
    status, slug, title = 401, "unauthorised", "Unauthorised"

    def __init__(self, detail: str, challenge: bytes = b'Bearer realm="trueodds"') -> None:
        super().__init__(detail, ((b"www-authenticate", challenge), (b"cache-control", b"no-store")))


class Forbidden(Problem):
    status, slug, title = 403, "forbidden", "Forbidden"


class UnknownModel(Problem):
    status, slug, title = 404, "unknown-model", "Unknown model"


class UnknownPath(Problem):
    status, slug, title = 404, "unknown-path", "Unknown path"


class UnknownAnswer(Problem):
    status, slug, title = 404, "unknown-answer", "Unknown answer"


class MethodNotAllowed(Problem):
    status, slug, title = 405, "method-not-allowed", "Method not allowed"

    def __init__(self, method: str, allowed: str) -> None:
        # Whatever answers GET answers HEAD (RFC 9110, section 9.1).
        methods = "GET, HEAD" if allowed == "GET" else allowed
        super().__init__(f"{method} is not possible here; use {allowed}.", ((b"allow", methods.encode()),))


class NotAcceptable(Problem):
    status, slug, title = 406, "not-acceptable", "Not acceptable"


class BodyTimeout(Problem):
    status, slug, title = 408, "body-timeout", "Body timeout"


class OtherLabel(Problem):
    status, slug, title = 409, "other-label", "Other label"


class BodyTooLarge(Problem):
    status, slug, title = 413, "body-too-large", "Body too large"


class ImageTooLarge(Problem):
    status, slug, title = 413, "image-too-large", "Image too large"


class UnsupportedImage(Problem):
    status, slug, title = 415, "unsupported-image", "Unsupported image"


class UnsupportedMediaType(Problem):
    status, slug, title = 415, "unsupported-media-type", "Unsupported media type"


class BadParameter(Problem):
    status, slug, title = 422, "bad-parameter", "Bad parameter"


class TooManyRequests(Problem):
    status, slug, title = 429, "too-many-requests", "Too many requests"

    def __init__(self, detail: str, retry_after_s: int = 1, lines: bytes = b"") -> None:
        """`lines` are header lines that tell of the limits, each ended."""
        told = (tuple(line.split(b": ", 1)) for line in lines.splitlines())
        retry_after = (b"retry-after", str(max(1, retry_after_s)).encode())
        super().__init__(detail, (retry_after, *((name, value) for name, value in told)))


class Overloaded(Problem):
    status, slug, title = 503, "overloaded", "Overloaded"

    def __init__(self, detail: str, retry_after_s: int = 1) -> None:
        super().__init__(detail, ((b"retry-after", str(retry_after_s).encode()),))


class NotReady(Overloaded):
    slug, title = "not-ready", "Not ready"


class FeedbackUnavailable(Overloaded):
    slug, title = "feedback-unavailable", "Feedback unavailable"


class InternalError(Problem):
    pass


class StartupError(Exception):
    """Why the service does not start; names what is wrong and the remedy."""


class BundleError(StartupError):
    pass


class BackendError(StartupError):
    pass


class SettingError(StartupError):
    pass
