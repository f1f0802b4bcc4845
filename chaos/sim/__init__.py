"""The simulated world: seeded networks and clocks under which the protocols run unchanged."""
