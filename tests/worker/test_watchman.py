"""The watchman: kills what still runs when the worker's end of the pipe is closed, and is started again when it is gone."""

import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest
from tests.support.until import until
from tests.worker.test_processes import ended

from backfill.worker.watchman import Watchman


@pytest.fixture
def start() -> Iterator[Callable[[], int]]:
    """A function that starts a program in a group of its own; its process id."""
    started: list[subprocess.Popen[bytes]] = []

    def sleeper() -> int:
        started.append(subprocess.Popen(["sleep", "1000"], start_new_session=True))
        return started[-1].pid

    yield sleeper
    for process in started:
        process.kill()
        process.wait()


async def test_it_kills_what_runs_when_the_worker_is_gone_and_nothing_else(start: Callable[[], int]) -> None:
    watchman = Watchman()
    runs, done = start(), start()
    watchman.begun(runs)
    watchman.begun(done)
    watchman.ended(done)
    watchman.close()  # to the process this is the worker's end
    await until(lambda: ended(runs), "it is killed")
    assert not ended(done)


async def test_one_that_was_killed_has_a_successor_that_knows_all(start: Callable[[], int]) -> None:
    watchman = Watchman()
    first, second = start(), start()
    watchman.begun(first)
    process = watchman._process
    assert process is not None
    process.send_signal(signal.SIGKILL)
    process.wait()
    watchman.begun(second)
    watchman.close()
    await until(lambda: ended(first) and ended(second), "both are killed")


def test_without_programs_there_is_none() -> None:
    watchman = Watchman()
    watchman.ended(1)
    assert watchman._process is None
    watchman.close()
