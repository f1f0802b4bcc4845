"""Nouns: identifiers, clocks, rows, filters, settings and errors. Nothing here waits, reads a clock or opens a socket."""
