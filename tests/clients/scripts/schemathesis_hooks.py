"""503 is an answer of an overloaded or stopping mesh, but only with Retry-After."""

import schemathesis

MAX_TOKENS = 8
CONTEXT = 8192


@schemathesis.check
def unavailable_only_with_retry_after(ctx, response, case):
    if response.status_code in (429, 503):
        values = response.headers.get("retry-after")
        assert values and int(values[0]) >= 1, "429 and 503 must say when to come back"


@schemathesis.check
def no_server_error_but_503(ctx, response, case):
    assert response.status_code < 500 or response.status_code == 503, response.text


@schemathesis.hook
def before_call(ctx, case, kwargs):
    """Short answers: the document rightly allows them to fill the context, which takes long."""
    body = case.body
    if isinstance(body, dict) and ("messages" in body or "prompt" in body):
        for name in ("max_tokens", "max_completion_tokens"):
            value = body.get(name)
            if isinstance(value, int) and MAX_TOKENS < value < CONTEXT:
                body[name] = MAX_TOKENS
        if body.get("max_completion_tokens") is None and body.get("max_tokens") is None:
            body["max_tokens"] = MAX_TOKENS
