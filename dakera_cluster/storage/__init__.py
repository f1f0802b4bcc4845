"""Bytes at rest: the row store, the object store, caches, bucket segments and view snapshots."""
