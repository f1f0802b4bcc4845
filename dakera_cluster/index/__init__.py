"""Views derived from rows, by slot: vectors, full text, attribute columns and the entity graph. Always rebuildable."""
