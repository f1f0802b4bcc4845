"""The HA compose stack and the image: what operators of the deployed stacks rely on, checked without a container engine."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from dakera_cluster import __version__
from dakera_cluster.model.config import StorageKind, WarningKind, load

ROOT = Path(__file__).resolve().parents[2]
NODES = ["dakera-1", "dakera-2", "dakera-3"]
VARIABLE = re.compile(r"\$\{(\w+)(?:(:[-?])((?:[^{}]|\$\{[^{}]*\})*))?\}")

HOST_PORTS = {
    "traefik": {"HA_LB_HTTP_PORT": (3100, 3000), "HA_LB_GRPC_PORT": (50151, 50051), "HA_TRAEFIK_PORT": (8080, 8080)},
    "redis": {"HA_REDIS_PORT": (6480, 6379)},
    "minio": {"HA_MINIO_API_PORT": (9100, 9000), "HA_MINIO_CONSOLE_PORT": (9101, 9001)},
    "dashboard": {"HA_DASHBOARD_PORT": (3202, 3000)},
    "prometheus": {"HA_PROMETHEUS_PORT": (9190, 9090)},
    "grafana": {"HA_GRAFANA_PORT": (3203, 3000)},
    "jaeger": {"HA_JAEGER_UI_PORT": (16787, 16686)},
}
VOLUMES = {
    **{node: {f"{node}-cache:/data/cache", f"{node}-rocksdb:/data/rocksdb"} for node in NODES},
    "redis": {"redis-data:/data"},
    "minio": {"minio-data:/data"},
}
CONTAINERS = {
    "traefik": "dakera-lb",
    **{node: node for node in NODES},
    "redis": "dakera-redis",
    "minio": "dakera-ha-minio",
    "minio-setup": "dakera-ha-minio-setup",
    "dashboard": "dakera-dashboard",
    "prometheus": "dakera-prometheus",
    "grafana": "dakera-grafana",
    "jaeger": "dakera-jaeger",
}
COMMON = {
    "DAKERA_HOST": "0.0.0.0",
    "DAKERA_PORT": "3000",
    "DAKERA_GRPC_PORT": "50051",
    "DAKERA_CLUSTER_MODE": "true",
    "DAKERA_GOSSIP_PORT": "7946",
    "DAKERA_GOSSIP_BIND": "0.0.0.0:7946",
    "DAKERA_STORAGE": "s3",
    "DAKERA_S3_ENDPOINT": "http://minio:9000",
    "DAKERA_S3_BUCKET": "dakera",
    "DAKERA_S3_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "minioadmin",
    "AWS_SECRET_ACCESS_KEY": "minioadmin",
    "DAKERA_L1_CACHE_SIZE": "536870912",
    "DAKERA_L2_CACHE_PATH": "/data/rocksdb",
    "DAKERA_CACHE_REDIS_URL": "redis://redis:6379",
    "DAKERA_REDIS_URL": "redis://redis:6379",
    "DAKERA_TIERED_STORAGE": "true",
    "DAKERA_HOT_TO_WARM_SECS": "3600",
    "DAKERA_WARM_TO_COLD_SECS": "86400",
    "DAKERA_AUTO_TIER": "true",
    "DAKERA_TIER_CHECK_INTERVAL_SECS": "300",
    "DAKERA_TIERED": "1",
    "DAKERA_SEARCH_MODE": "hybrid",
    "DAKERA_MAX_BODY_SIZE": "524288000",
    "DAKERA_REQUEST_TIMEOUT": "120",
    "DAKERA_AUTH_ENABLED": "false",
    "RUST_LOG": "info,dakera=debug",
}


def resolve(text: str, given: dict[str, str]) -> str:
    """`${NAME}`, `${NAME:-default}` and `${NAME:?message}` as compose reads them, one level of nesting."""

    def value(match: re.Match[str]) -> str:
        name, kind, rest = match.groups()
        if given.get(name):
            return given[name]
        if kind == ":?":
            raise KeyError(name)
        return resolve(rest or "", given)

    return VARIABLE.sub(value, text.replace("$$", "\0")).replace("\0", "$")


def stack(**given: str) -> dict[str, Any]:
    settings = {"DAKERA_ROOT_API_KEY": "a-root-key", **given}

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: walk(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [walk(inner) for inner in value]
        return resolve(value, settings) if isinstance(value, str) else value

    document: dict[str, Any] = walk(yaml.safe_load((ROOT / "docker-compose.ha.yml").read_text()))
    return document


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = stack()["services"]
    return found


def test_the_project_its_network_and_its_containers_have_the_documented_names(services: dict[str, Any]) -> None:
    document = stack()
    assert document["name"] == "dakera-ha"
    assert document["networks"]["dakera-ha-net"]["name"] == "dakera-ha-net"
    assert {name: service["container_name"] for name, service in services.items()} == CONTAINERS
    assert services["traefik"]["networks"]["dakera-ha-net"]["aliases"] == ["dakera-traefik"]
    assert all("dakera-ha-net" in service["networks"] for service in services.values())


@pytest.mark.parametrize("service", HOST_PORTS)
def test_host_ports_have_their_documented_defaults_and_variables(service: str) -> None:
    def published(document: dict[str, Any]) -> set[tuple[int, int]]:
        split = (port.split(":") for port in document["services"][service]["ports"])
        return {(int(parts[-2]), int(parts[-1])) for parts in split}

    for number, (variable, (host, inner)) in enumerate(HOST_PORTS[service].items()):
        assert (host, inner) in published(stack())
        moved = stack(**{variable: str(40_000 + number)})
        assert (40_000 + number, inner) in published(moved)
        assert (host, inner) not in published(moved)


def test_the_documentations_name_of_the_minio_port_works_too() -> None:
    assert any(port.endswith("9555:9000") for port in stack(HA_MINIO_PORT="9555")["services"]["minio"]["ports"])


def test_ports_without_authentication_are_published_on_loopback_only(services: dict[str, Any]) -> None:
    open_to_all = {
        (name, port)
        for name in services
        for port in services[name].get("ports", [])
        if not port.startswith("127.0.0.1:")
    }
    assert {name for name, _ in open_to_all} == {"traefik", "dashboard", "grafana"}
    assert ("traefik", "8080:8080") not in open_to_all


@pytest.mark.parametrize("service", VOLUMES)
def test_state_is_kept_in_the_documented_volumes(service: str, services: dict[str, Any]) -> None:
    assert set(services[service]["volumes"]) == VOLUMES[service]
    assert {volume.split(":")[0] for volume in VOLUMES[service]} <= set(stack()["volumes"])


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_node_has_the_documented_environment(number: int, services: dict[str, Any]) -> None:
    env = services[f"dakera-{number}"]["environment"]
    others = [other for other in (1, 2, 3) if other != number]
    own = {
        "DAKERA_NODE_ID": f"node-{number}",
        "DAKERA_CLUSTER_SEEDS": ",".join(f"dakera-{other}:7946" for other in others),
        "DAKERA_API_ADVERTISE": f"http://dakera-{number}:3000",
    }
    assert {name: env[name] for name in COMMON} == COMMON
    assert {name: env[name] for name in own} == own


@pytest.mark.parametrize("node", NODES)
def test_the_configuration_loader_knows_every_variable_and_finds_nothing_wrong(
    node: str, services: dict[str, Any]
) -> None:
    env = services[node]["environment"]
    assert all(isinstance(value, str) for value in env.values()), "compose would write other types its own way"
    settings, warnings = load(env)
    assert [warning for warning in warnings if warning.kind in (WarningKind.UNKNOWN, WarningKind.SHADOWED)] == []
    assert settings.cluster.enabled
    assert settings.storage.kind is StorageKind.S3
    assert len(settings.cluster.seeds) == 2


def test_no_node_is_a_primary(services: dict[str, Any]) -> None:
    """No role, and no node waits for another: what starts a node must not depend on one that may be gone."""
    for node in NODES:
        assert "DAKERA_CLUSTER_ROLE" not in services[node]["environment"]
        assert not set(services[node]["depends_on"]) & set(NODES)
    shapes = [
        {key: value for key, value in services[node].items() if key not in ("container_name", "environment", "volumes")}
        for node in NODES
    ]
    assert shapes[0] == shapes[1] == shapes[2]


@pytest.mark.parametrize("node", NODES)
def test_a_node_is_checked_as_documented(node: str, services: dict[str, Any]) -> None:
    assert services[node]["healthcheck"] == {
        "test": ["CMD", "curl", "-f", "http://127.0.0.1:3000/health"],
        "interval": "10s",
        "timeout": "5s",
        "retries": 5,
        "start_period": "15s",
    }
    assert services[node]["depends_on"]["minio-setup"]["condition"] == "service_completed_successfully"
    assert "redis" in services[node]["depends_on"]


def test_a_node_is_given_more_time_to_stop_than_it_drains(services: dict[str, Any]) -> None:
    settings, _ = load(services["dakera-1"]["environment"])
    assert int(services["dakera-1"]["stop_grace_period"].rstrip("s")) >= 2 * settings.drain_s


def test_a_root_key_is_asked_for() -> None:
    with pytest.raises(KeyError, match="DAKERA_ROOT_API_KEY"):
        resolve((ROOT / "docker-compose.ha.yml").read_text(), {})


def test_every_image_is_pinned_to_one_release(services: dict[str, Any]) -> None:
    for name, service in services.items():
        _, _, tag = service["image"].partition(":")
        assert re.search(r"\d+\.\d+\.\d+|RELEASE\.\d{4}-\d\d-\d\dT", tag), f"{name} runs {service['image']}"
    assert services["minio"]["image"] == "minio/minio:RELEASE.2025-09-07T16-13-09Z"
    assert services["dakera-1"]["image"].endswith(f":{__version__}")
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if line.startswith("FROM"):
            assert re.search(r":\d+\.\d+\.\d+", line), line


def test_monitoring_is_a_profile_and_scrapes_every_node(services: dict[str, Any]) -> None:
    for name in ("prometheus", "grafana", "jaeger"):
        assert services[name]["profiles"] == ["monitoring", "full"]
    assert not any(
        services[name].get("profiles") for name in services if name not in ("prometheus", "grafana", "jaeger")
    )
    jobs = yaml.safe_load((ROOT / "ops/stack/prometheus.yml").read_text())["scrape_configs"]
    targets = {job["job_name"]: job["static_configs"][0]["targets"] for job in jobs}
    assert targets["dakera"] == [f"{node}:3000" for node in NODES]


def test_every_file_that_is_mounted_exists(services: dict[str, Any]) -> None:
    mounted = [volume.split(":") for service in services.values() for volume in service.get("volumes", [])]
    files = [(host, mode) for host, _, *mode in mounted if host.startswith("./")]
    assert len(files) >= 4
    for host, mode in files:
        assert (ROOT / host).exists(), host
        assert mode == ["ro"], f"{host} can be changed from inside"


def test_the_image_serves_on_3000_as_a_plain_user_with_its_state_in_data() -> None:
    text = (ROOT / "Dockerfile").read_text()
    final = text[text.rindex("\nFROM") :]
    env = dict(re.findall(r"(DAKERA_\w+)=(\S+)", final))
    settings, warnings = load(env)
    assert settings.server.port == 3000
    assert settings.storage.path == "/data"
    assert (settings.storage.l2_cache_path or "").startswith("/data/")
    assert (settings.storage.cache_dir or "").startswith("/data/")
    assert [warning for warning in warnings if warning.kind is WarningKind.UNKNOWN] == []
    assert re.search(r"^USER dakera$", final, re.M)
    assert "curl" in final
    assert 'CMD ["dakera", "serve"]' in final
    assert f"DAKERA_MODEL_CACHE={env['DAKERA_MODEL_CACHE']} dakera models pull minilm" in text[: text.rindex("\nFROM")]
    assert not env["DAKERA_MODEL_CACHE"].startswith("/data"), "a volume would hide the model"


def test_what_the_image_is_built_from_is_not_ignored() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.M)
    assert {name for names in copied for name in names.split()} == allowed
