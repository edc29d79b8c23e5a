"""Every refusal that leaves by HTTP, in OpenAI's shape.

`{"error": {"message", "type", "param", "code"}}`, whatever went wrong: clients read nothing else.
"""

from __future__ import annotations

import math

import msgspec
from starlette.responses import Response

from banyan_gateway.ports import RequestFailed

MESSAGE_CHARS_MAX = 1000
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}


class ApiError(Exception):
    """A request that gets no answer. `param` names the field, as `messages[0].role`."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    def body(self) -> bytes:
        """The JSON object that a client sees, alone or in an error event.

        Names in a message may be the client's own, and as long as its body.
        """
        default = "server_error" if self.status >= 500 else "invalid_request_error"
        error = {
            "message": self.message[:MESSAGE_CHARS_MAX],
            "type": _TYPES.get(self.status, default),
            "param": self.param,
            "code": self.code,
        }
        return msgspec.json.encode({"error": error})

    def response(self) -> Response:
        response = Response(self.body(), self.status, media_type="application/json")
        if self.retry_after_s is not None:
            response.headers["retry-after"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.status == 401:
            response.headers["www-authenticate"] = "Bearer"
        return response


def invalid(param: str, expected: str, code: str | None = None) -> ApiError:
    """400 for a field: `<param>: <expected>`."""
    return ApiError(400, f"{param}: {expected}", param, code)


def failed(error: RequestFailed) -> ApiError:
    """What a client is told of a request that was accepted and then failed."""
    return ApiError(
        error.http_status, error.message, code=error.code, retry_after_s=error.retry_after_s
    )


def internal() -> ApiError:
    """A mistake of ours; what happened is in the log under the request's id."""
    return ApiError(
        500, "internal error: see the gateway's log under x-request-id", code="internal"
    )
