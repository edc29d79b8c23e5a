"""The gateway's HTTP routes: OpenAI's API, and what an operator asks.

A route reads the body, has it prepared (off the event loop when long), and returns a `Reply` that
drives the gateway. All that concerns every route (ids, keys, logs) is in `edge`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import msgspec
from fastapi import FastAPI, Request, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from banyan_core.types import NS_PER_S, ModelCard
from banyan_gateway.answer_names import AnswerNames
from banyan_gateway.auth import KeyRing, Tenant
from banyan_gateway.body import BodyReader, priority_of
from banyan_gateway.chat_format import ChatFormatter
from banyan_gateway.edge import Edge
from banyan_gateway.errors import ApiError, failed
from banyan_gateway.grammar_trials import GrammarTrials
from banyan_gateway.model_formats import NO_FORMATS, ModelFormats
from banyan_gateway.openai_format import AnswerHead, CompletionFormatter, Formatter
from banyan_gateway.openapi import OPERATIONS, page
from banyan_gateway.plain_route import PlainRoute
from banyan_gateway.ports import GatewayPort, Unread
from banyan_gateway.prepare import Arrival, Prepared, Preparer, is_quick, may_check_grammar
from banyan_gateway.reply import Reply, ReplyOptions
from banyan_gateway.request_timeout import HEADER, timeout_ns
from banyan_gateway.schema import PRIORITY_MAX
from banyan_gateway.served_models import ServedModels
from banyan_runtime.clock import Clock
from banyan_runtime.offload import Offload
from banyan_text.tokenizer import Tokenizer

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ApiOptions:
    """`default_deadline_ns` of None means that requests may take as long as they take."""

    version: str
    reply: ReplyOptions = field(default_factory=ReplyOptions)
    body_bytes_max: int = 8 * 1024 * 1024
    all_bodies_bytes_max: int = 64 * 1024 * 1024
    body_timeout_s: float = 60.0
    default_deadline_ns: int | None = None


@dataclass(frozen=True, slots=True)
class ApiTools:
    """What the API takes from the process around it. `draw` gives 63 random bits.

    Bodies that may have a grammar are prepared in `grammar_offload`, where they may wait for
    `trials`; all that would take long otherwise, in `offload`.
    """

    clock: Clock
    offload: Offload
    grammar_offload: Offload
    trials: GrammarTrials
    draw: Callable[[], int]
    logger: logging.Logger
    registry: CollectorRegistry


def build_app(
    gateway: GatewayPort,
    tokenizer: Tokenizer,
    card: ModelCard,
    models: ServedModels,
    keys: KeyRing,
    tools: ApiTools,
    options: ApiOptions,
    formats: ModelFormats = NO_FORMATS,
) -> FastAPI:
    """The ASGI application. Nothing in it runs until it is served."""
    tools.registry.register(gateway.metrics)
    app = FastAPI(
        title="Banyan",
        version=options.version,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # ours tells more
    )
    api = Api(gateway, tokenizer, card, models, tools, options, formats, not keys.is_open)
    api.add_routes(app)
    app.add_exception_handler(ApiError, _refuse)
    app.add_exception_handler(HTTPException, _refuse_route)
    app.add_middleware(
        Edge,
        keys=keys,
        new_id=lambda: f"req-{tools.draw():016x}{tools.draw():016x}",
        clock=tools.clock,
        logger=tools.logger,
        registry=tools.registry,
    )
    return app


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _refuse_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path}"
    message = (
        f"{where} is not here: see /v1/models" if error.status_code == 404 else str(error.detail)
    )
    if error.status_code == 405:
        message = f"{request.url.path} does not take {request.method}"
    response = ApiError(error.status_code, message).response()
    response.headers.update(error.headers or {})
    return response


class Api:
    """The routes' functions and what they share."""

    def __init__(
        self,
        gateway: GatewayPort,
        tokenizer: Tokenizer,
        card: ModelCard,
        models: ServedModels,
        tools: ApiTools,
        options: ApiOptions,
        formats: ModelFormats,
        needs_key: bool,
    ) -> None:
        self._gateway = gateway
        self._tokenizer = tokenizer
        self._card = card
        self._models = models
        self._tools = tools
        self._options = options
        self._preparer = Preparer(tokenizer, card, models, tools.trials, formats)
        self._bodies = BodyReader(
            options.body_bytes_max, options.all_bodies_bytes_max, options.body_timeout_s
        )
        self._fingerprint = f"fp_{card.digest.hex()[:12]}"
        self._names = AnswerNames()
        self._needs_key = needs_key

    def add_routes(self, app: FastAPI) -> None:
        for each in OPERATIONS:
            path = each.path.replace("{model_id}", "{model_id:path}")  # names may hold a slash
            serve = getattr(self, each.name)
            app.router.routes.append(PlainRoute(path, serve, methods=[each.method]))

    async def chat(self, request: Request) -> Response:
        return await self._generate(request, "chatcmpl", self._preparer.chat, self._chat_formatter)

    async def completion(self, request: Request) -> Response:
        prepare = self._preparer.completion
        return await self._generate(request, "cmpl", prepare, self._plain_formatter)

    async def tokenize(self, request: Request) -> Response:
        return _json(await self._prepared(request, self._preparer.tokenize))

    async def detokenize(self, request: Request) -> Response:
        return _json(await self._prepared(request, self._preparer.detokenize))

    async def models(self, _: Request) -> Response:
        return _json({"object": "list", "data": self._models.listed()})

    async def model(self, request: Request) -> Response:
        return _json(self._models.described(request.path_params["model_id"]))

    async def explain(self, request: Request) -> Response:
        """One view, or `{"requests": [...]}` for an answer that had several prompts."""
        tenant: Tenant = request.state.tenant
        name = request.path_params["name"]
        found = map(self._gateway.request_view, self._names.find(tenant.name, name))
        views = [view for view in found if view is not None]
        if not views:
            message = f"request {name!r} is not known (any more)"
            raise ApiError(404, message, "id", "request_not_found")
        return _json(views[0] if len(views) == 1 else {"id": name, "requests": views})

    async def health(self, _: Request) -> Response:
        return Response()

    async def ready(self, _: Request) -> Response:
        is_ready, reason = await self._gateway.ready()
        response = _json({"ready": is_ready, "reason": reason}, 200 if is_ready else 503)
        if not is_ready:
            response.headers["retry-after"] = "1"
        return response

    async def metrics(self, _: Request) -> Response:
        return Response(generate_latest(self._tools.registry), media_type=CONTENT_TYPE_LATEST)

    async def version(self, _: Request) -> Response:
        return _json({"version": self._options.version})

    async def openapi(self, _: Request) -> Response:
        card, size = self._card, self._tokenizer.vocab_size
        content = page(card, self._models.names, size, self._options.version, self._needs_key)
        return Response(content, media_type="application/json")

    async def _generate(
        self,
        request: Request,
        prefix: str,
        prepare: Callable[..., Prepared],
        formatter_of: Callable[[AnswerHead, Prepared], Formatter],
    ) -> Response:
        waited_ns = self._tools.clock.now_ns() - request.state.received_ns
        refusal = self._gateway.refusal(waited_ns)
        if refusal is not None:
            raise failed(refusal)
        arrival = self._arrival(request, prefix)
        async with self._bodies.read(request) as body:
            await self._shed_unread(request, body, arrival)
            prepared = await self._read_into(partial(prepare, arrival=arrival), body)
        self._name(request, arrival, tuple(each.request_id for each in prepared.requests))
        head = AnswerHead(
            arrival.answer_id,
            self._tools.clock.unix_ns() // NS_PER_S,
            prepared.requests[0].model,
            self._fingerprint,
        )
        formatter = formatter_of(head, prepared)
        return Reply(self._gateway, prepared, formatter, self._options.reply, self._tools.logger)

    def _chat_formatter(self, head: AnswerHead, prepared: Prepared) -> Formatter:
        logprobs = prepared.requests[0].sampling.logprobs
        usage = prepared.include_usage
        return ChatFormatter(head, self._tokenizer, logprobs, usage, prepared.parts)

    def _plain_formatter(self, head: AnswerHead, prepared: Prepared) -> Formatter:
        sampling = prepared.requests[0].sampling
        logprobs = sampling.num_top_logprobs if sampling.logprobs else None
        usage, view = prepared.include_usage, prepared.prompt_view
        return CompletionFormatter(head, self._tokenizer, logprobs, usage, view)

    async def _prepared(self, request: Request, prepare: Callable[[bytes], T]) -> T:
        async with self._bodies.read(request) as body:
            return await self._ran(body, prepare)

    async def _read_into(self, prepare: Callable[[bytes], Prepared], body: bytes) -> Prepared:
        if may_check_grammar(body):
            return await self._tools.grammar_offload.run(prepare, body)
        return await self._ran(body, prepare)

    async def _ran(self, body: bytes, work: Callable[[bytes], T]) -> T:
        return work(body) if is_quick(body) else await self._tools.offload.run(work, body)

    async def _shed_unread(self, request: Request, body: bytes, arrival: Arrival) -> None:
        """In overload most requests end here, before the work that reading them is."""
        if not self._gateway.sheds(PRIORITY_MAX):
            return
        priority = await self._ran(body, priority_of)
        if priority is None:
            return
        name, tenant = arrival.answer_id, arrival.tenant.name
        refusal = self._gateway.shed(Unread(name, tenant, priority, arrival.received_ns))
        if refusal is not None:
            self._name(request, arrival, (name,))
            raise failed(refusal)

    def _arrival(self, request: Request, prefix: str) -> Arrival:
        draw = self._tools.draw
        return Arrival(
            answer_id=f"{prefix}-{draw():016x}{draw():016x}",
            tenant=request.state.tenant,
            received_ns=request.state.received_ns,
            drawn_seed=draw(),
            deadline_ns=timeout_ns(request.headers.get(HEADER))
            or self._options.default_deadline_ns,
            operation="chat" if prefix == "chatcmpl" else "text_completion",
            traceparent=request.headers.get("traceparent"),
        )

    def _name(self, request: Request, arrival: Arrival, request_ids: tuple[str, ...]) -> None:
        request.state.answer_id = arrival.answer_id
        tenant = arrival.tenant.name
        self._names.keep(tenant, (arrival.answer_id, request.state.request_id), request_ids)
        if len(request_ids) > 1:
            for request_id in request_ids:
                self._names.keep(tenant, (request_id,), (request_id,))


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")
