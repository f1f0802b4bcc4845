"""Pure state machines: events in, effects out. No clock, random source, socket or event loop; `now` and generators are given."""
