"""Seeded mixes of faults: which hosts die and come back, which parts go away, which links break.

A mix is drawn before the run from the loop's seed, so that it does not depend on what the mesh
does. It always heals: at its end everything is up and connected again.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from banyan_sim.mesh import Act, SimMesh, Topology

MORTAL = ("prefill", "decode", "router", "kvstore", "autoscaler", "metrics")


@dataclass(frozen=True, slots=True)
class Fault:
    """At `at_s`, for `for_s` seconds. `kind`: crash, part, or partition."""

    kind: str
    target: str
    at_s: float
    for_s: float


def draw_topology(rng: random.Random) -> Topology:
    return Topology(
        num_prefill=rng.randint(1, 3), num_decode=rng.randint(1, 3), num_routers=rng.randint(1, 2)
    )


def draw_faults(rng: random.Random, topology: Topology, within_s: float) -> list[Fault]:
    """Up to eight faults, each over within two seconds."""
    hosts = topology.hosts()
    mortals = [host for service in MORTAL for host in hosts[service]]
    faults = []
    for _ in range(rng.randint(0, 8)):
        kind = rng.choice(("crash", "crash", "crash", "part", "partition"))
        target = rng.choice(("bus", "index")) if kind == "part" else rng.choice(mortals)
        faults.append(Fault(kind, target, rng.uniform(0, within_s), rng.uniform(0.01, 2.0)))
    return sorted(faults, key=lambda fault: fault.at_s)


def unleash(mesh: SimMesh, faults: list[Fault]) -> None:
    """Book every fault and its end."""
    for fault in faults:
        begin, end = _acts(mesh, fault)
        mesh.later(fault.at_s, begin)
        mesh.later(fault.at_s + fault.for_s, end)


def _acts(mesh: SimMesh, fault: Fault) -> tuple[Act, Act]:
    if fault.kind == "crash":
        return lambda: mesh.crash(fault.target), mesh.restart_dead
    if fault.kind == "part":
        return (
            lambda: mesh.take_down(fault.target, lose_content=False),
            lambda: mesh.bring_up(fault.target),
        )
    return lambda: mesh.wires.partition("gateway-0", fault.target), mesh.wires.heal
