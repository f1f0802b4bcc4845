"""A node as one of many: membership, peer connections, the map, and the leader's loop, tied together.

The order of start: peers listen (gossip's streams run over them), gossip joins, the map is adopted as it is heard of, and
then the node takes its part in electing. Shutdown goes the other way and says good-bye. A second process under our own node
id stops this one (``superseded``): two writers with one name would break every promise. Called by the composition root.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import random
import secrets
import socket
import ssl
from collections.abc import Callable, Coroutine, Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from dakera_cluster import __version__
from dakera_cluster.cluster.gate import Gate
from dakera_cluster.cluster.gossip import GossipNode, Listener, MemberView
from dakera_cluster.cluster.leader import LeaderSettings, Leadership
from dakera_cluster.cluster.maps import MAP_OBJECT, Maps
from dakera_cluster.cluster.peer_client import PeerClient
from dakera_cluster.cluster.peer_server import PeerServer
from dakera_cluster.cluster.peer_services import Context, Priority
from dakera_cluster.cluster.peer_settings import PeerSettings
from dakera_cluster.cluster.peers import (
    PUSH_PULL,
    SHARD,
    PeerTransport,
    push_pull_call,
    push_pull_service,
    shard_service,
)
from dakera_cluster.cluster.portrait import MemberFacts
from dakera_cluster.model.errors import DakeraError
from dakera_cluster.model.ids import BootId, NodeId
from dakera_cluster.model.shardmap import ShardMap, decode_map, encode_map
from dakera_cluster.protocols.members import Address, Meta, NodeState
from dakera_cluster.protocols.packets import ClusterState
from dakera_cluster.protocols.peer_handshake import Endpoint, stretch_secret
from dakera_cluster.protocols.rebalance import LiveNode, ReadyReport
from dakera_cluster.protocols.swim_config import SwimConfig
from dakera_cluster.protocols.swim_events import Conflict, MemberEvent, StateAdvanced
from dakera_cluster.storage.objects import ObjectStore

log = logging.getLogger(__name__)

MAP_METHOD = "map.get"
READY_METHOD = "leader.ready"
MAP_TIMEOUT_MS = 2_000
POLL_BUCKET_S = 10.0
"""How often a node looks at the bucket's map by itself, should gossip have failed to tell."""


class RuntimeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Addresses, keys and timing of one node. ``secret`` is what operators set; None leaves peers unauthenticated."""

    bind: Address
    advertise: Address | None
    api_url: str
    zone: str = ""
    seeds: tuple[Address, ...] = ()
    secret: str | None = None
    gossip_keys: tuple[bytes, ...] = ()
    peers: PeerSettings = PeerSettings()
    tls: tuple[ssl.SSLContext, ssl.SSLContext] | None = None
    swim: SwimConfig = SwimConfig()
    leader: LeaderSettings = LeaderSettings()


class Runtime:
    """Membership, peers, map and leadership of one node."""

    def __init__(
        self,
        settings: RuntimeSettings,
        cluster_id: str,
        node: NodeId,
        boot: BootId,
        disk: int,
        maps: Maps,
        gate: Gate,
        objects: ObjectStore,
        superseded: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._node = node
        self._disk = disk
        self._maps = maps
        self._objects = objects
        self._superseded = superseded
        self._tasks: set[asyncio.Task[None]] = set()
        secret = settings.secret
        me = Endpoint(cluster_id, node, boot, (stretch_secret(secret, cluster_id),) if secret is not None else ())
        serving, dialling = settings.tls if settings.tls is not None else (None, None)
        self.server = PeerServer(me, settings.peers, serving)
        self.client = PeerClient(me, self._address_of, is_dead=self._is_dead, settings=settings.peers, tls=dialling)
        self.transport = PeerTransport(node, gate, self.client)
        self._gate = gate
        self._cluster_id = cluster_id
        self._boot = boot
        self.gossip: GossipNode | None = None
        self.leadership = Leadership(
            objects,
            maps,
            cluster_id,
            node,
            boot,
            self.live,
            settings.leader,
            self._published,
            random.Random(secrets.randbits(64)),
        )

    @property
    def cluster_id(self) -> str:
        return self._cluster_id

    def register(self) -> None:
        """Offer the runtime's own services; others register theirs before `start`."""
        self.server.register(SHARD, shard_service(self._gate))
        self.server.register(PUSH_PULL, push_pull_service(self._answer_push_pull), priority=Priority.CONTROL)
        self.server.register(MAP_METHOD, self._answer_map, priority=Priority.CONTROL)
        self.server.register(READY_METHOD, self._answer_ready, priority=Priority.CONTROL)

    async def start(self, listener: Listener) -> None:
        """Listen, join and take part; ``listener`` hears what membership says. Raises OSError when the address is taken."""
        bound = await self.server.start(self._settings.bind)
        advertise = self._settings.advertise or await own_address(self._settings.api_url, bound.port)
        self.gossip = GossipNode(
            self._settings.swim,
            cluster_id=self._cluster_id,
            node=self._node,
            boot=self._boot,
            bind=Address(self._settings.bind.host, bound.port),
            advertise=advertise,
            meta=self._meta(),
            seeds=self._settings.seeds,
            push_pull=push_pull_call(self.client),
            stream_probe=self.client.probe,
            keys=self._settings.gossip_keys,
        )
        self.gossip.subscribe(self.client.on_member)
        self.gossip.subscribe(self._heard)
        self.gossip.subscribe(listener)
        await self.gossip.start()
        self._maps.fetch = self.fetch_map
        self._maps.subscribe(self._published)
        if self._maps.current is not None:
            self._published(self._maps.current)
        self.leadership.start()
        self._spawn(self._watch_bucket())

    async def close(self) -> None:
        """Give the lease back, say good-bye, and stop listening."""
        await self.leadership.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.gossip is not None:
            await self.gossip.leave()
        await self.client.close()
        await self.server.close()

    # -- what the rest of the node asks

    def live(self) -> Mapping[NodeId, LiveNode]:
        """Nodes that membership holds for alive or suspect, this one included."""
        alive = {self._node: LiveNode(self._disk, self._settings.zone)}
        for view in self._views():
            if view.state in (NodeState.ALIVE, NodeState.SUSPECT):
                alive[view.node] = LiveNode(int(view.meta.get("disk", 0)), str(view.meta.get("zone", "")))
        return alive

    def is_alive(self, node: NodeId) -> bool:
        """Whether membership holds a node for alive."""
        return any(view.node == node and view.state is NodeState.ALIVE for view in self._views())

    def members(self) -> list[MemberFacts]:
        """What membership believes, for the portrait."""
        return [
            MemberFacts(
                view.node,
                view.state.name.lower(),
                str(view.meta.get("url", "")),
                str(view.meta.get("zone", "")),
                view.state_age_ms,
                view.heard_age_ms,
            )
            for view in self._views()
        ]

    async def call(self, node: NodeId, method: str, payload: bytes, timeout_ms: float) -> bytes:
        """A call of another node's service."""
        return await self.client.call(node, method, payload, timeout_ms=int(timeout_ms))

    async def report(self, report: ReadyReport) -> None:
        """Tell the leader that a replica of ours has everything."""
        leader = self.leadership.view().leader
        if leader is None:
            return
        if leader == self._node:
            self.leadership.ready(report)
            return
        with contextlib.suppress(DakeraError):
            await self.client.call(leader, READY_METHOD, msgspec.msgpack.encode(report), timeout_ms=MAP_TIMEOUT_MS)

    async def fetch_map(self) -> ShardMap | None:
        """The greatest map that a peer or the bucket gives, if it is greater than ours."""
        for view in sorted(self._views(), key=lambda v: v.state_age_ms):
            if view.is_self or view.state is not NodeState.ALIVE:
                continue
            found = await self._fetch_from(view.node)
            if found is not None and found.order > self._maps.order:
                return found
        return await self._fetch_from_bucket()

    # -- inside

    def _views(self) -> list[MemberView]:
        return self.gossip.members() if self.gossip is not None else []

    def _address_of(self, node: NodeId) -> Address | None:
        return next((view.addr for view in self._views() if view.node == node), None)

    def _is_dead(self, node: NodeId) -> bool:
        return any(view.node == node and view.state in (NodeState.DEAD, NodeState.LEFT) for view in self._views())

    def _meta(self) -> Meta:
        meta: Meta = {"url": self._settings.api_url, "disk": self._disk, "v": __version__}
        if self._settings.zone:
            meta["zone"] = self._settings.zone
        return meta

    def _published(self, shardmap: ShardMap) -> None:
        if self.gossip is not None:
            self.gossip.publish_state(ClusterState(shardmap.epoch, shardmap.version))

    def _heard(self, event: MemberEvent | StateAdvanced | Conflict) -> None:
        match event:
            case MemberEvent(change, member):
                log.info("member %s: %s", member.node, change.value)
                self.leadership.members_changed()
            case StateAdvanced(state, source):
                if (state.epoch, state.version) > self._maps.order:
                    self._spawn(self._catch_up(source))
            case Conflict(node, boot, addr, True):
                log.critical("another process runs as %s (boot %d at %s): this one stops", node, boot, addr)
                self._superseded()
            case Conflict(node, _, addr, False):
                log.error("two processes use the node id %s, one of them at %s", node, addr)

    async def _catch_up(self, source: NodeId) -> None:
        found = await self._fetch_from(source) or await self.fetch_map()
        if found is not None:
            await self._maps.adopt(found)

    async def _fetch_from(self, node: NodeId) -> ShardMap | None:
        try:
            data = await self.client.call(node, MAP_METHOD, b"", timeout_ms=MAP_TIMEOUT_MS)
            return decode_map(data) if data else None
        except DakeraError as error:
            log.debug("no map from %s: %s", node, error)
            return None

    async def _fetch_from_bucket(self) -> ShardMap | None:
        try:
            found = await self._objects.get(MAP_OBJECT)
        except DakeraError as error:
            log.debug("no map from the bucket: %s", error)
            return None
        return decode_map(found.data) if found is not None else None

    async def _watch_bucket(self) -> None:
        while True:
            found = await self._fetch_from_bucket()
            if found is not None and found.order > self._maps.order:
                await self._maps.adopt(found)
            await asyncio.sleep(POLL_BUCKET_S if self._maps.current is not None else 1.0)

    def _answer_push_pull(self, payload: bytes) -> bytes:
        assert self.gossip is not None
        return self.gossip.answer_push_pull(payload)

    async def _answer_map(self, payload: bytes, context: Context) -> bytes:
        return encode_map(self._maps.current) if self._maps.current is not None else b""

    async def _answer_ready(self, payload: bytes, context: Context) -> bytes:
        self.leadership.ready(msgspec.msgpack.decode(payload, type=ReadyReport))
        return b""

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def own_address(api_url: str, port: int) -> Address:
    """Where others reach this node's gossip: the host of its advertised URL, or this machine's own address, as an IP."""
    host = urlsplit(api_url).hostname or ""
    if not host or _is_unspecified(host):
        host = socket.gethostname()
    found = await asyncio.get_running_loop().getaddrinfo(host, port, family=socket.AF_INET, type=socket.SOCK_DGRAM)
    return Address(str(found[0][4][0]), port)


def _is_unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
