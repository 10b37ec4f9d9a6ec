"""Experts of a kwaai swarm from Python.

``Experts`` calls single experts and MoE layers through any node of the swarm; ``patch`` has a loaded transformers model do so.
"""

from .client import Experts
from .errors import (
    BadReply,
    DeadlineExceeded,
    DigestMismatch,
    GradientsUnsupported,
    Internal,
    InvalidArgument,
    KwaaiError,
    NotFound,
    NotReady,
    Overloaded,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unimplemented,
    Unreachable,
    WeightsDiffer,
)
from .oip import BF16, Reply
from .patching import MissingExpertsWarning, Patched, patch

__all__ = [
    "BF16",
    "BadReply",
    "DeadlineExceeded",
    "DigestMismatch",
    "Experts",
    "GradientsUnsupported",
    "Internal",
    "InvalidArgument",
    "KwaaiError",
    "MissingExpertsWarning",
    "NotFound",
    "NotReady",
    "Overloaded",
    "Patched",
    "PermissionDenied",
    "Reply",
    "ResourceExhausted",
    "Unauthenticated",
    "Unimplemented",
    "Unreachable",
    "WeightsDiffer",
    "patch",
]
