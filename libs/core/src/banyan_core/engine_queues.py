"""Who waits and who runs in one engine, in order of due time (see `policies/batching.py`)."""

from __future__ import annotations

from bisect import insort

from banyan_core.block_manager import BlockManager
from banyan_core.sequence import Sequence


class EngineQueues:
    """Sequences move between `waiting` and `running`; they leave by `remove` only.

    `closed` are those that the runner must be told to forget.
    """

    def __init__(self, blocks: BlockManager, aging_ns: int) -> None:
        self._blocks = blocks
        self._aging_ns = aging_ns
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.closed: list[str] = []
        self._of_request: dict[str, list[Sequence]] = {}  # those that run

    def add(self, sequence: Sequence) -> None:
        due_ns = sequence.submitted_ns + sequence.spec.priority * self._aging_ns
        sequence.order = (due_ns, sequence.arrival)
        insort(self.waiting, sequence, key=_order)

    def remove(self, sequence: Sequence) -> list[int]:
        """The references of the blocks returned pass to the caller."""
        if sequence.is_running:
            self.stop(sequence)
        else:
            self.waiting.remove(sequence)
        self.drop_import(sequence)
        table, sequence.block_table = sequence.block_table, []
        return table

    def run(self, sequence: Sequence, table: list[int]) -> None:
        """It waited; the blocks of `table` are its own from now on."""
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=_order)
        sequence.is_running = True
        sequence.block_table = table
        self._of_request.setdefault(sequence.request_id, []).append(sequence)
        self.drop_import(sequence)

    def stop(self, sequence: Sequence) -> None:
        """It no longer runs; the caller says where it and its blocks go."""
        self.running.remove(sequence)
        sequence.is_running = False
        siblings = self._of_request[sequence.request_id]
        siblings.remove(sequence)
        if not siblings:
            del self._of_request[sequence.request_id]
        if sequence.num_told_blocks is not None:
            self.closed.append(sequence.sequence_id)
            sequence.num_told_blocks = None

    def take_closed(self) -> tuple[str, ...]:
        """The caller tells the runner."""
        closed, self.closed = tuple(self.closed), []
        return closed

    def sibling(self, sequence: Sequence) -> Sequence | None:
        """One that runs whose first tokens are all the tokens of this one."""
        if sequence.num_output_tokens or sequence.wants_prompt_logprobs:
            return None
        spec = sequence.spec
        for other in self._of_request.get(sequence.request_id, ()):
            same = other.spec.prompt_token_ids == spec.prompt_token_ids
            if same and other.spec.salt == spec.salt and other.spec.adapter == spec.adapter:
                return other
        return None

    def drop_import(self, sequence: Sequence) -> None:
        if sequence.import_id:
            self._blocks.release(sequence.import_id)
            sequence.import_id = ""

    def drop_last_import(self, keep: Sequence | None = None) -> bool:
        """Let the last who waits lose the hold on its imported blocks; False when none has one."""
        for sequence in reversed(self.waiting):
            if sequence.import_id and sequence is not keep:
                self.drop_import(sequence)
                return True
        return False


def _order(sequence: Sequence) -> tuple[int, int]:
    return sequence.order
