"""The client of a Ladle server: ``Client`` and ``AsyncClient``. Needs httpx and pydantic, nothing else."""

from ladle.clients.async_client import AsyncClient
from ladle.clients.client import Client
from ladle.clients.errors import (
    APIError,
    AuthenticationError,
    BadRequestError,
    ConnectionError,
    LadleError,
    NotFoundError,
    PayloadTooLargeError,
    RateLimitError,
    ResponseError,
    ServerError,
    TimeoutError,
    UsageError,
)
from ladle.clients.payload import Message, Options
from ladle.clients.responses import (
    Alternative,
    Choice,
    CoefficientsReport,
    Family,
    Generation,
    Member,
    MethodStatus,
    Model,
    Source,
    SteeringReport,
    StreamToken,
    Token,
    Usage,
)
from ladle.clients.stream import AsyncStream, Stream

__all__ = [
    "Client",
    "AsyncClient",
    "Stream",
    "AsyncStream",
    "Message",
    "Options",
    "Alternative",
    "Choice",
    "CoefficientsReport",
    "Family",
    "Generation",
    "Member",
    "MethodStatus",
    "Model",
    "Source",
    "SteeringReport",
    "StreamToken",
    "Token",
    "Usage",
    "LadleError",
    "UsageError",
    "ConnectionError",
    "TimeoutError",
    "ResponseError",
    "APIError",
    "BadRequestError",
    "AuthenticationError",
    "NotFoundError",
    "PayloadTooLargeError",
    "RateLimitError",
    "ServerError",
]
