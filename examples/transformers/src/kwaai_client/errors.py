"""What can go wrong, as exceptions: one class for each status of a node, and those that only a client meets."""

from __future__ import annotations


class KwaaiError(Exception):
    """The base of them all.

    ``code`` is the status by name, such as NOT_FOUND; ``status`` the HTTP status, None where no answer came;
    ``message`` the node's own words.
    """

    default_code = "INTERNAL"

    def __init__(self, message: str, *, code: str | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.status = status

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class NotFound(KwaaiError, LookupError):
    """Nobody hosts the expert, or this node has no router of the layer."""

    default_code = "NOT_FOUND"


class InvalidArgument(KwaaiError, ValueError):
    """Shape, datatype, name or a parameter is not what the model takes; the message says what was expected."""

    default_code = "INVALID_ARGUMENT"


class ResourceExhausted(KwaaiError):
    """The request is larger than the node takes: send fewer rows."""

    default_code = "RESOURCE_EXHAUSTED"


class Overloaded(KwaaiError):
    """Whoever could answer is well but full. ``retry_after`` says for how many seconds."""

    default_code = "OVERLOADED"

    def __init__(self, message: str, *, code: str | None = None, status: int | None = None, retry_after: float = 1.0) -> None:
        super().__init__(message, code=code, status=status)
        self.retry_after = retry_after


class DeadlineExceeded(KwaaiError, TimeoutError):
    """No answer within the timeout."""

    default_code = "DEADLINE_EXCEEDED"


class NotReady(KwaaiError):
    """The expert is being loaded, or its hosts could not be reached."""

    default_code = "NOT_READY"


class DigestMismatch(KwaaiError):
    """Nobody hosts the expert with the weights that were pinned."""

    default_code = "DIGEST_MISMATCH"


class Unimplemented(KwaaiError):
    """The node does not know how to do that."""

    default_code = "UNIMPLEMENTED"


class Internal(KwaaiError):
    """A fault of the node, or of the hosts it asked."""


class Unauthenticated(KwaaiError):
    """The node wants its api_token: ``Experts(url, token=...)``."""

    default_code = "UNAUTHENTICATED"


class PermissionDenied(KwaaiError):
    """The node does not answer under this host name."""

    default_code = "PERMISSION_DENIED"


class Unreachable(KwaaiError, ConnectionError):
    """No node answers at any of the addresses, or the connection broke off."""

    default_code = "UNREACHABLE"


class BadReply(KwaaiError):
    """What came back is no reply of the Open Inference Protocol."""

    default_code = "BAD_REPLY"


class WeightsDiffer(KwaaiError):
    """The swarm's layer computes something else than the model's own experts."""

    default_code = "WEIGHTS_DIFFER"


class GradientsUnsupported(KwaaiError, RuntimeError):
    """A gradient was asked for through experts of the swarm, which are for forward passes."""

    default_code = "UNIMPLEMENTED"


# DIAL_FAILED and RESET: the node could not reach a host, which may be there again in a moment.
_BY_CODE: dict[str, type[KwaaiError]] = {
    "NOT_FOUND": NotFound,
    "INVALID_ARGUMENT": InvalidArgument,
    "RESOURCE_EXHAUSTED": ResourceExhausted,
    "OVERLOADED": Overloaded,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "TIMEOUT": DeadlineExceeded,
    "NOT_READY": NotReady,
    "DIAL_FAILED": NotReady,
    "RESET": NotReady,
    "DIGEST_MISMATCH": DigestMismatch,
    "UNIMPLEMENTED": Unimplemented,
    "UNAUTHENTICATED": Unauthenticated,
    "PERMISSION_DENIED": PermissionDenied,
}

# For answers without a code, which come from a proxy rather than from a node.
_BY_STATUS: dict[int, type[KwaaiError]] = {
    400: InvalidArgument,
    401: Unauthenticated,
    403: PermissionDenied,
    404: NotFound,
    409: DigestMismatch,
    413: ResourceExhausted,
    429: Overloaded,
    501: Unimplemented,
    502: Unreachable,
    503: NotReady,
    504: DeadlineExceeded,
}


def from_reply(status: int, code: str | None, message: str, retry_after: str | None) -> KwaaiError:
    """The exception for an HTTP answer that is an error; retry_after is the header of that name."""
    kind = _BY_CODE.get(code or "") or (Internal if code else _BY_STATUS.get(status, Internal))
    if kind is not Overloaded:
        return kind(message, code=code, status=status)
    try:
        seconds = max(0.0, float(retry_after or 1))
    except ValueError:  # HTTP allows a date as well, which no node sends
        seconds = 1.0
    return Overloaded(message, code=code, status=status, retry_after=seconds)
