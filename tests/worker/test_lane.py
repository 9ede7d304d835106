"""Lanes: which jobs are whose, how many a claim asks for, and what is claimed ahead."""

import asyncio
import heapq
import itertools
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backfill.worker import QueueConfig
from backfill.worker.lane import (
    AHEAD_SECONDS,
    CLAIM_MOST,
    CLAIM_WHILE_ADDED,
    PAUSE_SECONDS,
    STALE_SECONDS,
    Lane,
    gaps,
    make_lanes,
)

LOWEST, HIGHEST = -32768, 32767
NOW = datetime(2030, 1, 1, tzinfo=UTC)
priorities = st.integers(LOWEST, HIGHEST)
ranges = st.lists(st.tuples(priorities, priorities).map(lambda pair: (min(pair), max(pair))), max_size=6)


def a_lane(concurrency: int = 4, **settings: Any) -> Lane:
    return make_lanes([QueueConfig("lane", concurrency, **settings)])[0]


def a_job(
    job_id: int, priority: int = 0, seconds: int = 0, claimed_at: float | None = None, queue_id: int | None = None
) -> Any:
    """What a lane needs of a claimed job."""
    due = NOW + timedelta(seconds=seconds)
    claimed = time.monotonic() if claimed_at is None else claimed_at
    return SimpleNamespace(id=job_id, priority=priority, due=due, claimed_at=claimed, queue_id=queue_id)


def drain(lane: Lane) -> list[int]:
    taken = []
    while (job := lane.take()) is not None:
        taken.append(job.id)
    return taken


async def waiting(lane: Lane, count: int) -> list[asyncio.Task[None]]:
    """Slots that wait for a job."""
    tasks = [asyncio.create_task(lane.wait()) for _ in range(count)]
    await asyncio.sleep(0)
    assert lane.idle == count
    return tasks


async def ended(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def test_queue_lanes_come_first_in_any_order_of_the_configuration() -> None:
    configs = [
        QueueConfig.default_queue(),
        QueueConfig.named_queue("b"),
        QueueConfig.priority_queue("fast", 1, -9, -1),
        QueueConfig.named_queue("a"),
    ]
    lanes = make_lanes(configs)
    assert [lane.config.name for lane in lanes] == ["b", "a", "default", "fast"]
    assert [lane.number for lane in lanes] == [0, 1, 2, 3]
    assert [lane.pieces for lane in lanes] == [(), (), ((LOWEST, HIGHEST),), ()]


def test_the_first_lane_that_names_a_priority_has_it() -> None:
    lanes = make_lanes(
        [
            QueueConfig.priority_queue("middle", 1, -5, 5),
            QueueConfig.priority_queue("around", 1, -10, 10),
            QueueConfig.default_queue(1),
        ]
    )
    assert [lane.pieces for lane in lanes] == [
        ((-5, 5),),
        ((-10, -6), (6, 10)),
        ((LOWEST, -11), (11, HIGHEST)),
    ]


@given(ranges, priorities)
def test_each_priority_belongs_to_the_first_range_around_it_or_to_a_gap(
    given_ranges: list[tuple[int, int]], priority: int
) -> None:
    lanes = make_lanes(
        [QueueConfig(str(n), 1, priority_range=bounds) for n, bounds in enumerate(given_ranges)]
        + [QueueConfig.named_queue("q")]
    )
    takers = [lane.config.name for lane in lanes for low, high in lane.pieces for _ in range(low <= priority <= high)]
    first = next((str(n) for n, (low, high) in enumerate(given_ranges) if low <= priority <= high), None)
    assert takers == ([] if first is None else [first])
    assert any(low <= priority <= high for low, high in gaps(lanes)) == (first is None)


def test_gaps() -> None:
    assert gaps(make_lanes([QueueConfig.default_queue()])) == []
    assert gaps(make_lanes([QueueConfig.named_queue("q")])) == [(LOWEST, HIGHEST)]
    two = [QueueConfig.priority_queue("a", 1, -10, -1), QueueConfig.priority_queue("b", 1, 1, HIGHEST)]
    assert gaps(make_lanes(two)) == [(LOWEST, -11), (0, 0)]


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 3)), max_size=30))
def test_what_is_buffered_runs_by_priority_then_time_then_id(jobs: list[tuple[int, int]]) -> None:
    lane = a_lane()
    lane.put([a_job(job_id, priority, seconds) for job_id, (priority, seconds) in enumerate(jobs)])
    keys = [(priority, seconds, job_id) for job_id, (priority, seconds) in enumerate(jobs)]
    assert drain(lane) == [job_id for _, _, job_id in sorted(keys)]


async def test_at_first_a_claim_is_for_idle_slots_alone() -> None:
    lane = a_lane(4)
    assert lane.wanted() == (0, 0)
    tasks = await waiting(lane, 3)
    assert lane.wanted() == (3, 3)
    lane.put([a_job(1)])
    assert lane.wanted() == (2, 2)
    await ended(tasks)


async def test_putting_jobs_wakes_as_many_slots() -> None:
    lane = a_lane(4)
    tasks = await waiting(lane, 3)
    lane.put([a_job(1), a_job(2)])
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (sum(task.done() for task in tasks), lane.idle) == (2, 1)
    await ended(tasks)
    assert lane.idle == 0


async def test_a_lane_that_got_less_than_it_has_room_for_waits_for_a_reason() -> None:
    lane = a_lane(4)
    tasks = await waiting(lane, 4)
    idle, wanted = lane.wanted()
    lane.claimed(idle, wanted, [])
    assert not lane.hungry
    assert lane.wanted() == (0, 0)
    lane.look_again()
    assert lane.wanted() == (4, 4)
    await ended(tasks)


async def test_a_reason_that_comes_while_a_claim_is_under_way_stands() -> None:
    lane = a_lane(4)
    tasks = await waiting(lane, 4)
    idle, wanted = lane.wanted()
    lane.look_again()
    lane.claimed(idle, wanted, [])
    assert lane.hungry
    await ended(tasks)


def test_quick_jobs_are_claimed_ahead_slow_ones_are_not() -> None:
    quick, slow = a_lane(10), a_lane(10)
    quick.ran(0.0001)
    slow.ran(0.2)
    idle, wanted = quick.wanted()
    assert (idle, wanted > 100) == (0, True)
    assert slow.wanted() == (0, 0)


def test_one_slow_run_among_quick_ones_ends_the_claiming_ahead_for_a_hundred_runs() -> None:
    lane = a_lane(2)
    lane.ran(0.0001)
    assert lane.wanted()[1] > 0
    lane.ran(0.1)
    for _ in range(50):
        lane.ran(0.0001)
    assert lane.wanted() == (0, 0)
    for _ in range(300):
        lane.ran(0.0001)
    assert lane.wanted()[1] > 0


def test_no_more_is_claimed_ahead_than_is_buffered_already_allows() -> None:
    lane = a_lane(10)
    lane.ran(0.0001)
    wanted = lane.wanted()[1]
    lane.put([a_job(n) for n in range(wanted)])
    assert lane.wanted() == (0, 0)
    while lane.buffered > lane.low_mark:
        lane.take()
    assert lane.wanted()[1] == wanted - lane.buffered


def test_a_lane_of_a_queue_claims_nothing_ahead() -> None:
    lane = a_lane(2, queue_name="q")
    lane.ran(0.0)
    assert lane.wanted() == (0, 0)


def test_no_claiming_ahead_from_what_seems_empty() -> None:
    lane = a_lane(10)
    lane.ran(0.0001)
    idle, wanted = lane.wanted()
    lane.claimed(idle, wanted, [a_job(n) for n in range(wanted - 1)])
    assert lane.hungry
    assert lane.wanted() == (0, 0)
    lane.look_again()
    assert lane.wanted()[1] > 0


async def test_an_idle_lane_claims_ahead_once_its_slots_are_filled() -> None:
    """A small claim is quicker, and mostly there is one job."""
    lane = a_lane(4)
    tasks = await waiting(lane, 4)
    lane.ran(0.0001)
    lane.claimed(4, 4, [a_job(0)])
    lane.look_again()
    assert lane.wanted() == (4, 4)
    jobs = [a_job(n) for n in range(4)]
    lane.claimed(4, 4, jobs)
    lane.put(jobs)
    idle, wanted = lane.wanted()
    assert idle == 0
    assert wanted > 100
    await ended(tasks)


def test_claims_are_smaller_while_jobs_are_added() -> None:
    """An urgent one may be among them, and has to wait for the claim that is under way."""
    lane = a_lane(24)
    lane.ran(0.0)
    assert lane.wanted()[1] == CLAIM_MOST
    lane.note_added()
    assert lane.wanted()[1] == CLAIM_WHILE_ADDED


def test_stale_jobs_take_the_rest_of_the_buffer_with_them_and_end_the_claiming_ahead() -> None:
    lane = a_lane(10)
    lane.ran(0.0001)
    now = time.monotonic()
    lane.put([a_job(1, claimed_at=now), a_job(2, claimed_at=now - STALE_SECONDS)])
    assert lane.take_stale(now - 0.01) == []
    assert {job.id for job in lane.take_stale(now + 0.01)} == {1, 2}
    assert lane.buffered == 0
    assert lane.wanted() == (0, 0)
    assert lane.take_stale(now + PAUSE_SECONDS + 1) == []


def test_nothing_is_stale_that_idle_slots_are_about_to_take() -> None:
    """As when the process was frozen for a moment: a job of a queue that was handed back then could be overtaken by its next."""
    lane = a_lane(2)
    lane.idle = 2
    old = time.monotonic() - 2 * STALE_SECONDS
    lane.put([a_job(1, claimed_at=old), a_job(2, claimed_at=old)])
    assert lane.take_stale(time.monotonic()) == []
    lane.put([a_job(3)])
    assert len(lane.take_stale(time.monotonic())) == 3


@pytest.mark.parametrize("count", [0, 3])
def test_take_all_leaves_nothing(count: int) -> None:
    lane = a_lane()
    lane.put([a_job(n) for n in range(count)])
    assert sorted(job.id for job in lane.take_all()) == list(range(count))
    assert lane.take() is None


def test_what_waits_for_a_slot_may_be_overtaken_by_what_is_more_urgent() -> None:
    lane = a_lane(2, priority_range=(-10, 10))
    lane.look_again()
    assert not lane.may_be_overtaken
    lane.put([a_job(1, 3), a_job(2, 5)])
    lane.look_again()
    assert lane.may_be_overtaken
    assert lane.overtaking() == [(-10, 2)]
    assert not lane.may_be_overtaken
    lane.put([a_job(3, -10)])
    assert lane.overtaking() == []


async def test_what_idle_slots_are_about_to_take_may_not() -> None:
    lane = a_lane(2)
    tasks = await waiting(lane, 2)
    lane.put([a_job(1, 3), a_job(2, 5)])
    lane.look_again()
    assert not lane.may_be_overtaken
    await ended(tasks)


def test_a_queue_that_became_free_is_no_reason_to_claim_ahead() -> None:
    lane = a_lane(2)
    lane.ran(0.0001)
    lane.claimed(2, 2, [a_job(1, queue_id=1), a_job(2, queue_id=2)])
    assert lane.hungry
    assert lane.wanted() == (0, 0), "there are none but queued jobs"
    lane.look_again(ahead=False)
    assert lane.wanted() == (0, 0)
    lane.look_again()
    assert lane.wanted()[1] > 0


class Simulated:
    """A lane with an endless backlog, on a clock of its own: what its decisions come to.

    Args:
        slots: Slots of the lane.
        run: Seconds that a handler waits for something.
        claim: Seconds that a claim takes, whatever it brings.
        overhead: Seconds of the loop that each job takes.
    """

    def __init__(self, slots: int, run: float, claim: float, overhead: float) -> None:
        self.lane = a_lane(slots)
        self.slots, self.run, self.claim, self.overhead = slots, run, claim, overhead
        self.now = 0.0
        self.busy: list[float] = []
        self.claims_end: float | None = None
        self.asked = (0, 0)
        self.ids = itertools.count()
        self.started: list[float] = []
        self.waits: list[float] = []

    def go_on(self, until: float) -> None:
        while self.now < until:
            self._end_what_is_over()
            if self.claims_end is None:
                self._begin_a_claim()
            if len(self.busy) < self.slots and (job := self.lane.take()) is not None:
                self._begin(job)
            else:
                nexts = [*self.busy[:1], *([] if self.claims_end is None else [self.claims_end])]
                self.now = max(self.now, min(nexts, default=until))

    def _end_what_is_over(self) -> None:
        while self.busy and self.busy[0] <= self.now:
            heapq.heappop(self.busy)
            self.lane.ran(self.run)
        if self.claims_end is not None and self.claims_end <= self.now:
            idle, wanted = self.asked
            jobs = [a_job(next(self.ids), claimed_at=self.now) for _ in range(wanted)]
            self.lane.put(jobs)
            self.lane.claimed(idle, wanted, jobs)
            self.claims_end = None

    def _begin_a_claim(self) -> None:
        self.lane.idle = self.slots - len(self.busy)
        self.asked = self.lane.wanted()
        if self.asked[1]:
            self.claims_end = self.now + self.claim

    def _begin(self, job: Any) -> None:
        self.started.append(self.now)
        self.waits.append(self.now - job.claimed_at)
        self.now += self.overhead
        heapq.heappush(self.busy, self.now + self.run)


@given(
    slots=st.integers(1, 100),
    run=st.sampled_from([0.0, 0.0001, 0.001, 0.005, 0.03]),
    claim=st.sampled_from([0.0005, 0.006, 0.02]),
)
@settings(max_examples=25, deadline=None)
def test_slots_are_kept_busy_and_no_job_waits_for_one(slots: int, run: float, claim: float) -> None:
    """What is claimed ahead starts within milliseconds; and claims follow each other as fast as the slots can use them."""
    simulated = Simulated(slots, run, claim, overhead=0.000_006)
    simulated.go_on(until=0.2)
    assert max(simulated.waits) <= 2 * AHEAD_SECONDS
    settled = [at for at in simulated.started if at > 0.1]
    rate = (len(settled) + slots) / (simulated.now - 0.1)  # all slots may begin just after the end
    by_claims = CLAIM_MOST / claim  # claims of the greatest size, back to back
    by_slots = slots / (run + slots * simulated.overhead)
    one_by_one = slots / (run + claim + slots * simulated.overhead)
    ahead = AHEAD_SECONDS / claim  # how much of a claim's time is covered by what may be claimed ahead
    assert rate >= 0.9 * max(one_by_one, min(by_claims, by_slots) * min(1.0, ahead) / 2)
    if run == 0.0 and claim <= 0.006:
        assert rate >= 0.9 * min(by_claims, by_slots), "no time between claims"
