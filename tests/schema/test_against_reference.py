"""The functions against the reference, in random sequences, on jobs that workers have claimed, failed and used up meanwhile."""

import json
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from tests.schema.reference import Model, RefusedError, Row, available

if TYPE_CHECKING:
    from tests.schema.conftest import Heard, Sql

TIMES = [None, datetime(2001, 2, 3, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)]
KEYS = [None, "a", "b", "c"]
WORKERS = ["w1", "w2"]
PAYLOADS = [{}, None, 7, [], [1], [{"x": [2]}], {"a": [1]}, "text"]
STATE = """
select jobs.id, tasks.identifier as task, queues.queue_name as queue, jobs.payload::text, jobs.priority, jobs.run_at,
       jobs.attempts, jobs.max_attempts, jobs.last_error, jobs.created_at, jobs.updated_at, jobs.key, jobs.locked_at,
       jobs.locked_by, jobs.revision, jobs.flags::text, jobs.is_available
from {source} as jobs
left join graphile_worker._private_tasks as tasks on tasks.id = jobs.task_id
left join graphile_worker._private_job_queues as queues on queues.id = jobs.job_queue_id
"""
SPECS = (
    "array(select row(spec.identifier, coalesce(spec.payload, 'null'), spec.queue_name, spec.run_at, spec.max_attempts,"
    " spec.job_key, spec.priority, spec.flags)::graphile_worker.job_spec"
    " from json_populate_recordset(null::graphile_worker.job_spec, {0}::text::json) with ordinality as spec"
    " order by spec.ordinality)"
)

STEPS = 300
SPOILED: list[Row] = [{"max_attempts": 0}, {"job_key": ""}, {"flags": ["f", None]}]
MODES = [None, "replace", "replace", "preserve_run_at", "preserve_run_at", "unsafe_dedupe", "unsafe_dedupe", "nonsense"]
OPERATIONS = {
    "add_job": 8,
    "add_jobs": 5,
    "remove_job": 3,
    "complete_jobs": 1,
    "permanently_fail_jobs": 2,
    "reschedule_jobs": 2,
    "force_unlock_workers": 1,
    "claim": 9,
    "fail": 3,
    "exhaust": 2,
}


class World:
    """The schema and the model of it, and one operation on both."""

    def __init__(self, sql: "Sql", seed: int) -> None:
        self.sql, self.model, self.chance = sql, Model(), random.Random(seed)
        self.refused = 0

    async def step(self) -> str:
        (name,) = self.chance.choices(list(OPERATIONS), list(OPERATIONS.values()))
        before = self.model.copy()
        try:
            async with self.sql.connection.transaction():
                await getattr(self, name)(await self.sql.value("select now()"))
        except RefusedError:
            self.model = before
            self.refused += 1
        assert await self.rows() == self.model.jobs, name
        return name

    def spec(self) -> Row:
        pick = self.chance.choice
        return {
            "identifier": pick(["t", "u", ""]),
            "payload": pick(PAYLOADS),
            "queue_name": pick([None, None, "q", ""]),
            "run_at": pick(TIMES),
            "max_attempts": pick([None, 1, 2, 32767]),
            "job_key": pick(KEYS),
            "priority": pick([None, 0, -32768]),
            "flags": pick([None, [], ["f"], ["f", "g", "f"]]),
        }

    def spoiled(self) -> Row:
        """Now and then one value that is refused."""
        return self.chance.choice(SPOILED) if self.chance.random() < 0.08 else {}

    def ids(self) -> list[int]:
        """Some of the jobs, one twice, and one that is not there."""
        several = self.chance.choices(sorted(self.model.jobs), k=self.chance.randint(1, 4)) if self.model.jobs else []
        return [*several, *several[:1], 999_999]

    def one(self, where: Callable[[Row], bool]) -> int | None:
        numbers = [number for number, row in sorted(self.model.jobs.items()) if where(row)]
        return self.chance.choice(numbers) if numbers else None

    async def rows(self) -> dict[int, Row]:
        found = await self.sql.rows(STATE.format(source="graphile_worker._private_jobs"))
        rows = {}
        for row in found:
            rows[row["id"]] = python(row)
            assert rows[row["id"]].pop("is_available") == available(rows[row["id"]])
        return rows

    async def call(self, call: str, *args: Any, expect: Callable[[], list[Any]]) -> None:
        """Call a function on both; what comes back must be the same, and in the same order where new rows come."""
        try:
            expected = expect()
        except RefusedError as refused:
            with pytest.raises(asyncpg.PostgresError) as caught:
                await self.sql.rows(STATE.format(source=f"graphile_worker.{call}"), *args)
            state = caught.value.sqlstate
            if state in refused.states:
                raise
            raise AssertionError(f"{call} ended with {state}, not one of {refused.states}") from None
        found = await self.sql.rows(STATE.format(source=f"graphile_worker.{call}"), *args)
        given_back = [None if row["id"] is None else python(row) for row in found]
        for row in given_back:
            if row is not None:
                row.pop("is_available")
        if not call.startswith("add_"):
            given_back.sort(key=repr)
            expected.sort(key=repr)
        else:
            # Names that the function itself has just made are not to be seen by the statement that called it.
            names = [{"task": row["task"], "queue": row["queue"]} for row in expected]
            given_back = [row and row | name for row, name in zip(given_back, names, strict=True)]
        assert given_back == expected, call
        if call.startswith("add_"):
            self.model.jobs.update((row["id"], ours) for row, ours in zip(found, expected, strict=True))

    async def add_job(self, now: datetime) -> None:
        spec, mode = self.spec() | self.spoiled(), self.chance.choice(MODES)
        names = {"max_attempts": "::int", "priority": "::int", "payload": "::text::json", "flags": "::text[]"}
        arguments = ", ".join(f"{name} => ${n}{names.get(name, '')}" for n, name in enumerate(spec, 1))
        values = [json.dumps(value) if name == "payload" else value for name, value in spec.items()]
        call = f"add_job({arguments}, job_key_mode => ${len(spec) + 1})"
        await self.call(call, *values, mode, expect=lambda: list(self.model.add_job(now, spec, mode)))

    async def add_jobs(self, now: datetime) -> None:
        specs = [self.spec() for _ in range(self.chance.randint(0, 4))]
        if len({spec["job_key"] for spec in specs if spec["job_key"]}) < sum(bool(spec["job_key"]) for spec in specs):
            # Mostly different keys: the same twice is refused.
            specs = (
                specs if self.chance.random() < 0.2 else [spec | {"job_key": None} for spec in specs[1:]] + specs[:1]
            )
        specs = [spec | self.spoiled() for spec in specs]
        text, preserve = json.dumps(specs, default=datetime.isoformat), self.chance.choice([True, False, None])
        expected = self.model.add_jobs
        await self.call(
            f"add_jobs({SPECS.format('$1')}, $2)", text, preserve, expect=lambda: list(expected(now, specs, preserve))
        )

    async def remove_job(self, now: datetime) -> None:
        key = self.chance.choice(KEYS)
        await self.call("remove_job($1)", key, expect=lambda: list(self.model.remove_job(now, key)))

    async def complete_jobs(self, now: datetime) -> None:
        ids = self.ids()
        await self.call("complete_jobs($1)", ids, expect=lambda: list(self.model.complete_jobs(now, ids)))

    async def permanently_fail_jobs(self, now: datetime) -> None:
        ids, message = self.ids(), self.chance.choice([None, "given up", ""])
        expected = self.model.permanently_fail_jobs
        await self.call("permanently_fail_jobs($1, $2)", ids, message, expect=lambda: list(expected(now, ids, message)))

    async def reschedule_jobs(self, now: datetime) -> None:
        pick, ids = self.chance.choice, self.ids()
        changes = {
            "run_at": pick(TIMES),
            "priority": pick([None, 5]),
            "attempts": pick([None, 0, 2, -1]),
            "max_attempts": pick([None, None, None, 1, 9, 0]),
        }
        arguments = ", ".join(f"{name} => ${n}" for n, name in enumerate(changes, 2))
        expected = self.model.reschedule_jobs
        await self.call(
            f"reschedule_jobs($1, {arguments})",
            ids,
            *changes.values(),
            expect=lambda: list(expected(now, ids, **changes)),
        )

    async def force_unlock_workers(self, _now: datetime) -> None:
        workers = self.chance.choices([*WORKERS, "w3"], k=self.chance.randint(0, 2))
        self.model.force_unlock_workers(workers)
        await self.sql.rows("select graphile_worker.force_unlock_workers($1)", workers)

    # Workers, by direct updates.

    async def claim(self, now: datetime) -> None:
        number = self.one(available)
        if number is None:
            return
        at, by = now - timedelta(minutes=self.chance.choice([0, 0, 239, 241])), self.chance.choice(WORKERS)
        self.model.claim(number, at, by)
        await self.sql.run(
            "update graphile_worker._private_jobs set locked_at = $2, locked_by = $3, attempts = attempts + 1 where id = $1",
            number,
            at,
            by,
        )
        await self.lock_queue(number, at, by)

    async def fail(self, _now: datetime) -> None:
        number = self.one(lambda row: row["locked_at"] is not None)
        if number is None:
            return
        self.model.fail(number)
        await self.sql.run(
            "update graphile_worker._private_jobs set locked_at = null, locked_by = null, last_error = 'it broke'"
            " where id = $1",
            number,
        )
        await self.lock_queue(number, None, None)

    async def exhaust(self, _now: datetime) -> None:
        number = self.one(available)
        if number is not None:
            self.model.exhaust(number)
            await self.sql.exhaust(number)

    async def lock_queue(self, number: int, at: datetime | None, by: str | None) -> None:
        await self.sql.run(
            "update graphile_worker._private_job_queues set locked_at = $2, locked_by = $3"
            " where id = (select job_queue_id from graphile_worker._private_jobs where id = $1)",
            number,
            at,
            by,
        )


def python(row: asyncpg.Record) -> Row:
    found = dict(row)
    del found["id"]
    found["payload"] = json.loads(found["payload"])
    found["flags"] = None if found["flags"] is None else json.loads(found["flags"])
    return found


@pytest.mark.parametrize("seed", range(6))
async def test_the_functions_do_what_the_reference_does(sql: "Sql", heard: "Heard", seed: int) -> None:
    world = World(sql, seed)
    done = {await world.step() for _ in range(STEPS)}
    assert done == set(OPERATIONS)
    assert 5 < world.refused < STEPS / 2
    assert await heard() == world.model.told
    tasks = await sql.rows("select identifier from graphile_worker._private_tasks")
    assert {row["identifier"] for row in tasks} == world.model.tasks
    queues = await sql.rows("select queue_name, locked_at, locked_by from graphile_worker._private_job_queues")
    locks = {row["queue_name"]: (row["locked_at"], row["locked_by"]) for row in queues}
    assert locks == {name: lock or (None, None) for name, lock in world.model.queues.items()}
