"""How the guarantees are proved: simulation, mutants, and chaos on real processes."""
