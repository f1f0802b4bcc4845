"""What the load of a very large cluster is taken to be. Every figure that is not measured or read from the code stands here.

Called by the other modules of the package and printed at the head of the tables.
"""

from __future__ import annotations

import msgspec

DAY_S = 86_400.0
MONTH_S = 30 * DAY_S


class Assumptions(msgspec.Struct, frozen=True, kw_only=True):
    """The cluster and its users. Rates are means over a day unless they say peak."""

    nodes: int = 1_000
    racks: int = 25
    shards: int = 16_384
    replication_factor: int = 3
    agents: int = 100_000_000
    memories_per_agent: float = 50.0
    memories_sigma: float = 1.5
    """Of the lognormal law of memories per agent: one agent in a hundred has ten times the mean."""
    daily_share: float = 0.05
    """Agents that are active on a day."""
    stores_per_day: float = 20.0
    """Memories that an active agent stores on a day."""
    recalls_per_day: float = 40.0
    hits: int = 10
    """Memories that a recall answers with; each is noted as used."""
    peak: float = 3.0
    """Busiest hour over the mean."""
    warm_minutes: float = 30.0
    """How long an agent's view should stay in memory after its last request."""
    active_minutes: float = 60.0
    """Of a day in which an active agent makes its requests."""
    namespaces: int = 10_000
    """Namespaces with an entry in the catalog; an agent needs none."""
    api_keys: int = 1_000
    put_price: float = 5e-6
    """US dollars a PUT, COPY, POST or LIST: list price of S3 Standard, us-east-1."""
    get_price: float = 4e-7
    storage_price: float = 0.023
    """US dollars a GB and month."""

    @property
    def memories(self) -> float:
        return self.agents * self.memories_per_agent

    @property
    def stores_per_s(self) -> float:
        return self.agents * self.daily_share * self.stores_per_day / DAY_S

    @property
    def recalls_per_s(self) -> float:
        return self.agents * self.daily_share * self.recalls_per_day / DAY_S

    @property
    def requests_per_s(self) -> float:
        return self.stores_per_s + self.recalls_per_s

    @property
    def warm_agents(self) -> float:
        """Agents in the peak that made a request within ``warm_minutes``, by Little's law."""
        seconds = 60.0 * (self.active_minutes + self.warm_minutes)
        return self.agents * self.daily_share * self.peak * seconds / DAY_S
