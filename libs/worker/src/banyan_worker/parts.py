"""The parts of one worker, wired by its service."""

from __future__ import annotations

from dataclasses import dataclass

from banyan_core.types import ModelCard
from banyan_worker.adapter_pool import AdapterPool
from banyan_worker.exporter import Exporter
from banyan_worker.importer import Importer
from banyan_worker.lease_keeper import LeaseKeeper
from banyan_worker.load_board import LoadBoard
from banyan_worker.offloader import Offloader
from banyan_worker.options import WorkerOptions
from banyan_worker.pages import Pages
from banyan_worker.step_loop import StepLoop
from banyan_worker.token_streams import TokenStreams
from banyan_worker.worker_events import WorkerEvents


@dataclass(frozen=True, slots=True)
class Parts:
    card: ModelCard
    num_blocks: int
    options: WorkerOptions
    steps: StepLoop
    pages: Pages
    exporter: Exporter
    importer: Importer
    offloader: Offloader
    leases: LeaseKeeper
    streams: TokenStreams
    board: LoadBoard
    events: WorkerEvents
    adapters: AdapterPool
