"""Cron: jobs that are added at set times, by Graphile Worker's crontabs or by items made in code."""

from backfill.cron.item import CronItem, MissedRuns
from backfill.cron.match import CronMoment, CronPattern
from backfill.cron.parse import CrontabLine, parse_crontab, parse_lines, warn_if_never
from backfill.cron.schedule import CronScheduler
from backfill.cron.store import KnownCrontab, known_crontabs
from backfill.cron.words import describe
from backfill.cron.write import crontab_line

__all__ = [
    "CronItem",
    "CronMoment",
    "CronPattern",
    "CronScheduler",
    "CrontabLine",
    "KnownCrontab",
    "MissedRuns",
    "crontab_line",
    "describe",
    "known_crontabs",
    "parse_crontab",
    "parse_lines",
    "warn_if_never",
]
