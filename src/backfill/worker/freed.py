"""Queues that the worker's own releases have freed: whether their next jobs are asked for alone, by ``claim_next_of_queues``.

They are while there is one lane, which knows of nothing else that waits: then only jobs of these queues can have become free. And not
after such a question was in vain, until a claim finds that a freed queue had a next job: where each queue has one, it would be one
question more for each.
"""

from collections.abc import Sequence

from backfill.worker.claimed import Claimed
from backfill.worker.lane import Lane


class FreedQueues:
    """Remembers them until the next round of claims.

    Attributes:
        lane: The lane that their next jobs go to; None if they are never asked for alone.
    """

    def __init__(self, lanes: Sequence[Lane], *, is_used: bool) -> None:
        """Make it.

        Args:
            lanes: The worker's lanes.
            is_used: Whether they may be asked for alone at all.
        """
        one = len(lanes) == 1 and len(lanes[0].pieces) == 1
        self.lane = lanes[0] if is_used and one else None
        self._done: dict[int | None, Claimed] = {}  # by queue: one may be freed twice before it is asked for
        self._others: set[int | None] = set()
        self._is_likely = True

    def note(self, done: Sequence[Claimed]) -> bool:
        """Remember the jobs whose queues were freed; False if these are to be looked for among all that waits."""
        if self.lane is None or not self._is_likely or self.lane.hungry:
            self._others = {job.queue_id for job in done}
            return False
        self._done.update((job.queue_id, job) for job in done)
        return True

    def take(self) -> tuple[list[Claimed], bool]:
        """The jobs remembered, one of each queue, and whether there is still nothing else to look for, and an idle slot for each."""
        done, self._done = list(self._done.values()), {}
        lane = self.lane
        return done, lane is not None and not lane.hungry and len(done) <= lane.idle - lane.buffered

    def asked(self, done: Sequence[Claimed], count: int) -> bool:
        """Note how many next jobs were found; whether these are all."""
        self._is_likely = count == len(done)
        if not self._is_likely:
            self._others = {job.queue_id for job in done}
        return self._is_likely

    def claimed(self, queue_id: int | None) -> None:
        """Note the queue of a job that a claim brought which looked at all that waits."""
        self._is_likely |= queue_id in self._others
