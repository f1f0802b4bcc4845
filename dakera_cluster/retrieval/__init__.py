"""The recall pipeline over one shard's views: pure and deterministic, it runs where the data is."""
