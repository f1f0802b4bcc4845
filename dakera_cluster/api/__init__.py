"""The wire: schemas, routes, authentication, limits and shapes. One route table, one handler a route."""
