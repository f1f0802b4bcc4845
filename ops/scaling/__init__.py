"""What `ops.scaling_tables` measures: placement and planning, control traffic, the bucket, and a node's footprint."""
