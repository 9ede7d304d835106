"""The plugins that come with backfill: both are switches of what the release of a job does in its one statement."""

from backfill.hooks.registry import HookRegistry


class DlqCleanupPlugin:
    """A job that came out of the dead letter queue and is done takes its entry with it.

    That is so without this plugin too: add it with ``enabled=False`` to keep the entries. They stay marked as out, until they
    are deleted or requeued by force.

    Args:
        enabled: Whether the entries go.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        self.enabled = enabled

    def register(self, registry: HookRegistry) -> None:
        """Set the switch."""
        registry.switches.dlq_cleanup = self.enabled


class PermanentFailurePlugin:
    """A job whose error is not worth another try fails for good at once: into the dead letter queue, if that is on.

    That is so without this plugin too: add it with ``enabled=False`` to have such a job tried again until its attempts are
    used up, whatever its error, as Node's workers do.

    Args:
        enabled: Whether such errors end their jobs.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        self.enabled = enabled

    def register(self, registry: HookRegistry) -> None:
        """Set the switch."""
        registry.switches.permanent_failure = self.enabled
