"""Reading what notifications say."""

import msgspec


def notified_count(payload: str) -> int:
    """How many jobs a notification on ``jobs:insert`` speaks of; what can't be read counts as one, as in Graphile Worker."""
    try:
        value = msgspec.json.decode(payload)
    except (msgspec.DecodeError, RecursionError):
        return 1
    count = value.get("count", 1) if isinstance(value, dict) else 1
    return count if isinstance(count, int) else 1
