"""What invokes functions besides requests: queues, the bus and the clock."""

from collections.abc import Sequence

from local import bus, queues, schedules
from local.aws import Client
from local.intrinsics import Resource
from local.runtime import Runtime
from local.terminal import say

# The resources they are made of.
KINDS = (queues.KIND, schedules.RULE, schedules.SCHEDULE)


class Deliveries:
    """Of one template. Raises Refusal where it asks for something that is not played here."""

    def __init__(
        self, resources: Sequence[Resource], runtime: Runtime, aws: Client, functions: Client
    ) -> None:
        bus.check(resources)
        self._pollers = queues.Pollers(queues.mappings(resources, runtime, aws), runtime, aws)
        self._clock = schedules.Clock(schedules.schedules(resources, runtime), runtime)
        self._carrier = bus.Carrier(aws, functions)

    def start(self) -> None:
        if line := schedules.by_hand(self._clock):
            say(line)
        self._pollers.start()
        self._carrier.start()
        self._clock.start()

    def stop(self) -> None:
        """Begin nothing more; what is under way goes on."""
        self._clock.stop()
        self._carrier.stop()
        self._pollers.stop()
