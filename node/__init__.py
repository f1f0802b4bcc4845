"""The process: command line, settings, wiring, logs. The only composition root."""
