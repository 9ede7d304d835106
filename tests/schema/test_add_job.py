"""add_job and add_jobs without concurrency: defaults, modes, replacing, detaching, errors."""

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from backfill.sql import quote_ident

if TYPE_CHECKING:
    from tests.schema.conftest import Heard, Roles, Sql

LATER = datetime(2100, 1, 1, tzinfo=UTC)
MUCH_LATER = datetime(2200, 1, 1, tzinfo=UTC)


async def queue_of(sql: "Sql", job: asyncpg.Record) -> str | None:
    name: str | None = await sql.value("select queue_name from graphile_worker.jobs where id = $1", job["id"])
    return name


async def test_omitted_values_become_the_defaults(sql: "Sql") -> None:
    async with sql.connection.transaction():
        now = await sql.value("select now()")
        job = await sql.add("send")
    expected = {
        "job_queue_id": None,
        "payload": "{}",
        "priority": 0,
        "run_at": now,
        "attempts": 0,
        "max_attempts": 25,
        "last_error": None,
        "created_at": now,
        "updated_at": now,
        "key": None,
        "locked_at": None,
        "locked_by": None,
        "revision": 0,
        "flags": None,
        "is_available": True,
    }
    assert {name: job[name] for name in expected} == expected
    assert await sql.value("select task_identifier from graphile_worker.jobs where id = $1", job["id"]) == "send"


async def test_nulls_are_the_defaults_too(sql: "Sql") -> None:
    job = await sql.add(
        "send", payload=None, queue_name=None, run_at=None, max_attempts=None, priority=None, flags=None,
        job_key=None, job_key_mode=None,
    )  # fmt: skip
    assert (job["payload"], job["max_attempts"], job["priority"], job["flags"]) == ("{}", 25, 0, None)


async def test_given_values_are_kept(sql: "Sql") -> None:
    job = await sql.add(
        "send", payload='{"b": 1, "a":  [2]}', queue_name="q", run_at=LATER, max_attempts=3, job_key="k", priority=-7,
        flags=["x", "y", "x"],
    )  # fmt: skip
    assert job["payload"] == '{"b": 1, "a":  [2]}'
    assert await queue_of(sql, job) == "q"
    assert (job["run_at"], job["max_attempts"], job["key"], job["priority"]) == (LATER, 3, "k", -7)
    assert json.loads(job["flags"]) == {"x": True, "y": True}


@pytest.mark.parametrize("payload", ["null", "5", '"text"', "[1, 2]"])
async def test_any_json_is_a_payload_and_json_null_stays_null(sql: "Sql", payload: str) -> None:
    assert (await sql.add(payload=payload))["payload"] == payload


async def test_empty_flags_are_no_flags(sql: "Sql") -> None:
    assert (await sql.add(flags=[]))["flags"] is None


async def test_empty_names_are_names(sql: "Sql") -> None:
    job = await sql.add("", queue_name="")
    view = await sql.row("select task_identifier, queue_name from graphile_worker.jobs where id = $1", job["id"])
    assert tuple(view) == ("", "")


@pytest.mark.parametrize("mode", [None, "replace", "preserve_run_at", "unsafe_dedupe", "nonsense"])
async def test_without_a_key_every_mode_is_a_plain_add(sql: "Sql", mode: str | None) -> None:
    first = await sql.add(job_key_mode=mode)
    second = await sql.add(job_key_mode=mode)
    assert first["id"] != second["id"]


async def test_with_a_key_an_unknown_mode_is_refused(sql: "Sql") -> None:
    with pytest.raises(asyncpg.PostgresError) as caught:
        await sql.add(job_key="k", job_key_mode="nonsense")
    assert caught.value.sqlstate == "GWBKM"
    assert str(caught.value) == (
        "Invalid job_key_mode value, expected 'replace', 'preserve_run_at' or 'unsafe_dedupe'."
    )
    assert await sql.value("select count(*) from graphile_worker._private_tasks") == 0


async def test_a_second_add_with_the_key_replaces_everything_but_id_and_created_at(sql: "Sql") -> None:
    first = await sql.add(
        "old", payload='{"a": 1}', queue_name="q", run_at=LATER, max_attempts=3, job_key="k", priority=5, flags=["f"]
    )
    await sql.run(
        "update graphile_worker._private_jobs set attempts = 2, last_error = 'oops', updated_at = 'epoch',"
        " created_at = 'epoch'",
    )
    second = await sql.add("new", job_key="k")
    assert second["id"] == first["id"]
    assert second["created_at"] == datetime.fromtimestamp(0, UTC)
    assert second["updated_at"] > first["created_at"]
    assert second["run_at"] < LATER
    expected = {
        "job_queue_id": None,
        "payload": "{}",
        "priority": 0,
        "attempts": 0,
        "max_attempts": 25,
        "last_error": None,
        "revision": 1,
        "flags": None,
    }
    assert {name: second[name] for name in expected} == expected
    view = await sql.row("select task_identifier, queue_name from graphile_worker.jobs where id = $1", second["id"])
    assert tuple(view) == ("new", None)


@pytest.mark.parametrize(
    ("old", "new", "merged"),
    [
        ("[1]", "[2, 3]", [1, 2, 3]),
        ("[]", '[{"a": 1}]', [{"a": 1}]),
        ("[1]", '{"a": 1}', {"a": 1}),
        ('{"a": 1}', "[1]", [1]),
        ('{"a": 1}', '{"b": 1}', {"b": 1}),
        ("[1]", "null", None),
    ],
)
async def test_two_arrays_are_joined_anything_else_is_replaced(sql: "Sql", old: str, new: str, merged: Any) -> None:
    await sql.add(job_key="k", payload=old)
    job = await sql.add(job_key="k", payload=new)
    assert json.loads(job["payload"]) == merged


async def test_joined_arrays_follow_the_rules_of_jsonb(sql: "Sql") -> None:
    """Key order, repeated keys and whitespace of both normalise; until then, arbitrary text survives."""
    await sql.add(job_key="k", payload='[ {"b":1,"a":2, "a":3} ]')
    assert (await sql.job(1))["payload"] == '[ {"b":1,"a":2, "a":3} ]'
    job = await sql.add(job_key="k", payload="[1.50,  null]")
    assert job["payload"] == '[{"a": 3, "b": 1}, 1.50, null]'


@pytest.mark.parametrize("first", ['["\\u0000"]', "[1]"])
async def test_arrays_that_jsonb_refuses_are_not_joined_and_nothing_changes(sql: "Sql", first: str) -> None:
    job = await sql.add(job_key="k", payload=first)
    with pytest.raises(asyncpg.PostgresError) as caught:
        await sql.add(job_key="k", payload='["\\u0000"]')
    assert caught.value.sqlstate == "22P05"
    assert dict(await sql.job(job["id"])) == dict(job)


async def test_preserve_run_at_keeps_the_time_of_a_job_that_has_not_been_tried(sql: "Sql") -> None:
    await sql.add(job_key="k", run_at=LATER)
    job = await sql.add(job_key="k", run_at=MUCH_LATER, payload="[1]", job_key_mode="preserve_run_at")
    assert (job["run_at"], job["payload"], job["revision"]) == (LATER, "[1]", 1)


async def test_preserve_run_at_does_not_keep_the_time_of_a_retry(sql: "Sql") -> None:
    first = await sql.add(job_key="k", run_at=LATER)
    await sql.run("update graphile_worker._private_jobs set attempts = 1")
    job = await sql.add(job_key="k", run_at=MUCH_LATER, job_key_mode="preserve_run_at")
    assert (job["id"], job["run_at"], job["attempts"]) == (first["id"], MUCH_LATER, 0)


async def test_preserve_run_at_adds_a_new_job_at_its_own_time(sql: "Sql") -> None:
    assert (await sql.add(job_key="k", run_at=LATER, job_key_mode="preserve_run_at"))["run_at"] == LATER


@pytest.mark.parametrize("mode", ["replace", "preserve_run_at"])
@pytest.mark.parametrize("age", ["0 s", "5 hours"])
async def test_a_running_job_gives_up_its_key_and_a_successor_is_added(sql: "Sql", mode: str, age: str) -> None:
    first = await sql.add(job_key="k", payload="1")
    await sql.lock(first["id"], age)
    second = await sql.add(job_key="k", payload="2", job_key_mode=mode)
    assert second["id"] != first["id"]
    assert (second["key"], second["payload"], second["revision"], second["attempts"]) == ("k", "2", 0, 0)
    old = await sql.job(first["id"])
    assert (old["key"], old["attempts"], old["payload"], old["locked_by"]) == (None, 25, "1", "someone")
    assert old["updated_at"] > first["updated_at"]


async def test_a_dead_job_gives_up_its_key_too(sql: "Sql") -> None:
    """X-08."""
    first = await sql.add(job_key="k", max_attempts=2)
    await sql.exhaust(first["id"])
    second = await sql.add(job_key="k")
    assert second["id"] != first["id"]
    old = await sql.job(first["id"])
    assert (old["key"], old["attempts"], old["max_attempts"]) == (None, 2, 2)


@pytest.mark.parametrize("state", ["ready", "running", "dead"])
async def test_unsafe_dedupe_only_counts_when_the_key_is_there(sql: "Sql", heard: "Heard", state: str) -> None:
    first = await sql.add("task", job_key="k", payload="1")
    if state == "running":
        await sql.lock(first["id"])
    elif state == "dead":
        await sql.exhaust(first["id"])
    before = dict(await sql.job(first["id"]))
    await heard()
    second = await sql.add(
        "other", job_key="k", payload="2", run_at=LATER, queue_name="q", job_key_mode="unsafe_dedupe"
    )
    assert dict(second) == before | {"revision": 1, "updated_at": second["updated_at"]}
    assert second["updated_at"] > before["updated_at"]
    assert await heard() == []
    known = await sql.row(
        "select (select count(*) from graphile_worker._private_tasks),"
        " (select count(*) from graphile_worker._private_job_queues)",
    )
    assert tuple(known) == (2, 1)


async def test_unsafe_dedupe_inserts_when_the_key_is_free(sql: "Sql", heard: "Heard") -> None:
    job = await sql.add(
        "task", job_key="k", payload="1", run_at=LATER, queue_name="q", max_attempts=4, priority=3, flags=["f"],
        job_key_mode="unsafe_dedupe",
    )  # fmt: skip
    assert (job["key"], job["payload"], job["run_at"], job["max_attempts"], job["priority"]) == ("k", "1", LATER, 4, 3)
    assert json.loads(job["flags"]) == {"f": True}
    assert await queue_of(sql, job) == "q"
    assert await heard() == [1]


async def test_each_call_notifies_with_the_number_of_specs(sql: "Sql", heard: "Heard") -> None:
    await sql.add()
    await sql.add(job_key="k")
    await sql.add(job_key="k")
    await sql.add_many({"identifier": "a"}, {"identifier": "b"}, {"identifier": "a", "job_key": "k"})
    assert await heard() == [1, 1, 1, 3]


async def test_equal_calls_of_one_transaction_are_all_heard(sql: "Sql", heard: "Heard") -> None:
    async with sql.connection.transaction():
        await sql.add()
        await sql.add()
    assert await heard() == [1, 1]


@pytest.mark.parametrize("argument", ["null", "array[]::graphile_worker.job_spec[]"])
async def test_no_specs_add_nothing_and_notify_without_payload(sql: "Sql", heard: "Heard", argument: str) -> None:
    """X-09."""
    assert await sql.rows(f"select * from graphile_worker.add_jobs({argument})") == []
    assert await heard() == [""]


async def test_add_jobs_gives_a_row_for_each_spec(sql: "Sql") -> None:
    kept = await sql.add("kept", job_key="k1", run_at=LATER)
    specs: list[dict[str, Any]] = [
        {"identifier": "a", "payload": {"n": 1}, "queue_name": "q", "max_attempts": 2, "priority": 4, "flags": ["f"]},
        {"identifier": "b", "job_key": "k1"},
        {"identifier": "a", "job_key": "k2", "run_at": LATER.isoformat()},
    ]
    jobs = await sql.add_many(*specs)
    by_key = {job["key"]: job for job in jobs}
    assert len(jobs) == 3
    assert (by_key[None]["payload"], by_key[None]["max_attempts"], by_key[None]["priority"]) == ('{"n": 1}', 2, 4)
    assert json.loads(by_key[None]["flags"]) == {"f": True}
    assert await queue_of(sql, by_key[None]) == "q"
    assert (by_key["k1"]["id"], by_key["k1"]["revision"]) == (kept["id"], 1)
    assert by_key["k2"]["run_at"] == LATER


@pytest.mark.parametrize("busy", [False, True])
async def test_add_jobs_gives_the_rows_in_the_order_of_the_specs(sql: "Sql", busy: bool) -> None:
    """Node's client takes a row for the spec in its place; rows of keys that were busy come last into the table."""
    for key in ("c", "a"):
        job = await sql.add("old", job_key=key)
        if busy:
            await sql.lock(job["id"])
    keys = ["d", None, "c", "b", None, None, "a", None, "e"]
    specs = [{"identifier": f"t{n}", "payload": n} | ({"job_key": key} if key else {}) for n, key in enumerate(keys)]
    jobs = await sql.add_many(*specs)
    assert [(job["payload"], job["key"]) for job in jobs] == [(str(n), key) for n, key in enumerate(keys)]
    stored = await sql.rows(
        "select payload::text, task_identifier from graphile_worker.jobs join graphile_worker._private_jobs using (id)"
        " where task_identifier <> 'old'"
    )
    assert {tuple(row) for row in stored} == {(str(n), f"t{n}") for n in range(len(keys))}
    without = [job["id"] for job in jobs if job["key"] is None]
    assert without == sorted(without)


@pytest.mark.parametrize(("preserve", "kept"), [(True, True), (False, False), (None, False)])
async def test_add_jobs_preserves_run_at_only_when_told(sql: "Sql", preserve: bool | None, kept: bool) -> None:
    await sql.add(job_key="k", run_at=LATER)
    [job] = await sql.add_many(
        {"identifier": "task", "job_key": "k", "run_at": MUCH_LATER.isoformat()}, preserve=preserve
    )
    assert job["run_at"] == (LATER if kept else MUCH_LATER)


async def test_a_key_twice_in_one_call_adds_nothing(sql: "Sql", heard: "Heard") -> None:
    """X-09."""
    for state in ("free", "taken"):
        with pytest.raises(asyncpg.CardinalityViolationError, match="cannot affect row a second time"):
            await sql.add_many({"identifier": "t", "job_key": state}, {"identifier": "t", "job_key": state})
        if state == "free":
            await sql.add(job_key="taken")
    assert await sql.value("select count(*) from graphile_worker._private_jobs") == 1
    assert await heard() == [1]


async def test_names_are_numbered_without_gaps(sql: "Sql") -> None:
    for _ in range(3):
        await sql.add("a", queue_name="q")
        await sql.add("a", queue_name="q", job_key="k", job_key_mode="unsafe_dedupe")
    await sql.add_many({"identifier": "b", "queue_name": "r"}, {"identifier": "a", "queue_name": "q"})
    assert await sql.value("select array_agg(id order by id) from graphile_worker._private_tasks") == [1, 2]
    assert await sql.value("select array_agg(id order by id) from graphile_worker._private_job_queues") == [1, 2]


ERRORS: list[tuple[dict[str, Any], str, str]] = [
    ({"identifier": "i" * 129}, "23514", "tasks_identifier_check"),
    ({"identifier": None}, "23502", "identifier"),
    ({"queue_name": "q" * 129}, "23514", "job_queues_queue_name_check"),
    ({"job_key": ""}, "23514", "jobs_key_check"),
    ({"job_key": "k" * 513}, "23514", "jobs_key_check"),
    ({"max_attempts": 0}, "23514", "jobs_max_attempts_check"),
    ({"max_attempts": 40000}, "22003", "smallint out of range"),
    ({"priority": -40000}, "22003", "smallint out of range"),
    ({"flags": ["a", None]}, "22023", "null"),
]


@pytest.mark.parametrize("mode", ["replace", "unsafe_dedupe"])
@pytest.mark.parametrize(("given", "state", "named"), ERRORS)
async def test_bad_values_fail_as_upstream(
    sql: "Sql", mode: str, given: dict[str, Any], state: str, named: str
) -> None:
    arguments = {"identifier": "task", "job_key": "k", "job_key_mode": mode} | given
    with pytest.raises(asyncpg.PostgresError) as caught:
        await sql.add(**arguments)
    assert caught.value.sqlstate == state
    details = caught.value.as_dict()
    assert named in f"{caught.value} {details.get('constraint_name')} {details.get('column_name')}"


async def test_numbers_out_of_range_in_json_specs_name_the_value(sql: "Sql") -> None:
    with pytest.raises(asyncpg.NumericValueOutOfRangeError, match='value "40000" is out of range for type smallint'):
        await sql.add_many({"identifier": "t", "priority": 40000})


async def test_longest_names_and_extreme_numbers_are_taken(sql: "Sql") -> None:
    job = await sql.add("i" * 128, queue_name="q" * 128, job_key="k" * 512, max_attempts=32767, priority=-32768)
    assert (job["max_attempts"], job["priority"], len(job["key"])) == (32767, -32768, 512)


@pytest.mark.parametrize("table", ["_private_tasks", "_private_job_queues"])
@pytest.mark.parametrize(
    "given", [{}, {"job_key": "k"}, {"job_key": "k", "job_key_mode": "unsafe_dedupe"}], ids=["plain", "keyed", "dedupe"]
)
async def test_a_name_that_is_collected_at_that_moment_is_no_silent_loss(
    sql: "Sql", table: str, given: dict[str, Any]
) -> None:
    await sql.run(
        f"create function public.collect() returns trigger language plpgsql as $$ begin"
        f" delete from graphile_worker.{table} where id = new.id; return null; end $$"
    )
    await sql.run(
        f"create trigger collect after insert on graphile_worker.{table} for each row execute function collect()"
    )
    with pytest.raises(asyncpg.SerializationError, match="please try again"):
        await sql.add("task", queue_name="q", **given)
    assert await sql.value("select count(*) from graphile_worker._private_jobs") == 0


async def test_plans_made_on_an_empty_table_never_read_all_of_a_full_one(sql: "Sql") -> None:
    await sql.run("vacuum analyze graphile_worker._private_jobs")

    async def add_each_way() -> None:
        await sql.add(job_key="k")
        await sql.add(job_key="u", job_key_mode="unsafe_dedupe")
        await sql.add()
        await sql.add_many(
            {"identifier": "t", "job_key": "a"}, {"identifier": "t"}, {"identifier": "t", "job_key": "b"}
        )
        await sql.add_many({"identifier": "t"}, {"identifier": "t"})

    async with sql.connection.transaction():
        for _ in range(8):  # PostgreSQL keeps a plan from the sixth time on
            await add_each_way()
    await sql.run(
        "insert into graphile_worker._private_jobs (task_id) select 1 from generate_series(1, 5000)",
    )
    async with sql.connection.transaction():
        scans = "select seq_scan from pg_stat_xact_user_tables where relname = '_private_jobs'"
        before = await sql.value(scans)
        await add_each_way()
        assert await sql.value(scans) == before


async def test_many_keys_take_no_advisory_lock(sql: "Sql") -> None:
    """The Rust port takes one for each key: with the server's default settings, 20,000 are too many."""
    async with sql.connection.transaction():
        added = await sql.value(
            "select count(*) from graphile_worker.add_jobs(array(select row('t', null, null, null, null, 'k' || n, null,"
            " null)::graphile_worker.job_spec from generate_series(1, 20000) as n))",
        )
        assert added == 20_000
        assert await sql.value("select count(*) from pg_locks where locktype = 'advisory'") == 0


@pytest.mark.parametrize("call", ["add_job('t')", "add_job('t', job_key => 'k', job_key_mode => 'unsafe_dedupe')"])
async def test_row_level_security_stops_a_role_that_is_not_the_owner(sql: "Sql", roles: "Roles", call: str) -> None:
    """However many rights it has; and an owner's SECURITY DEFINER function lets it in."""
    schema = quote_ident(sql.schema)
    role = await roles.make(
        f"grant usage on schema {schema} to {{role}}",
        f"grant all on all tables in schema {schema} to {{role}}",
        f"grant all on all sequences in schema {schema} to {{role}}",
    )
    await sql.run(
        f"create function public.add_for_all() returns bigint language sql security definer"
        f" as $$ select (graphile_worker.{call}).id $$"
    )
    await sql.connection.execute(f"set role {quote_ident(role)}")
    with pytest.raises(
        asyncpg.InsufficientPrivilegeError, match=r"row-level security policy for table .*_private_tasks"
    ):
        await sql.rows(f"select * from graphile_worker.{call}")
    assert await sql.value("select public.add_for_all()") is not None
    assert await sql.value("select count(*) from graphile_worker._private_jobs") == 0
    assert await sql.value("select count(*) from graphile_worker.jobs") == 1, "the view runs with its owner's rights"
    await sql.connection.execute("reset role")


async def test_times_are_the_databases_and_one_transaction_has_one(sql: "Sql") -> None:
    async with sql.connection.transaction():
        first = await sql.add()
        second = await sql.add(job_key="k", job_key_mode="unsafe_dedupe")
        now = await sql.value("select now()")
    assert first["run_at"] == second["run_at"] == now
    assert abs(now - datetime.now(UTC)) < timedelta(days=1)
