"""``backfill dlq``: look at the dead letter queue, run its entries again, change, delete and keep them."""

from backfill.cli.dlq.group import dlq

__all__ = ["dlq"]
