"""Facts that the engine loop takes and commands that it gives (see `engine_loop`)."""

from __future__ import annotations

from dataclasses import dataclass

from banyan_core.next_step import NextStep
from banyan_core.runner import StepPlan, StepResult
from banyan_core.types import BlockHash, SequenceReport, SequenceSpec

# ---------------------------------------------------------------- facts


@dataclass(frozen=True, slots=True)
class Submit:
    """Run this sequence. With `hold`, sample one token and keep the blocks until `Release`.

    A held sequence's report ends with `length` (or `stop`), its lease id is its sequence id.
    `import_id` names blocks that were imported for it: their pins pass to the sequence.
    `fetch_ns` is how long that took, for the figures.
    """

    spec: SequenceSpec
    hold: bool
    import_id: str = ""
    fetch_ns: int = 0
    num_fetched_blocks: int = 0
    num_rejected_pages: int = 0


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop working on these within one step. Unknown ids are ignored."""

    sequence_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Release:
    """Give back the blocks held under these leases (ids of held sequences or of pins)."""

    lease_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StepDone:
    """The outstanding step came back after `elapsed_ns`.

    `went_on`: what was prepared gave a plan, and that is the outstanding step by now.
    """

    result: StepResult
    elapsed_ns: int
    went_on: bool = False


@dataclass(frozen=True, slots=True)
class StepRuns:
    """Whoever runs step `number` can go on by itself. Answered by `Prepare` when it may.

    A driver that says it must take `Prepare` and `Revoke`; without it there are none.
    """

    number: int


@dataclass(frozen=True, slots=True)
class StepFailed:
    """The outstanding step raised: all its sequences fail with this error."""

    number: int
    error: str


@dataclass(frozen=True, slots=True)
class ImportWanted:
    """Reserve blocks for these hashes. Answered by `ImportReady` or `ImportRefused`."""

    import_id: str
    hashes: tuple[BlockHash, ...]


@dataclass(frozen=True, slots=True)
class ImportDone:
    """These blocks now hold verified KV; the rest of the reservation is given back.

    What was imported stays pinned under `import_id` until a `Submit` takes it or a `Release`.
    """

    import_id: str
    imported: tuple[BlockHash, ...]


@dataclass(frozen=True, slots=True)
class PinWanted:
    """Pin cached blocks for an export. Answered by `Pinned`; ended by `Release`."""

    pin_id: str
    hashes: tuple[BlockHash, ...]


@dataclass(frozen=True, slots=True)
class DrainNow:
    """The grace is over: end every sequence as `drained`, so that it continues elsewhere."""


StepFact = StepDone | StepFailed | StepRuns
BlockFact = Release | ImportWanted | ImportDone | PinWanted
EngineFact = Submit | Cancel | DrainNow | StepFact | BlockFact

# ---------------------------------------------------------------- commands


@dataclass(frozen=True, slots=True)
class RunStep:
    """Run this plan; answer with `StepDone` or `StepFailed`. One step is outstanding at a time."""

    plan: StepPlan


@dataclass(frozen=True, slots=True)
class Prepare:
    """When the outstanding step is done run what this makes of its result, if it has a plan."""

    next_step: NextStep


@dataclass(frozen=True, slots=True)
class Revoke:
    """Step `number` must not begin by itself. If it has begun already, that stands."""

    number: int


@dataclass(frozen=True, slots=True)
class StepBegun:
    """The plan that runs since the last one `went_on`; there is no `RunStep` for it."""

    plan: StepPlan


@dataclass(frozen=True, slots=True)
class Report:
    """One message per step with the news of all its sequences."""

    step: int
    sequences: tuple[SequenceReport, ...]


@dataclass(frozen=True, slots=True)
class ImportReady:
    """Write page (hash, layer) into `block_ids[i]` for `hashes[i]`; absent hashes are cached."""

    import_id: str
    hashes: tuple[BlockHash, ...]
    block_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ImportRefused:
    """No room. The sequence can still be submitted: it recomputes."""

    import_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Pinned:
    """Those of the wanted blocks that are cached here, pinned under `pin_id`."""

    pin_id: str
    hashes: tuple[BlockHash, ...]
    block_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BlocksFilled:
    """These blocks became cached content just now: announce them, and offer them to the store
    unless they were imported. Those came from it, or from whoever offers them to it."""

    hashes: tuple[BlockHash, ...]
    block_ids: tuple[int, ...]
    imported: bool = False


@dataclass(frozen=True, slots=True)
class BlocksEvicted:
    """These hashes are no longer here."""

    hashes: tuple[BlockHash, ...]


@dataclass(frozen=True, slots=True)
class Held:
    """A sequence with `hold` has its token; its blocks stay under `lease_id` until `Release`.

    `output_token_ids` is the whole output so far, the new token last.
    """

    lease_id: str
    output_token_ids: tuple[int, ...]


StepCommand = RunStep | Prepare | Revoke | StepBegun
BlockCommand = ImportReady | ImportRefused | Pinned | BlocksFilled | BlocksEvicted | Held
EngineCommand = StepCommand | BlockCommand | Report
