"""Models that run on the node: the model store, the ONNX encoder and the micro-batching service in front of it."""
