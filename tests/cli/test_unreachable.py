"""A database that can't be reached: what each kind of command says, where to look, and never the password."""

import uuid
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from tests.cli.conftest import CommandLine

from backfill.embedded import EmbeddedServer

COMMANDS = (["jobs", "list"], ["enqueue", "task"], ["schema", "install"], ["worker", "tasks"])


@pytest.fixture(scope="module")
def tcp_server() -> Iterator[EmbeddedServer]:
    """A server that asks for passwords."""
    with EmbeddedServer(tcp=True) as server:
        yield server


@pytest.fixture
def command_line(bare_cli: CommandLine) -> CommandLine:
    (bare_cli.folder / "tasks.py").write_text("from backfill import task\n\n\n@task('t')\ndef t(): ...\n")
    return bare_cli


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
async def test_a_wrong_password(command_line: CommandLine, tcp_server: EmbeddedServer, command: list[str]) -> None:
    parts = urlsplit(tcp_server.dsn())
    secret = uuid.uuid4().hex
    url = parts._replace(netloc=f"postgres:{secret}@{parts.hostname}:{parts.port}").geturl()
    done = await command_line(*command, DATABASE_URL=url, code=1)
    assert f"cannot connect to database 'postgres' at {parts.hostname}:{parts.port}: password auth" in done.err
    assert "check the user name and the password in the database URL" in done.err
    assert secret not in done.err + done.out


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
async def test_several_servers_of_which_none_is_there(command_line: CommandLine, command: list[str]) -> None:
    done = await command_line(*command, DATABASE_URL="postgresql://u:secret@127.0.0.1:1,127.0.0.1:2/jobs", code=1)
    assert "cannot connect to database 'jobs' at 127.0.0.1:1, 127.0.0.1:2: 127.0.0.1:1: " in done.err
    assert "is PostgreSQL running there" in done.err
    assert "secret" not in done.err + done.out
    assert done.err.count("\n") == 1


async def test_an_address_to_listen_at_goes_into_the_configuration(bare_cli: CommandLine) -> None:
    (bare_cli.folder / "shown.py").write_text(
        "import sys\n\n\ndef make(config):\n    print(config.listen_url, flush=True)\n    sys.exit(3)\n"
    )
    options = ("--listen-url", "postgresql://direct/x", "--database-url", "postgresql://pooler/x")
    assert (await bare_cli("worker", "shown:make", *options, code=3)).out == "postgresql://direct/x\n"
