"""A worker that dies, or loses a connection, at any point of its talk with the database.

The worker is a process of its own whose connections go through a proxy. For every n it is struck just before its n-th message
is passed on to the server, and, in another run, just after the server has answered it and before the worker hears that.

* Killed by SIGKILL, all its connections cut at the same moment: each job is in exactly one place, and none is lost.
* Only the connection cut that the message was on: the worker goes on by itself, and each job is done exactly once.

How n is counted: for each of the worker's roles by itself (its claims, its releases, its listening, its pool), over all
connections of that role, from the first message of the first connection. What a worker sends in one role follows one order,
while the order between roles changes from run to run: with one count for all, an n would mean another message each time, and
some messages would never be met. A count ends with the first n that a worker did not reach before its orderly end. How many
outcomes or jobs come together in one statement still varies, so near the end an n can mean different messages; the statements
that move jobs are therefore looked up by their names too.

Why this is complete: the database changes only by what the server has received, and a role sends its statements one after
the other. The worker hears an answer only after the last message of those that it sends at once (AWAITED): so "after n" for
another message is "before n + 1", for the server and for the worker, and is left out. For connections that are only cut the
messages in the middle are left out as well (FIRST_OR_LAST): without its Sync a statement is undone, wherever the cut is.
"""

from pathlib import Path
from typing import Any

import pytest
from tests.conftest import Server
from tests.support.forks import ForkServer
from tests.worker.faults.striking import AWAITED, EVERY, FIRST_OR_LAST, MUST_MEET, Striking
from tests.worker.faults.workload import prepare, warm_up, work_in_process

from backfill.client import BackfillClient


@pytest.fixture
async def loaded(db: Any, client: BackfillClient) -> str:
    """The name of a database with the jobs in it, to be copied."""
    await prepare(client)
    await client.close()
    name: str = db.name
    return name


@pytest.mark.timeout(240)
@pytest.mark.parametrize("role", MUST_MEET)
async def test_a_killed_worker_leaves_each_job_in_exactly_one_place(
    server: Server, loaded: str, tmp_path: Path, role: str
) -> None:
    async with ForkServer(work_in_process, warm_up) as forks:
        killing = Striking(server, loaded, forks, tmp_path, role, deadly=True)
        await killing.at_every("before", EVERY)
        await killing.at_every("after", AWAITED)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("role", ["claim", "release", "listen"])
async def test_a_lost_connection_costs_no_job_and_no_run(
    server: Server, loaded: str, tmp_path: Path, role: str
) -> None:
    async with ForkServer(work_in_process, warm_up) as forks:
        cutting = Striking(server, loaded, forks, tmp_path, role, deadly=False)
        await cutting.at_every("before", FIRST_OR_LAST)
        await cutting.at_every("after", AWAITED)
