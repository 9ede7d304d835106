"""Examining a database for what makes jobs slow, late or stuck, now or soon. Changes nothing.

Each function looks at one thing, and says what it found even if all is well: somebody who asks wants to know what was
looked at. What is a matter of taste is advice; a problem is something that an operator would want to be woken for.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from backfill.client.workers import workers
from backfill.db import DRIVER_ERRORS, Connection, check_row_security, check_schema_name, translate
from backfill.errors import SchemaError
from backfill.model import Finding, FindingLevel, WorkerInfo, WorkerState
from backfill.schema import check, installed_revision
from backfill.sql import text

OLDEST_SERVER: Final = 140_000
NEWEST_SERVER: Final = 189_999
POOL: Final = 10  # connections that a worker's handlers may have
OWN: Final = 5  # connections that a worker needs besides, at most
_LATE: Final = 60.0  # seconds that a job may be due without anybody there to run it
_SKEW: Final = 2.0  # seconds between our clock and the server's
_MANY_DEAD: Final = 100_000
_PAGE: Final = "docs/performance.md"

OK, ADVICE, PROBLEM = FindingLevel.OK, FindingLevel.ADVICE, FindingLevel.PROBLEM


async def examine(
    connection: Connection, schema: str, *, old: timedelta = timedelta(minutes=5), has_pooler: bool = False
) -> list[Finding]:
    """Look at everything; what was found, in a fixed order.

    Args:
        connection: A connection as the role that is to work.
        schema: The schema's name, unquoted.
        old: Transactions that have been open for longer are a problem.
        has_pooler: Whether the connection leads through a pooler.

    Raises:
        DatabaseError: The database failed.
        ConfigurationError: PostgreSQL cannot have a schema of that name.
    """
    check_schema_name(schema)
    try:
        (server,) = map(dict, await connection.fetch(text("server_facts", schema)))
        seen_at = datetime.now(UTC)
        found = [of_server(server), of_clock(server["now"], seen_at), of_pooler(has_pooler=has_pooler)]
        role = await of_role(connection, schema)
        found += [await of_schema(connection, schema, role), role]
        table = next(map(dict, await connection.fetch(text("jobs_table_facts", schema), schema)), None)
        if table is not None:
            found += [of_autovacuum(server, table), of_dead_rows(table), of_fill_factor(table["fill_factor"])]
        held = map(dict, await connection.fetch(text("held_horizons", schema), old.total_seconds()))
        found.append(of_horizon(held, old, sees_all=server["sees_all"]))
        known: list[WorkerInfo] = []
        if table is not None and table["has_workers"] and role.level is OK:
            known = await workers(connection, schema)
            found.append(of_workers(known, await connection.fetchval(text("due_for", schema))))
        found += [of_connections(server, known), of_notifications(server["queue_usage"])]
    except DRIVER_ERRORS as error:
        raise translate(error, f"cannot examine schema {schema!r}") from error
    return found


def of_server(server: Mapping[str, Any]) -> Finding:
    """Whether the server's version is one that backfill is tested with."""
    values = {"version": server["version"]}
    if server["version_number"] < OLDEST_SERVER:
        message = f"PostgreSQL {server['version']} is too old: backfill needs 14 or newer"
        return Finding(name="server", level=PROBLEM, message=message, values=values)
    if server["version_number"] > NEWEST_SERVER:
        message = f"PostgreSQL {server['version']}: backfill is tested with 14 to 18"
        return Finding(name="server", level=ADVICE, message=message, values=values)
    return Finding(name="server", level=OK, message=f"PostgreSQL {server['version']}", values=values)


def of_clock(server: datetime, here: datetime) -> Finding:
    """Whether this machine's clock agrees with the server's, which decides when jobs are due."""
    seconds = (here - server).total_seconds()
    values = {"seconds": round(seconds, 3)}
    if abs(seconds) < _SKEW:
        return Finding(name="clock", level=OK, message=f"{seconds:+.2f} s from the server's", values=values)
    message = (
        f"this machine's clock is {seconds:+.1f} s from the server's: times that programs here compute (run_at, deadline)"
        " are off by that; have NTP set both"
    )
    return Finding(name="clock", level=ADVICE, message=message, values=values)


def of_pooler(*, has_pooler: bool) -> Finding:
    """Whether notifications can reach a worker that connects in this way."""
    values = {"pooler": has_pooler}
    if not has_pooler:
        return Finding(name="pooler", level=OK, message="none: connections are the server's own", values=values)
    message = (
        "this URL leads through a pooler, which carries no notifications: workers with it find jobs by polling;"
        " give them a direct address with --listen-url"
    )
    return Finding(name="pooler", level=ADVICE, message=message, values=values)


async def of_role(connection: Connection, schema: str) -> Finding:
    """Whether the role sees the jobs."""
    try:
        await check_row_security(connection, schema)
    except SchemaError as error:
        return Finding(name="role", level=PROBLEM, message=str(error))
    return Finding(name="role", level=OK, message="sees the jobs and may work on them")


async def of_schema(connection: Connection, schema: str, role: Finding) -> Finding:
    """Whether the schema is what backfill needs; what the role lacks is said there."""
    problems = [problem for problem in await check(connection, schema) if problem != role.message]
    revision = await installed_revision(connection, schema)
    values = {"schema": schema, "revision": revision, "problems": problems}
    if problems:
        more = f" (and {len(problems) - 1} more: backfill schema check)" if len(problems) > 1 else ""
        return Finding(name="schema", level=PROBLEM, message=f"{problems[0]}{more}", values=values)
    message = f"{schema} is complete, at revision {revision} of Graphile Worker"
    return Finding(name="schema", level=OK, message=message, values=values)


def of_autovacuum(server: Mapping[str, Any], table: Mapping[str, Any]) -> Finding:
    """Whether somebody clears the table of jobs, and how soon."""
    values = {
        "enabled": server["autovacuum"] and server["track_counts"] and table["autovacuum"],
        "dead_rows_waited_for": round(table["wait_for"]),
        "scale_factor": table["scale_factor"],
    }
    if not values["enabled"]:
        off = "for the table of jobs" if server["autovacuum"] and server["track_counts"] else "on the server"
        message = f"autovacuum is off {off}: claims get slower with every job that was ever run; turn it on"
        return Finding(name="autovacuum", level=PROBLEM, message=message, values=values)
    message = f"runs on the table of jobs at {table['wait_for']:,.0f} dead rows"
    if table["scale_factor"] > 0.05:
        message += f": of a large backlog, too late; lower autovacuum_vacuum_scale_factor, as {_PAGE} says"
        return Finding(name="autovacuum", level=ADVICE, message=message, values=values)
    return Finding(name="autovacuum", level=OK, message=message, values=values)


def of_dead_rows(table: Mapping[str, Any]) -> Finding:
    """Whether the table of jobs is full of rows that are gone."""
    live, dead = table["live"], table["dead"]
    values = {"live": live, "dead": dead, "bytes": table["bytes"], "vacuumed_at": table["vacuumed_at"]}
    vacuumed = table["vacuumed_at"]
    when = "never vacuumed" if vacuumed is None else f"last vacuumed {vacuumed.astimezone(UTC):%Y-%m-%d %H:%M}Z"
    message = f"{dead:,} beside {live:,} live ones, {table['bytes'] / (1 << 20):,.0f} MiB with indexes, {when}"
    if dead > _MANY_DEAD and dead > max(4 * live, 2 * table["wait_for"]):
        message += ": autovacuum does not keep up, or something holds it back (see horizon)"
        return Finding(name="dead rows", level=PROBLEM, message=message, values=values)
    return Finding(name="dead rows", level=OK, message=message, values=values)


def of_fill_factor(fill_factor: int) -> Finding:
    """Whether pages of the table of jobs have room for the claimed versions of their rows."""
    values = {"fill_factor": fill_factor}
    if fill_factor > 60:
        message = f"{fill_factor} for the table of jobs: with 45 a claim writes less, as {_PAGE} says"
        return Finding(name="fillfactor", level=ADVICE, message=message, values=values)
    return Finding(name="fillfactor", level=OK, message=f"{fill_factor} for the table of jobs", values=values)


def of_horizon(held: Iterable[Mapping[str, Any]], old: timedelta, *, sees_all: bool) -> Finding:
    """Whether something keeps dead rows from being vacuumed."""
    rows = list(held)
    values = {"held": rows, "sees_all": sees_all}
    minutes = f"{old.total_seconds() / 60:g} min"
    if rows:
        oldest = rows[0]
        age = f"{oldest['transactions']:,} transactions" if oldest["seconds"] is None else f"{oldest['seconds']:,.0f} s"
        more = f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""
        message = (
            f"{oldest['kind']} {oldest['name']} has held it for {age}{more}: nothing that was deleted since can be"
            " vacuumed, and claims walk past it; end it, and set idle_in_transaction_session_timeout"
        )
        return Finding(name="horizon", level=PROBLEM, message=message, values=values)
    if not sees_all:
        message = (
            f"no transaction of this role is older than {minutes}; to see those of others, a superuser has to GRANT"
            " pg_read_all_stats to it"
        )
        return Finding(name="horizon", level=ADVICE, message=message, values=values)
    return Finding(name="horizon", level=OK, message=f"no transaction is older than {minutes}", values=values)


def of_workers(known: Iterable[WorkerInfo], due_for: float | None) -> Finding:
    """Whether somebody works, and whether workers were lost."""
    states = [worker.state for worker in known]
    alive, lost = states.count(WorkerState.ALIVE), states.count(WorkerState.LOST)
    values = {"alive": alive, "draining": states.count(WorkerState.DRAINING), "lost": lost, "due_for": due_for}
    counted = f"{alive} alive, {values['draining']} draining, {lost} lost"
    late = due_for is not None and due_for > _LATE
    if not alive and (lost or late):
        what = f"a job has been due for {due_for:,.0f} s" if late else "nobody is there to take their jobs over"
        message = f"{counted}: {what}; start workers (those of Node and Rust are not counted)"
        return Finding(name="workers", level=PROBLEM, message=message, values=values)
    if lost:
        message = f"{counted}: the others take their jobs over; backfill workers shows which, and their logs why"
        return Finding(name="workers", level=ADVICE, message=message, values=values)
    return Finding(name="workers", level=OK, message=counted, values=values)


def of_connections(server: Mapping[str, Any], known: Iterable[WorkerInfo]) -> Finding:
    """Whether the server has room for the workers' connections."""
    wanted = POOL * sum(worker.state is WorkerState.ALIVE for worker in known)
    free, most = server["free"], server["max_connections"]
    values = {"free": free, "max_connections": most, "handlers_may_want": wanted}
    message = f"{free} of {most} free"
    if free < OWN:
        message += f": a worker needs {OWN}, so no more can start; raise max_connections, or use a pooler"
        return Finding(name="connections", level=PROBLEM, message=message, values=values)
    if free < wanted:
        message += f": the workers' handlers may want {wanted} between them; raise max_connections"
        return Finding(name="connections", level=ADVICE, message=message, values=values)
    return Finding(name="connections", level=OK, message=message, values=values)


def of_notifications(usage: float) -> Finding:
    """Whether the server's queue of notifications fills up: when it is full, commits that notify fail."""
    values = {"usage": usage}
    message = f"the queue is {usage:.1%} full"
    if usage < 0.1:
        return Finding(name="notifications", level=OK, message=message, values=values)
    message += ": a session that listens is in a transaction and does not read; find it in pg_stat_activity and end it"
    return Finding(name="notifications", level=PROBLEM if usage > 0.5 else ADVICE, message=message, values=values)
