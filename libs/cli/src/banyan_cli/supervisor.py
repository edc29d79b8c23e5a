"""The shell around the plan: starts and ends processes, asks their health, writes the state files.

Facts go in through the pump (a process answered, a process exited, the autoscaler wishes), its
commands come out and are carried out here. The supervisor is never needed by a request: if it
dies, its children die with it, and that is the whole mesh of one machine.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol

import httpx2

from banyan_cli import plan as p
from banyan_cli import plan_messages as m
from banyan_cli.children import Child, spawn
from banyan_cli.errors import CommandError
from banyan_cli.health import grpc_is_serving, http_is_ok, router_sees, valkey_answers
from banyan_cli.launch import Launcher
from banyan_cli.options import MeshOptions
from banyan_cli.state import MeshState, ProcessState, StateFolder
from banyan_runtime.clock import Clock
from banyan_runtime.grpc_network import GrpcNetwork
from banyan_runtime.grpc_security import ChannelSecurity
from banyan_runtime.lifespan import Tasks
from banyan_runtime.pump import Pump

HEALTH_PERIOD_S = 0.1
WISH_PERIOD_S = 0.5


class Audience(Protocol):
    """Who is told what happens: a terminal, or a log."""

    def say(self, text: str, *, trouble: bool) -> None: ...

    def all_ready(self, state: MeshState) -> None: ...


class Supervisor:
    """Runs one mesh until it is asked to stop."""

    def __init__(
        self, options: MeshOptions, folder: StateFolder, clock: Clock, audience: Audience
    ) -> None:
        self._plan = p.Plan(options.counts)
        self._folder = folder
        self._audience = audience
        self._launcher = Launcher(options, folder)
        self._pump: Pump[m.Fact, m.Command] = Pump(self._plan, clock, self._apply)
        self._children: dict[str, Child] = {}
        self._tasks = Tasks()
        self._finished: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._network = GrpcNetwork(
            ChannelSecurity.parse(os.environ.get("BANYAN_CHANNELS", "plain"))
        )
        self._http = httpx2.AsyncClient(trust_env=False)
        self._early: dict[str, signal.Signals] = {}
        self._is_up = False

    async def run(self) -> int:
        """The exit code, when nothing runs any more."""
        for process in self._plan.processes:
            self._launcher.addresses(process.name)
        self._folder.write_mesh(self._directory())
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._pump.feed, m.StopAsked())
        pumping = self._tasks.spawn("pump", self._pump.run())
        pumping.add_done_callback(self._on_broken)
        wishing = self._tasks.spawn("wishes", self._watch_wishes())
        wishing.add_done_callback(self._on_broken)
        self._pump.feed()
        try:
            return await self._finished
        finally:
            for child in self._children.values():
                child.send(signal.SIGKILL)
            await self._tasks.cancel_all()
            await self._network.close()
            await self._http.aclose()

    def _on_broken(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._finished.done():
            self._finished.set_exception(error)

    # ------------------------------------------------------------ commands

    def _apply(self, command: m.Command) -> None:
        match command:
            case m.Start(name, service):
                self._tasks.spawn_brief(name, self._live(name, service))
            case m.Terminate(name):
                self._send(name, signal.SIGTERM)
            case m.Kill(name):
                self._send(name, signal.SIGKILL)
            case m.Say(text, trouble):
                self._audience.say(text, trouble=trouble)
            case m.AllReady():
                self._tasks.spawn_brief("gateway's readiness", self._await_gateway())
            case m.Finish(code):
                self._finished.set_result(code)
        self._write()

    def _send(self, name: str, number: signal.Signals) -> None:
        if name in self._children:
            self._children[name].send(number)
        else:
            self._early[name] = number  # its process is just being made

    async def _live(self, name: str, service: str) -> None:
        """One life of a process, from its start to its exit."""
        self._early.pop(name, None)
        try:
            env = self._launcher.environment(name, service, os.environ)
            command = self._launcher.command(name, service)
            child = await spawn(command, env, self._folder.log_file(name))
        except (CommandError, OSError) as error:
            self._pump.feed(m.Exited(name, p.EXIT_NOT_STARTED, str(error)))
            return
        self._children[name] = child
        if name in self._early:
            child.send(self._early.pop(name))
        self._write()
        asking = self._tasks.spawn_brief(f"health of {name}", self._await_ready(name, service))
        code = await child.wait()
        asking.cancel()
        del self._children[name]
        self._pump.feed(m.Exited(name, code, child.last_words() if code > 0 else ""))

    async def _await_ready(self, name: str, service: str) -> None:
        await _until(lambda: self._is_ready(name, service))
        self._pump.feed(m.BecameReady(name))

    async def _is_ready(self, name: str, service: str) -> bool:
        address = self._launcher.addresses(name).main
        if service == "valkey":
            return await valkey_answers(address)
        if service == "gateway":
            return await http_is_ok(self._http, f"http://{address}/health")
        return await grpc_is_serving(self._network, address)

    async def _await_gateway(self) -> None:
        """The mesh is up when the gateway can serve and every router sees every worker."""
        url = f"{self.state().gateway_url}/ready"
        await _until(lambda: http_is_ok(self._http, url))
        workers = [one.name for one in self._plan.processes if one.service in p.SCALABLE]
        for process in self._plan.processes:
            if process.service == "router":
                address = self._launcher.addresses(process.name).main
                await _until(partial(router_sees, self._network, address, workers))
        self._is_up = True
        self._write()
        self._audience.all_ready(self.state())

    async def _watch_wishes(self) -> None:
        while True:
            wish = self._folder.new_wish()
            if wish is not None:
                self._pump.feed(m.Wished(wish))
            await asyncio.sleep(WISH_PERIOD_S)

    # ------------------------------------------------------------ state files

    def _directory(self) -> dict[str, list[str]]:
        services: dict[str, list[str]] = {}
        for process in self._plan.processes:
            addresses = services.setdefault(process.service, [])
            if process.listed:
                addresses.append(self._launcher.addresses(process.name).main)
        return services

    def state(self) -> MeshState:
        """As it is now."""
        rows = []
        for process in self._plan.processes:
            child = self._children.get(process.name)
            addresses = self._launcher.addresses(process.name)
            rows.append(
                ProcessState(
                    process.name,
                    process.service,
                    process.phase.value,
                    child.pid if child is not None else 0,
                    addresses.main,
                    addresses.metrics,
                    process.num_restarts,
                )
            )
        return MeshState(
            os.getpid(),
            self._is_up,
            f"http://{self._launcher.addresses('gateway').main}",
            f"http://{self._launcher.addresses('metrics').metrics}",
            tuple(rows),
        )

    def _write(self) -> None:
        self._folder.write_mesh(self._directory())
        self._folder.write_state(self.state())


async def _until(check: Callable[[], Awaitable[bool]]) -> None:
    """Ask until the answer is yes; who waits sets the bound."""
    while True:
        if await check():
            return
        await asyncio.sleep(HEALTH_PERIOD_S)
