"""What operators and contributors run: local stack, benchmarks, generated documents, tables."""
