"""``backfill doctor``: what makes jobs slow, late or stuck."""

from datetime import timedelta

import click
import msgspec

from backfill.cli.common import Cli, common
from backfill.cli.output import print_json, shown
from backfill.cli.params import DURATION
from backfill.client.doctor import examine
from backfill.db import Connection, Session
from backfill.model import Finding, FindingLevel


@click.command()
@click.option("--old", type=DURATION, default="5m", help="An open transaction is too old after so long.  [5m]")
@common()
def doctor(cli: Cli, old: timedelta) -> int:
    """Look for what makes jobs slow, late or stuck: the server, its settings, transactions, the schema, the workers.

    A line for each thing that was looked at: ok, advice (it works, and could be better) or problem. Changes nothing.
    Exit code 1 if there is a problem.
    """

    async def do(connection: Connection) -> list[Finding]:
        has_pooler = isinstance(connection, Session) and connection.has_pooler
        return await examine(connection, cli.schema, old=old, has_pooler=has_pooler)

    found = cli.with_connection(do)
    healthy = all(finding.level is not FindingLevel.PROBLEM for finding in found)
    if cli.as_json:
        findings = [msgspec.structs.asdict(finding) for finding in found]
        print_json({"schema": cli.schema, "healthy": healthy, "findings": findings})
    else:
        for finding in found:
            click.echo(f"{finding.level:8} {finding.name}: {shown(finding.message)}")
    return 0 if healthy else 1
