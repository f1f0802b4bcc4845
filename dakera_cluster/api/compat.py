"""Which client is calling, and what follows from it: the User-Agent table of the wire contract, in one place.

Official clients of several versions share routes and disagree on shapes. Where the union of shapes satisfies all of them
it is sent to all; what is left is decided here, by prefix of the User-Agent, and nowhere else. `shapes` asks the traits,
handlers never do.

==============================  ===========================================================================
``python-requests/ python-httpx/``  namespaces as objects
``dakera-py/``                      namespaces as objects (either is parsed; objects carry the vector counts)
``dakera-client/`` up to 0.11.54    namespaces as strings, ``matches``, bare array of sessions, no aliased pairs
``dakera-client/`` later            namespaces as strings, no aliased pairs
anything else, or nothing           namespaces as strings
==============================  ===========================================================================

*Aliased pairs* are keys the Rust client's parser takes for one field and refuses when both are there.
"""

from __future__ import annotations

import re
from functools import lru_cache

import msgspec

_RUST_PREFIX = "dakera-client/"
_OBJECT_LIST_PREFIXES = ("python-requests/", "python-httpx/", "dakera-py/")
_JAVASCRIPT_PREFIXES = ("node", "undici", "dakera-js/")
_LAST_STRICT_RUST = (0, 11, 54)
_PREFIX_CHARS = 64
_VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})\.(\d{1,4})")


class Client(msgspec.Struct, frozen=True):
    """What a client needs that others do not."""

    namespace_objects: bool = False
    """`GET /v1/namespaces` lists objects; otherwise names."""
    aliased_pairs: bool = True
    """Both spellings of an aliased key may be sent."""
    hits_key: str = "results"
    """The key of the list in answers to vector, full-text and hybrid queries."""
    bare_sessions: bool = False
    bare_nodes: bool = False
    """The list of cluster nodes as a bare array."""
    """`GET /v1/sessions` answers an array."""
    iso_wake_up: bool = False
    """Times of the wake-up route are ISO-8601 strings."""


OTHER = Client()
JAVASCRIPT = Client(bare_nodes=True)
PYTHON = Client(namespace_objects=True)
RUST = Client(aliased_pairs=False, iso_wake_up=True)
RUST_STRICT = Client(aliased_pairs=False, iso_wake_up=True, hits_key="matches", bare_sessions=True)


def client_of(user_agent: str | None) -> Client:
    """The traits of the client with this User-Agent."""
    return _client_of(user_agent[:_PREFIX_CHARS]) if user_agent else OTHER


@lru_cache(maxsize=1024)
def _client_of(prefix: str) -> Client:
    if prefix.startswith(_OBJECT_LIST_PREFIXES):
        return PYTHON
    if prefix.startswith(_JAVASCRIPT_PREFIXES):
        return JAVASCRIPT
    if not prefix.startswith(_RUST_PREFIX):
        return OTHER
    version = _VERSION.match(prefix, len(_RUST_PREFIX))
    if version is not None and tuple(map(int, version.groups())) <= _LAST_STRICT_RUST:
        return RUST_STRICT
    return RUST
