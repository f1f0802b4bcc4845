"""The inner loops of recall in C, called with numpy arrays; knows nothing of memories, rows or indexes."""
