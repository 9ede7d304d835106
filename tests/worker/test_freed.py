"""What is remembered of queues that were freed until the next round of claims."""

from tests.worker.test_lane import a_job, a_lane

from backfill.worker.freed import FreedQueues


def test_a_queue_that_was_freed_twice_is_asked_for_once() -> None:
    """Asked for behind each of the two jobs, it could give two: and one runs at a time."""
    lane = a_lane()
    freed = FreedQueues([lane], is_used=True)
    lane.hungry, lane.idle = False, 4
    parked, later, other = a_job(1, queue_id=7), a_job(2, queue_id=7), a_job(3, queue_id=8)
    assert freed.note([parked])
    assert freed.note([later, other])
    assert freed.take() == ([later, other], True)
    assert freed.take() == ([], True)
