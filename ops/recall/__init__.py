"""Tools that measure recall and fit its weights. They run the engine that a node runs, without the node."""
