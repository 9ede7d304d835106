"""``backfill schema``: install, check and print the schema."""

import click

from backfill.cli.common import Cli, common
from backfill.cli.output import print_json
from backfill.db import Connection
from backfill.schema import check as check_schema
from backfill.schema import install as install_schema
from backfill.schema import script


@click.group()
def schema() -> None:
    """Install, check and print the database schema."""


@schema.command()
@click.option("--owner", metavar="ROLE", help="Who shall own what is made, such as the application's role.")
@click.option("--dry-run", is_flag=True, help="Do it, say what was done, and roll it back.")
@common()
def install(cli: Cli, owner: str | None, dry_run: bool) -> None:
    """Install what is missing of the schema; what is there stays as it is."""

    async def do(connection: Connection) -> list[str]:
        if not dry_run:
            return await install_schema(connection, cli.schema, owner)
        transaction = connection.transaction()
        await transaction.start()
        try:
            return await install_schema(connection, cli.schema, owner)
        finally:
            await transaction.rollback()

    done = cli.with_connection(do, create=True)
    if cli.as_json:
        print_json({"schema": cli.schema, "dry_run": dry_run, "done": done})
        return
    for line in done:
        click.echo(f"would have {line}" if dry_run else line)
    if not done:
        click.echo(f"schema {cli.schema} is complete: nothing to do")


@schema.command()
@common()
def check(cli: Cli) -> int:
    """Compare the schema with what it should be, and have the server prepare every statement that backfill sends."""

    async def do(connection: Connection) -> list[str]:
        return await check_schema(connection, cli.schema)

    problems = cli.with_connection(do)
    if cli.as_json:
        print_json({"schema": cli.schema, "problems": problems})
    else:
        for problem in problems:
            click.echo(problem)
        if not problems:
            click.echo(f"schema {cli.schema} is as it should be")
    return 1 if problems else 0


@schema.command("print")
@common()
def print_(cli: Cli) -> None:
    """Print all the DDL as a script for psql; needs no database."""
    if cli.as_json:
        print_json({"schema": cli.schema, "sql": script(cli.schema)})
    else:
        click.echo(script(cli.schema), nl=False)
