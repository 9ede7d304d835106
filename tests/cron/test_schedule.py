"""The scheduler on a real database, with a clock that the test sets (contract section 4.4)."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

import pytest
from tests.cron.conftest import DAY, HOUR, MINUTE, Cron, at
from tests.support.until import until

from backfill import CronItem
from backfill.cron import CronMoment, CronScheduler
from backfill.db import DRIVER_ERRORS
from backfill.errors import DatabaseError
from backfill.hooks import BeforeJobSchedule, Continue, CronJobScheduled, CronTick, Fail, HookRegistry, Skip

START = at("2024-01-15T12:00:30")
SECOND = timedelta(seconds=1)


async def through(scheduler: CronScheduler, start: datetime, end: datetime, step: timedelta = MINUTE) -> None:
    """Passes from a time to another, as a loop makes them."""
    while start <= end:
        await scheduler.run_once(start)
        start += step


# -- becoming known -------------------------------------------------------------------------------------------------------


async def test_c_048_r_67_a_new_item_is_registered_and_makes_no_job(cron: Cron) -> None:
    done = await cron.scheduler("* * * * * task ?id=mine&fill=1d").run_once(START)
    assert done.scheduled == []
    assert await cron.known() == {"mine": (START, None)}
    assert await cron.jobs() == []


async def test_an_item_that_is_known_keeps_what_is_known_of_it(cron: Cron) -> None:
    await cron.know("task", at("2020-01-01"), at("2024-01-15T11:00"))
    await cron.know("gone", at("2020-01-01"))
    await cron.scheduler("0 * * * * task").run_once(START)
    assert await cron.known() == {
        "gone": (at("2020-01-01"), None),
        "task": (at("2020-01-01"), at("2024-01-15T11:00")),
    }


# -- a running scheduler --------------------------------------------------------------------------------------------------


async def test_c_050_a_run_is_scheduled_at_its_minute_and_once(cron: Cron) -> None:
    scheduler = cron.scheduler("0 */4 * * * task {a: 1}")
    await through(scheduler, START, at("2024-01-15T15:59:59"), 20 * MINUTE)
    await scheduler.run_once(at("2024-01-15T15:59:59.999"))
    assert await cron.jobs() == []
    done = await scheduler.run_once(at("2024-01-15T16:00:00.001"))
    assert [(run.identifier, run.tick, run.backfilled) for run in done.scheduled] == [
        ("task", at("2024-01-15T16:00"), False)
    ]
    before = cron.opened
    assert (await scheduler.run_once(at("2024-01-15T16:00:01"))).scheduled == []
    assert (await scheduler.run_once(at("2024-01-15T16:30:01"))).scheduled == []
    assert cron.opened == before  # nothing is due: nothing is asked
    assert await cron.jobs() == [("task", "15 16:00", "2024-01-15T16:00:00.000Z", False)]
    assert (await cron.known())["task"] == (START, at("2024-01-15T16:00"))


async def test_the_minute_of_the_start_is_one_if_it_has_just_begun(cron: Cron) -> None:
    await cron.scheduler("* * * * * exact").run_once(at("2024-01-15T12:00:00"))
    await cron.scheduler("* * * * * later").run_once(at("2024-01-15T12:00:00.001"))
    assert await cron.times() == ["15 12:00"]


async def test_a_job_has_all_that_its_item_says(cron: Cron) -> None:
    line = "* * * * * task ?id=mine&max=3&queue=q&jobKey=k&jobKeyMode=preserve_run_at&priority=-7 {a: {b: 1}, _cron: 5}"
    await through(cron.scheduler(line), START, START + MINUTE)
    (row,) = await cron.rows(
        "select tasks.identifier, queue_name, run_at, max_attempts, key, priority, flags, payload::text, attempts"
        " from graphile_worker._private_jobs as jobs join graphile_worker._private_tasks as tasks on tasks.id = task_id"
        " join graphile_worker._private_job_queues as queues on queues.id = job_queue_id"
    )
    payload = '{"a":{"b":1},"_cron":{"ts":"2024-01-15T12:01:00.000Z","backfilled":false}}'
    assert tuple(row) == ("task", "q", at("2024-01-15T12:01"), 3, "k", -7, None, payload, 0)


async def test_what_an_item_does_not_say_is_graphile_workers_default(cron: Cron) -> None:
    await through(cron.scheduler("* * * * * task"), START, START + MINUTE)
    (row,) = await cron.rows(
        "select max_attempts, priority, job_queue_id, key, flags from graphile_worker._private_jobs"
    )
    assert tuple(row) == (25, 0, None, None, None)


async def test_the_jobs_of_a_minute_are_in_the_order_of_the_items(cron: Cron) -> None:
    scheduler = cron.scheduler("* * * * * c\n* * * * * a\n1 * * * * b\n* * * * * d")
    await scheduler.run_once(START)
    done = await scheduler.run_once(START + MINUTE)
    assert [run.identifier for run in done.scheduled] == ["c", "a", "b", "d"]
    assert [task for task, *_ in await cron.jobs()] == ["c", "a", "b", "d"]


async def test_c_051_a_clock_set_back_and_forward_schedules_nothing_again(cron: Cron) -> None:
    scheduler = cron.scheduler("0 16 * * * task")
    await through(scheduler, at("2024-01-15T15:58:30"), at("2024-01-15T16:00:30"))
    for now in ("15:30:00", "15:59:59", "16:00:01", "14:00:00", "17:00:00"):
        await scheduler.run_once(at(f"2024-01-15T{now}"))
    assert await cron.times() == ["15 16:00"]


async def test_c_052_jitter_around_a_minute_neither_loses_nor_doubles_it(cron: Cron) -> None:
    scheduler = cron.scheduler("* * * * * task")
    await scheduler.run_once(at("2024-01-15T11:59:30"))
    for now in ("11:59:59.900", "12:00:00.010", "11:59:59.990", "12:00:00.020", "11:59:58", "12:00:01", "12:01:00.001"):
        await scheduler.run_once(at(f"2024-01-15T{now}"))
    assert await cron.times() == ["15 12:00", "15 12:01"]


async def test_c_053_with_a_key_the_next_run_takes_the_place_of_one_that_has_not_begun(cron: Cron) -> None:
    scheduler = cron.scheduler("* * * * * task ?jobKey=k")
    await through(scheduler, START, START + MINUTE)
    (first,) = await cron.rows("select id, run_at from graphile_worker._private_jobs")
    await scheduler.run_once(START + 2 * MINUTE)
    (second,) = await cron.rows("select id, run_at from graphile_worker._private_jobs")
    assert (first["id"], first["run_at"] + MINUTE) == (second["id"], second["run_at"])
    assert [ts for _, _, ts, _ in await cron.jobs()] == ["2024-01-15T12:02:00.000Z"]


async def test_c_053_a_key_whose_job_runs_gets_a_successor(cron: Cron) -> None:
    scheduler = cron.scheduler("* * * * * task ?jobKey=k")
    await through(scheduler, START, START + MINUTE)
    await cron.rows("update graphile_worker._private_jobs set locked_at = now(), locked_by = 'w/1'")
    await scheduler.run_once(START + 2 * MINUTE)
    assert await cron.times() == ["15 12:01", "15 12:02"]


async def test_c_053_a_claim_at_the_moment_of_the_add_does_not_lose_the_job(cron: Cron) -> None:
    """Functions that Node installed give a row of nulls then; here they do so the first time."""
    await cron.rows("create sequence public.calls")
    await cron.rows("alter function graphile_worker.add_job rename to add_job_to_its_end")
    await cron.rows(
        "create function graphile_worker.add_job(identifier text, payload json default null, queue_name text default null,"
        " run_at timestamptz default null, max_attempts integer default null, job_key text default null,"
        " priority integer default null, flags text[] default null, job_key_mode text default 'replace')"
        " returns graphile_worker._private_jobs language plpgsql as $$ begin"
        " if nextval('public.calls') < 4 then return null; end if;"
        " return graphile_worker.add_job_to_its_end($1, $2, $3, $4, $5, $6, $7, $8, $9); end $$"
    )
    scheduler = cron.scheduler("* * * * * task ?jobKey=k&queue=q&priority=3&max=2 {a: 1}")
    await scheduler.run_once(START)
    (done,) = (await scheduler.run_once(START + MINUTE)).scheduled
    (row,) = await cron.rows(
        "select id, key, priority, max_attempts, run_at, payload->>'a' from graphile_worker._private_jobs"
    )
    assert tuple(row) == (done.job_id, "k", 3, 2, at("2024-01-15T12:01"), "1")


async def test_a_key_that_is_claimed_anew_each_time_is_tried_again_later(cron: Cron) -> None:
    await cron.rows("alter function graphile_worker.add_job rename to add_job_to_its_end")
    await cron.rows(
        "create function graphile_worker.add_job(identifier text, payload json default null, queue_name text default null,"
        " run_at timestamptz default null, max_attempts integer default null, job_key text default null,"
        " priority integer default null, flags text[] default null, job_key_mode text default 'replace')"
        " returns graphile_worker._private_jobs language plpgsql as 'begin return null; end'"
    )
    scheduler = cron.scheduler("* * * * * task ?jobKey=k")
    await scheduler.run_once(START)
    done = await scheduler.run_once(START + MINUTE)
    assert (done.scheduled, done.failed) == ([], {"task"})
    assert (await cron.known())["task"][1] is None
    await cron.rows("drop function graphile_worker.add_job")
    await cron.rows("alter function graphile_worker.add_job_to_its_end rename to add_job")
    assert len((await scheduler.run_once(START + MINUTE)).scheduled) == 1


async def test_c_047_a_worker_whose_clock_is_ahead_adds_jobs_that_wait_for_their_time(cron: Cron) -> None:
    ahead = await cron.connection.fetchval("select now() + interval '1 hour'")
    scheduler = cron.scheduler("* * * * * task")
    await scheduler.run_once(ahead)
    (done,) = (await scheduler.run_once(ahead + MINUTE)).scheduled
    (row,) = await cron.rows("select run_at > now() as waits, run_at from graphile_worker._private_jobs")
    assert tuple(row) == (True, done.tick)


async def test_r_69_a_clock_that_jumps_by_five_minutes_leaves_out_nothing(cron: Cron) -> None:
    scheduler = cron.scheduler("* * * * * task")
    await through(scheduler, START, START + MINUTE)
    done = await scheduler.run_once(START + 6 * MINUTE)
    assert [run.backfilled for run in done.scheduled] == [False] * 5
    assert await cron.times() == [f"15 12:0{n}" for n in range(1, 7)]


@pytest.mark.parametrize(
    ("options", "times"),
    [
        ("", ["15 17:01"]),
        ("?missed=latest", ["15 17:01"]),
        ("?fill=12m", [f"15 16:{n}" for n in range(50, 60)] + ["15 17:00", "15 17:01"]),
    ],
)
async def test_after_a_pause_of_hours_the_policy_decides(cron: Cron, options: str, times: list[str]) -> None:
    scheduler = cron.scheduler(f"* * * * * task {options}")
    await through(scheduler, START, START + MINUTE)
    done = await scheduler.run_once(START + MINUTE + 5 * HOUR)
    assert (await cron.times())[1:] == times
    assert [run.backfilled for run in done.scheduled] == [time != "15 17:01" for time in times]
    await scheduler.run_once(START + 2 * MINUTE + 5 * HOUR)
    assert (await cron.times())[1:] == [*times, "15 17:02"]


@pytest.mark.parametrize(
    ("options", "times"),
    [
        ("", []),
        ("?missed=latest", [("15 16:00", True)]),
        ("?missed=latest&fill=2h", [("15 16:00", True)]),
        ("?missed=latest&fill=30m", []),
        ("?fill=1h", []),
        ("?fill=3h", [("15 15:00", True), ("15 16:00", True)]),
    ],
)
async def test_a_pause_over_runs_that_are_hours_apart(
    cron: Cron, options: str, times: list[tuple[str, bool]], caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = cron.scheduler(f"0 13-16 * * * task {options}")
    await scheduler.run_once(START)
    await scheduler.run_once(at("2024-01-15T17:30"))
    assert [(run_at, backfilled) for _, run_at, _, backfilled in await cron.jobs()] == times
    left_out = "its runs from 2024-01-15 13:00Z to before" in caplog.text
    assert left_out == (len(times) < 4)
    caplog.clear()
    await scheduler.run_once(at("2024-01-15T17:31"))
    assert caplog.text == ""


async def test_a_run_that_is_ten_minutes_late_is_simply_done(cron: Cron) -> None:
    scheduler = cron.scheduler("0 16 * * * task")
    await scheduler.run_once(START)
    await scheduler.run_once(at("2024-01-15T16:10:00"))
    assert await cron.jobs() == [("task", "15 16:00", "2024-01-15T16:00:00.000Z", False)]


async def test_a_clock_that_was_far_ahead_blocks_nothing_that_has_not_run_since(
    cron: Cron, caplog: pytest.LogCaptureFixture
) -> None:
    scheduler = cron.scheduler("0 0 1 2 * yearly\n* * * * * busy")
    await scheduler.run_once(START)
    await scheduler.run_once(START + DAY)  # wrong
    assert await cron.times() == ["16 12:00"]
    await scheduler.run_once(START + 2 * MINUTE)
    assert "the clock was set back, from 2024-01-16 12:00Z to 2024-01-15 12:02Z" in caplog.text
    await scheduler.run_once(START + 3 * MINUTE)
    assert "cron item busy was last scheduled for 2024-01-16 12:00Z, which is in the future" in caplog.text
    await through(scheduler, at("2024-01-31T23:59:30"), at("2024-02-01T00:00:30"))
    assert await cron.times("yearly") == ["01 00:00"]


# -- after a restart ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ago", "times"), [(5 * HOUR, (1, 2)), (25 * HOUR, (6, 7))])
async def test_c_049_r_68_what_was_missed_is_made_up_for(cron: Cron, ago: timedelta, times: tuple[int, int]) -> None:
    await cron.know("task", at("2024-01-01"), START - ago)
    scheduler = cron.scheduler("0 */4 * * * task ?fill=1d")
    await scheduler.run_once(START)
    jobs = await cron.jobs()
    assert len(jobs) in times
    before = cron.opened
    await scheduler.run_once(START + SECOND)
    assert cron.opened == before
    assert all(backfilled for *_, backfilled in jobs)
    assert (await cron.known())["task"][1] == at("2024-01-15T12:00")


async def test_what_is_made_up_for_is_bounded_by_the_fill_of_each_item_and_comes_in_order(cron: Cron) -> None:
    for identifier in ("a", "b", "c", "d"):
        await cron.know(identifier, at("2024-01-15T10:00"))
    text = "0 * * * * a ?fill=1h30s\n*/30 * * * * b ?fill=1h\n0 * * * * c\n30 * * * * d ?fill=1w"
    await cron.scheduler(text).run_once(START)
    assert [(task, run_at) for task, run_at, *_ in await cron.jobs()] == [
        ("d", "15 10:30"),
        ("a", "15 11:00"),
        ("b", "15 11:30"),
        ("d", "15 11:30"),
        ("a", "15 12:00"),
        ("b", "15 12:00"),
    ]


async def test_the_minute_after_the_last_one_counts(cron: Cron) -> None:
    await cron.know("task", at("2024-01-15T11:00"), at("2024-01-15T11:58"))
    await cron.scheduler("* * * * * task ?fill=1d").run_once(START)
    assert await cron.times() == ["15 11:59", "15 12:00"]


async def test_the_minute_in_which_an_item_became_known_counts(cron: Cron) -> None:
    await cron.know("task", at("2024-01-15T11:00"))
    await cron.scheduler("0 * * * * task ?fill=1d").run_once(START)
    assert await cron.times() == ["15 11:00", "15 12:00"]


@pytest.mark.parametrize(
    ("options", "last", "times"),
    [
        ("?missed=latest", "2023-06-01T04:00", ["15 04:00"]),
        ("?missed=latest&fill=1h", "2023-06-01T04:00", []),
        ("?missed=latest&fill=1d", "2023-06-01T04:00", ["15 04:00"]),
        ("?missed=latest", "2024-01-15T04:00", []),
        ("", "2023-06-01T04:00", []),
    ],
)
async def test_the_latest_missed_run_alone(cron: Cron, options: str, last: str, times: list[str]) -> None:
    await cron.know("task", at("2020-01-01"), at(last))
    await cron.scheduler(f"0 4 * * * task {options}").run_once(START)
    assert await cron.times() == times


async def test_a_restart_in_the_middle_of_making_up_goes_on_where_it_was(cron: Cron) -> None:
    await cron.know("task", at("2024-01-15T00:00"))
    first = cron.scheduler("0 * * * * task ?fill=1d")
    first.stop()
    assert (await first.run_once(START)).scheduled == []
    await cron.scheduler("0 * * * * task ?fill=6h").run_once(START)
    assert len(await cron.jobs()) == 6
    await cron.scheduler("0 * * * * task ?fill=1d").run_once(START + MINUTE)
    assert len(await cron.jobs()) == 6


# -- several workers ------------------------------------------------------------------------------------------------------


async def test_x_07_workers_that_race_schedule_each_run_once(
    cron: Cron, more_crons: Callable[[], Awaitable[Cron]]
) -> None:
    text = "* * * * * a\n*/2 * * * * b ?jobKey=k\n* * * * * c ?fill=1h"
    schedulers = [(await more_crons()).scheduler(text) for _ in range(4)]
    told: list[str] = []
    for minute in range(8):
        passes = await asyncio.gather(*(one.run_once(START + minute * MINUTE) for one in schedulers))
        told += [run.identifier for done in passes for run in done.scheduled]
    assert await cron.times("a") == [f"15 12:0{n}" for n in range(1, 8)]
    assert await cron.times("c") == [f"15 12:0{n}" for n in range(1, 8)]
    assert await cron.times("b") == ["15 12:06"]
    assert sorted(told) == ["a"] * 7 + ["b"] * 3 + ["c"] * 7


async def test_x_07_what_another_worker_has_scheduled_is_left_alone(cron: Cron) -> None:
    """As a Node worker writes it: known_since and last_execution by its statement, the job by add_job."""
    scheduler = cron.scheduler("* * * * * task")
    await scheduler.run_once(START)
    await cron.rows(
        "update graphile_worker._private_known_crontabs set last_execution = $1", START.replace(second=0) + MINUTE
    )
    assert (await scheduler.run_once(START + MINUTE)).scheduled == []
    assert len((await scheduler.run_once(START + 2 * MINUTE)).scheduled) == 1


# -- zones ----------------------------------------------------------------------------------------------------------------


async def test_a_week_in_which_clocks_go_forward(cron: Cron) -> None:
    item = CronItem("task", "30 2 * * *", zone="Europe/Berlin")
    await through(cron.scheduler([item]), at("2024-03-29T00:00:30"), at("2024-04-02T00:00:30"))
    assert await cron.times() == ["29 01:30", "30 01:30", "31 01:00", "01 00:30"]


async def test_a_week_in_which_clocks_go_back(cron: Cron) -> None:
    items = [
        CronItem("daily", "30 2 * * *", zone="Europe/Berlin"),
        CronItem("often", "0 * * * *", zone="Europe/Berlin"),
    ]
    await through(cron.scheduler(items), at("2024-10-26T00:00:30"), at("2024-10-29T00:00:30"))
    assert await cron.times("daily") == ["26 00:30", "27 00:30", "28 01:30"]
    assert len(await cron.times("often")) == 72


# -- when something fails -------------------------------------------------------------------------------------------------


async def test_an_outage_around_a_run_does_not_lose_it(cron: Cron) -> None:
    scheduler = cron.scheduler("0 16 * * * task")
    cron.broken.append(DatabaseError("down"))
    with pytest.raises(DatabaseError):
        await scheduler.run_once(START)
    cron.broken.clear()
    await scheduler.run_once(START)
    cron.broken.append(DatabaseError("down"))
    with pytest.raises(DatabaseError):
        await scheduler.run_once(at("2024-01-15T16:00:01"))
    cron.broken.clear()
    await scheduler.run_once(at("2024-01-15T16:04:01"))
    assert await cron.times() == ["15 16:00"]


async def refuse(cron: Cron, which: str) -> None:
    """Have the database refuse some jobs, by a condition on the row `new`."""
    await cron.rows(
        "create function public.refuse() returns trigger language plpgsql as"
        " $$ begin raise exception 'not this one'; end $$"
    )
    await cron.rows(
        "create trigger refuse before insert on graphile_worker._private_jobs for each row"
        f" when ({which}) execute function public.refuse()"
    )


async def test_an_item_that_the_database_refuses_does_not_hold_up_the_others(
    cron: Cron, caplog: pytest.LogCaptureFixture
) -> None:
    await refuse(cron, "new.priority = 13")
    scheduler = cron.scheduler("* * * * * a\n* * * * * bad ?priority=13\n* * * * * b")
    await scheduler.run_once(START)
    done = await scheduler.run_once(START + MINUTE)
    assert ([run.identifier for run in done.scheduled], done.failed) == (["a", "b"], {"bad"})
    assert "cron item bad can't be scheduled for 2024-01-15 12:01Z, will be tried again: not this one" in caplog.text
    done = await scheduler.run_once(START + 2 * MINUTE)
    assert ([run.identifier for run in done.scheduled], done.failed) == (["a", "b"], {"bad"})
    await cron.rows("drop trigger refuse on graphile_worker._private_jobs")
    done = await scheduler.run_once(START + 2 * MINUTE + SECOND)
    assert [(run.identifier, run.tick.minute) for run in done.scheduled] == [("bad", 1), ("bad", 2)]


async def test_how_late_a_refused_item_is_counts_from_the_run_that_was_refused(cron: Cron) -> None:
    await refuse(cron, "new.run_at = '2024-01-15 12:03Z'")
    scheduler = cron.scheduler("* * * * * task")
    await scheduler.run_once(START)
    done = await scheduler.run_once(START + 5 * MINUTE)
    assert ([run.tick.minute for run in done.scheduled], done.failed) == ([1, 2], {"task"})
    await cron.rows("drop trigger refuse on graphile_worker._private_jobs")
    done = await scheduler.run_once(at("2024-01-15T12:12:30"))
    assert [run.tick.minute for run in done.scheduled] == list(range(3, 13))


async def test_what_is_left_out_of_a_refused_item_is_told_once(cron: Cron, caplog: pytest.LogCaptureFixture) -> None:
    await refuse(cron, "true")
    scheduler = cron.scheduler("* * * * * task")
    await scheduler.run_once(START)
    for seconds in range(3):
        assert (await scheduler.run_once(START + HOUR + seconds * SECOND)).failed == {"task"}
    assert caplog.text.count("are left out") == 1


async def test_a_connection_that_breaks_ends_the_pass_and_the_next_one_goes_on(
    cron: Cron, more_crons: Callable[[], Awaitable[Cron]]
) -> None:
    scheduler = cron.scheduler("* * * * * a\n* * * * * b")
    await scheduler.run_once(START)
    other = await more_crons()
    await other.rows("select pg_terminate_backend($1)", cron.connection.get_server_pid())
    with pytest.raises(DRIVER_ERRORS):
        await scheduler.run_once(START + MINUTE)
    cron.connection = other.connection
    assert len((await scheduler.run_once(START + MINUTE)).scheduled) == 2


async def test_a_function_that_raises_is_the_items_own_trouble(cron: Cron, caplog: pytest.LogCaptureFixture) -> None:
    def odd(moment: CronMoment) -> bool:
        if moment.minute == 1:
            raise ZeroDivisionError
        return True

    scheduler = cron.scheduler([CronItem("odd", odd), CronItem("fine", "* * * * *")])
    await scheduler.run_once(START)
    done = await scheduler.run_once(START + MINUTE)
    assert ([run.identifier for run in done.scheduled], done.failed) == (["fine"], {"odd"})
    assert "the schedule of cron item odd failed" in caplog.text


# -- hooks ----------------------------------------------------------------------------------------------------------------


async def test_r_49_the_events_of_cron(cron: Cron, more_crons: Callable[[], Awaitable[Cron]]) -> None:
    hooks = HookRegistry()
    ticks: list[CronTick] = []
    added: list[CronJobScheduled] = []
    hooks.on(CronTick, ticks.append)
    hooks.on(CronJobScheduled, added.append)
    text = "* * * * * task"
    first, second = cron.scheduler(text, hooks), (await more_crons()).scheduler(text)
    for now in (START, START + SECOND, START + MINUTE):
        await first.run_once(now)
        await second.run_once(now)
    await second.run_once(START + 2 * MINUTE)
    await first.run_once(START + 2 * MINUTE)
    minute = START.replace(second=0)
    assert [tick.timestamp for tick in ticks] == [minute, minute + MINUTE, minute + 2 * MINUTE]
    assert [item.identifier for item in ticks[0].crontabs] == ["task"]
    assert [(event.crontab.identifier, event.scheduled_at) for event in added] == [("task", minute + MINUTE)]


async def test_before_job_schedule_is_asked_about_cron_jobs_too(cron: Cron, caplog: pytest.LogCaptureFixture) -> None:
    hooks = HookRegistry()
    asked: list[BeforeJobSchedule] = []

    @hooks.on(BeforeJobSchedule)
    def decide(event: BeforeJobSchedule) -> Continue | Skip | Fail:
        asked.append(event)
        if event.identifier == "skipped":
            return Skip()
        if event.identifier == "refused":
            return Fail("never on Mondays")
        return Continue({**event.payload, "seen": True})

    text = "* * * * * kept ?queue=q {a: 1}\n* * * * * skipped\n* * * * * refused"
    scheduler, other = cron.scheduler(text, hooks), cron.scheduler(text, hooks)
    await other.run_once(START)
    with caplog.at_level(logging.INFO, "backfill.cron"):
        await through(scheduler, START, START + MINUTE)
    (row,) = await cron.rows("select payload::text from graphile_worker._private_jobs")
    assert row["payload"] == ('{"a":1,"_cron":{"ts":"2024-01-15T12:01:00.000Z","backfilled":false},"seen":true}')
    assert (asked[0].spec.run_at, asked[0].spec.queue.name, asked[0].spec.max_attempts) == (
        at("2024-01-15T12:01"),
        "q",
        25,
    )
    assert "cron item skipped is left out at 2024-01-15 12:01Z" in caplog.text
    assert "never on Mondays" in caplog.text
    assert {last for _, last in (await cron.known()).values()} == {at("2024-01-15T12:01")}
    assert (await other.run_once(START + MINUTE)).scheduled == []
    assert len(asked) == 3


# -- the loop -------------------------------------------------------------------------------------------------------------


async def test_the_loop_schedules_by_its_clock_and_stops(cron: Cron, more_crons: Callable[[], Awaitable[Cron]]) -> None:
    """The clock stands still just before a minute, and is then set past it: no pass is exact, and none needs to be."""
    now = at("2024-01-15T12:00:59.999")
    hooks = HookRegistry()
    scheduled = asyncio.Event()
    hooks.on(CronJobScheduled, lambda _: scheduled.set())
    scheduler = (await more_crons()).scheduler("* * * * * task", hooks, clock=lambda: now)
    running = asyncio.create_task(scheduler.run())
    await until(cron.known, "the item is known")
    assert await cron.jobs() == []
    now = at("2024-01-15T12:01:00.001")
    async with asyncio.timeout(30):
        await scheduled.wait()
        scheduler.stop()
        await running
    assert await cron.times() == ["15 12:01"]


async def test_the_loop_outlives_an_outage(
    cron: Cron, more_crons: Callable[[], Awaitable[Cron]], caplog: pytest.LogCaptureFixture
) -> None:
    own = await more_crons()
    own.broken.append(DatabaseError("the server is away"))
    scheduler = own.scheduler("* * * * * task", clock=lambda: at("2024-01-15T12:00:00.500"))
    running = asyncio.create_task(scheduler.run())
    said = "cannot schedule cron items now, will try again: the server is away"
    await until(lambda: caplog.text.count(said) >= 2, "it has tried twice")
    own.broken.clear()
    await until(cron.known, "the item is known")
    scheduler.stop()
    async with asyncio.timeout(30):
        await running
