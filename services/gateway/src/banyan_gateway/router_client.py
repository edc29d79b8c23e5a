"""Asks the routers, one after the other, where a sequence should run."""

from __future__ import annotations

from banyan_core.journey_messages import NotPlaced, Placed
from banyan_core.placement import PlaceQuery
from banyan_core.types import NS_PER_MS, Refusal
from banyan_runtime import codec, wire
from banyan_runtime.directory import Directory
from banyan_runtime.rpc import Network, RpcError

PLACE_TIMEOUT_S = 2.0
NO_ROUTER_RETRY_NS = 100 * NS_PER_MS


class RouterClient:
    """Starts with the router that answered last; any router knows as much as another."""

    def __init__(self, network: Network, directory: Directory) -> None:
        self._network = network
        self._directory = directory
        self._preferred = ""

    async def place(self, query: PlaceQuery) -> Placed | NotPlaced:
        """A placement or the reason why there is none; never raises."""
        problem = "no router is known"
        for address in await self._addresses():
            try:
                answer = await self._network.channel(address).unary(
                    wire.PLACE, codec.place_query_to_pb(query), PLACE_TIMEOUT_S
                )
                outcome, decision = codec.place_response_from_pb(answer)
            except RpcError as error:
                problem = f"router {address}: {error.message}"
                continue
            except ValueError as error:  # of another version: another router may be of ours
                problem = f"router {address}: its answer cannot be read: {error}"
                continue
            self._preferred = address
            if isinstance(outcome, Refusal):
                return NotPlaced(query.request_id, query.choice, query.attempt, outcome, decision)
            return Placed(query.request_id, query.choice, query.attempt, outcome, decision)
        refusal = Refusal(problem, NO_ROUTER_RETRY_NS)
        return NotPlaced(query.request_id, query.choice, query.attempt, refusal)

    async def _addresses(self) -> list[str]:
        known = await self._directory.addresses("router")
        return sorted(known, key=lambda address: address != self._preferred)
