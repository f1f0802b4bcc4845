"""Drivers: the protocols against real sockets, disks and clocks, and the coordinator that the memory services talk to."""
