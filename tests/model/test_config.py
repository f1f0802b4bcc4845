"""The configuration table and its loader."""

from __future__ import annotations

import math
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dakera_cluster.inference.models import Task, resolve, spellings
from dakera_cluster.model.config import (
    ROWS,
    ConfigError,
    HostPort,
    ReadConsistency,
    Row,
    SearchMode,
    Secret,
    Settings,
    StorageKind,
    WarningKind,
    WriteLevel,
    load,
)
from dakera_cluster.model.config.values import Bool, Duration, Int, Many, Size

ROOT = {row.var.name: row for row in ROWS}


def settings_of(**env: str) -> Settings:
    return load(env)[0]


def problems_of(**env: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(env)
    return [str(problem) for problem in caught.value.problems]


class TestTable:
    def test_every_name_alias_and_file_key_belongs_to_one_setting(self) -> None:
        names = [name for row in ROWS for name in (row.var.name, *row.var.aliases)]
        keys = [row.toml for row in ROWS]
        assert len(names) == len(set(names))
        assert len(keys) == len(set(keys))

    @pytest.mark.parametrize("row", ROWS, ids=lambda row: row.var.name)
    def test_every_default_is_accepted_as_text_and_gives_itself(self, row: Row) -> None:
        if row.default is not None and row.default != ():
            assert row.var.kind.parse(row.var.kind.show(row.default)) == row.default

    @pytest.mark.parametrize("row", ROWS, ids=lambda row: row.var.name)
    def test_every_row_says_what_it_means_and_what_it_expects(self, row: Row) -> None:
        assert row.var.meaning
        assert row.var.kind.expected
        assert row.default_text

    def test_without_anything_given_the_documented_defaults_hold(self) -> None:
        settings, warnings = load({})
        assert warnings == []
        assert settings == Settings()
        assert settings.server.port == 3300
        assert settings.server.grpc_port == 50051
        assert settings.storage.kind is StorageKind.MEMORY
        assert settings.storage.path == "./data"
        assert settings.storage.l1_cache_bytes == 512 * 1024**2
        assert settings.models.embedding_model == "minilm"
        assert settings.memory.autopilot_dedup_threshold == 0.93
        assert settings.cluster.shards == 64
        assert settings.cluster.replication_factor == 3
        assert settings.cluster.rebalance_delay_s == 60
        assert settings.cluster.write_level is WriteLevel.QUORUM
        assert settings.cluster.read_consistency is ReadConsistency.EVENTUAL
        assert settings.retrieval.flat_threshold == 50_000


class TestPrecedence:
    def test_environment_wins_over_file_and_file_over_default(self) -> None:
        file = {"server": {"port": 1111, "host": "10.0.0.1"}}
        settings, _ = load({"DAKERA_PORT": "2222"}, file)
        assert settings.server.port == 2222
        assert settings.server.host == "10.0.0.1"
        assert settings.server.grpc_port == 50051

    def test_empty_text_is_not_given(self) -> None:
        assert settings_of(DAKERA_PORT="", DAKERA_HOST="  ").server == Settings().server

    def test_surrounding_blanks_are_dropped(self) -> None:
        assert settings_of(DAKERA_PORT=" 3000 ").server.port == 3000

    @pytest.mark.parametrize("row", [row for row in ROWS if row.var.aliases], ids=lambda row: row.var.name)
    def test_an_alias_sets_the_same_setting(self, row: Row) -> None:
        samples = {
            "DAKERA_CLUSTER_SEEDS": "a:1",
            "DAKERA_GOSSIP_BIND": "1.2.3.4:5",
            "RUST_LOG": "debug",
        }
        text = samples.get(row.var.name, "some-text")
        for alias in row.var.aliases:
            env = {alias: text}
            if row.var.name.startswith("AWS_"):
                env |= {"AWS_ACCESS_KEY_ID": "k"} if "SECRET" in row.var.name else {"AWS_SECRET_ACCESS_KEY": "s"}
            value = getattr(getattr(load(env)[0], row.section), row.field)
            assert value == row.var.kind.parse(text)

    def test_the_canonical_name_wins_over_its_alias_and_says_so(self) -> None:
        settings, warnings = load({"RUST_LOG": "debug", "DAKERA_LOG_LEVEL": "warn"})
        assert settings.observability.log_filter == "debug"
        shadowed = [warning for warning in warnings if warning.kind is WarningKind.SHADOWED]
        assert [warning.name for warning in shadowed] == ["DAKERA_LOG_LEVEL"]
        assert "RUST_LOG" in shadowed[0].message

    def test_an_alias_that_says_the_same_is_silent(self) -> None:
        _, warnings = load({"RUST_LOG": "debug", "DAKERA_LOG_LEVEL": "debug"})
        assert not [warning for warning in warnings if warning.kind is WarningKind.SHADOWED]


class TestFile:
    def test_the_documented_keys_map_onto_the_same_settings(self) -> None:
        file = {
            "server": {"host": "0.0.0.0", "port": 3300},
            "storage": {"path": "/var/lib/dakera/data", "encryption": "aes-256-gcm", "encryption_key": "correct horse"},
            "retrieval": {"mode": "scalar", "hnsw_ef_construction": 111, "hnsw_m": 17, "bm25_k1": 1.5, "bm25_b": 0.5},
            "embeddings": {"model": "bge-small-en-v1.5", "device": "cuda", "batch_size": 63},
        }
        settings, warnings = load({}, file)
        assert not [warning for warning in warnings if warning.kind is WarningKind.UNKNOWN]
        assert settings.storage.path == "/var/lib/dakera/data"
        assert settings.storage.kind is StorageKind.FILESYSTEM
        assert settings.storage.encryption_key == Secret("correct horse")
        assert settings.retrieval.search_mode is SearchMode.SCALAR
        assert (settings.retrieval.hnsw_ef_construction, settings.retrieval.hnsw_m) == (111, 17)
        assert (settings.retrieval.bm25_k1, settings.retrieval.bm25_b) == (1.5, 0.5)
        assert (settings.models.embedding_model, settings.models.device) == ("bge-small", "cuda")
        assert settings.models.batch_size == 63

    def test_every_setting_can_stand_in_the_file_under_its_section(self) -> None:
        settings, _ = load({}, {"cluster": {"seeds": ["a:1", "b"], "shards": 128}, "limits": {"rate_limit_rps": 7}})
        assert settings.cluster.seeds == (HostPort("a", 1), HostPort("b", 7946))
        assert settings.cluster.shards == 128
        assert settings.limits.rate_limit_rps == 7

    def test_an_unknown_key_is_warned_about_with_the_nearest_known_one(self) -> None:
        _, warnings = load({}, {"server": {"prot": 1}, "colour": "red"})
        assert [(warning.name, "server.port" in warning.message) for warning in warnings] == [
            ("colour", False),
            ("server.prot", True),
        ]

    def test_a_wrong_value_is_named_by_its_key(self) -> None:
        with pytest.raises(ConfigError) as caught:
            load({}, {"server": {"port": True}, "cluster": {"seeds": [1]}})
        assert [problem.name for problem in caught.value.problems] == ["cluster.seeds", "server.port"]


class TestWrongValues:
    def test_all_problems_are_told_at_once_with_name_value_and_expectation(self) -> None:
        problems = problems_of(DAKERA_PORT="99999", DAKERA_DECAY_ENABLED="perhaps", DAKERA_NAME_BOOST="1.5")
        assert problems == [
            "DAKERA_PORT='99999': expected a whole number from 1 to 65535",
            "DAKERA_NAME_BOOST='1.5': expected a number from 0 to 1",
            "DAKERA_DECAY_ENABLED='perhaps': expected true or false (also 1, 0, yes, no, on, off)",
        ]

    def test_the_alias_that_was_written_is_the_one_named(self) -> None:
        assert problems_of(DAKERA_LOG_LEVEL="loud")[0].startswith("DAKERA_LOG_LEVEL='loud'")

    @pytest.mark.parametrize(
        ("name", "wrong"),
        [
            ("DAKERA_PORT", "0"),
            ("DAKERA_PORT", "3.5"),
            ("DAKERA_PORT", "0x10"),
            ("DAKERA_PORT", "３０００"),
            ("DAKERA_STORAGE", "postgres"),
            ("DAKERA_S3_BUCKET", "ab"),
            ("DAKERA_S3_BUCKET", "Has_Capitals"),
            ("DAKERA_S3_ENDPOINT", "minio:9000"),
            ("DAKERA_S3_ENDPOINT", "ftp://minio"),
            ("DAKERA_S3_ENDPOINT", "http://minio:99999"),
            ("DAKERA_API_ADVERTISE", "http://"),
            ("DAKERA_REDIS_URL", "http://redis:6379"),
            ("DAKERA_CLUSTER_SEEDS", "a:b"),
            ("DAKERA_CLUSTER_SEEDS", "a:1,:2"),
            ("DAKERA_GOSSIP_BIND", "1.2.3.4:"),
            ("DAKERA_L1_CACHE_SIZE", "12 parsecs"),
            ("DAKERA_L1_CACHE_SIZE", "-1"),
            ("DAKERA_HOT_TO_WARM_SECS", "soon"),
            ("DAKERA_HOT_TO_WARM_SECS", "1ms"),
            ("DAKERA_RRF_K", "nan"),
            ("DAKERA_BM25_B", "nan"),
            ("DAKERA_BM25_K1", "inf"),
            ("DAKERA_EMBEDDING_MODEL", "gpt"),
            ("DAKERA_NODE_ID", "node 1"),
            ("DAKERA_GOSSIP_KEY", "short"),
            ("DAKERA_GOSSIP_KEY", "zz" * 32),
            ("DAKERA_WRITE_LEVEL", "most"),
            ("RUST_LOG", "info,dakera=loud"),
            ("DAKERA_AUDIT_LOG_PATH", "a\0b"),
        ],
    )
    def test_a_value_outside_the_kind_is_refused(self, name: str, wrong: str) -> None:
        problems = problems_of(**{name: wrong})
        assert len(problems) == 1
        assert problems[0].startswith(f"{name}=")
        assert ROOT[name].var.kind.expected in problems[0]

    def test_a_wrong_secret_is_not_repeated(self) -> None:
        problems = problems_of(DAKERA_GOSSIP_KEY="hunter2-hunter2", DAKERA_ENCRYPTION_KEY="hunter2")
        assert len(problems) == 2
        assert "hunter2" not in "".join(problems)

    def test_a_long_wrong_value_is_cut(self) -> None:
        assert len(problems_of(DAKERA_PORT="9" * 5000)[0]) < 300

    @given(st.text(alphabet=string.printable, max_size=20))
    def test_any_text_is_accepted_or_refused_and_nothing_else_happens(self, text: str) -> None:
        for row in ROWS:
            try:
                value = row.var.kind.parse(text)
            except ValueError:
                continue
            assert value is not None
            assert not (isinstance(value, float) and not math.isfinite(value))


class TestContradictions:
    def test_a_cluster_without_a_bucket_is_refused(self) -> None:
        assert problems_of(DAKERA_CLUSTER_MODE="ha")[0].startswith("DAKERA_BUCKET_PATH is not set: expected")
        assert settings_of(DAKERA_CLUSTER_MODE="ha", DAKERA_BUCKET_PATH="/shared").cluster.enabled
        assert settings_of(DAKERA_CLUSTER_MODE="1", DAKERA_STORAGE="minio").cluster.enabled

    def test_probe_timeout_must_leave_time_for_the_others(self) -> None:
        assert "probe interval (200 ms)" in problems_of(DAKERA_GOSSIP_PROBE_INTERVAL_MS="200")[0]

    def test_half_of_a_pair_is_refused(self) -> None:
        assert problems_of(AWS_ACCESS_KEY_ID="k")[0].startswith("AWS_SECRET_ACCESS_KEY is not set")
        assert problems_of(DAKERA_PEER_TLS_CERT="c.pem")[0].startswith("DAKERA_PEER_TLS_KEY is not set")
        assert problems_of(DAKERA_GOSSIP_KEY_PREVIOUS="ab" * 32)[0].startswith("DAKERA_GOSSIP_KEY is not set")

    def test_encryption_by_name_without_a_key_is_refused_for_data_that_stays(self) -> None:
        assert "encryption at rest" in problems_of(DAKERA_ENCRYPTION="aes-256-gcm", DAKERA_STORAGE="filesystem")[0]
        assert settings_of(DAKERA_ENCRYPTION="aes-256-gcm").storage.encryption_key is None

    def test_a_rate_without_burst_lets_nothing_through_and_is_refused(self) -> None:
        assert problems_of(RATE_LIMIT_BURST="0")
        assert settings_of(RATE_LIMIT_BURST="0", RATE_LIMIT_RPS="0").limits.rate_limit_rps == 0


class TestUnknownNames:
    def test_an_unknown_name_is_warned_about_with_the_nearest_known_one(self) -> None:
        _, warnings = load({"DAKERA_STORAGE_PAHT": "/x", "DAKERA_QQQQ": "1", "PATH": "/bin"})
        assert [(warning.kind, warning.name) for warning in warnings] == [
            (WarningKind.UNKNOWN, "DAKERA_QQQQ"),
            (WarningKind.UNKNOWN, "DAKERA_STORAGE_PAHT"),
        ]
        assert "did you mean" not in warnings[0].message
        assert "DAKERA_STORAGE_PATH" in warnings[1].message

    @pytest.mark.parametrize("name", ["DAKERA_URL", "DAKERA_API_URL", "DAKERA_MCP_PROFILE", "DAKERA_RECORD_MAX_BYTES"])
    def test_names_of_clients_and_later_releases_are_silent(self, name: str) -> None:
        assert load({name: "anything"})[1] == []


class TestWithoutEffect:
    def test_what_an_operator_relies_on_is_warned_about_by_name_while_it_is_not_in_force(self) -> None:
        unmet = [row for row in ROWS if row.var.relied_on and not row.var.effect]
        texts = {"DAKERA_AUDIT_LOG": "true"}
        env = {row.var.name: texts.get(row.var.name, "ab" * 32) for row in unmet}
        _, warnings = load(env)
        named = [warning.name for warning in warnings if warning.kind is WarningKind.UNMET]
        assert named == [row.var.name for row in unmet]

    def test_asking_for_nothing_is_met(self) -> None:
        assert not [warning for warning in load({"DAKERA_AUDIT_LOG": "0"})[1] if warning.kind is WarningKind.UNMET]


class TestStacks:
    def test_the_high_availability_stack_starts_unchanged(self) -> None:
        env = {
            "DAKERA_HOST": "0.0.0.0",
            "DAKERA_PORT": "3000",
            "DAKERA_GRPC_PORT": "50051",
            "DAKERA_CLUSTER_MODE": "true",
            "DAKERA_GOSSIP_PORT": "7946",
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
            "DAKERA_ROOT_API_KEY": "dk_root",
            "RUST_LOG": "info,dakera=debug",
            "DAKERA_NODE_ID": "node-1",
            "DAKERA_CLUSTER_ROLE": "primary",
            "DAKERA_CLUSTER_SEEDS": "dakera-2:7946,dakera-3:7946",
            "DAKERA_GOSSIP_BIND": "0.0.0.0:7946",
            "DAKERA_API_ADVERTISE": "http://dakera-1:3000",
        }
        settings, warnings = load(env)
        assert {warning.kind for warning in warnings} <= {WarningKind.NO_EFFECT, WarningKind.UNMET}
        assert settings.cluster.seeds == (HostPort("dakera-2", 7946), HostPort("dakera-3", 7946))
        assert settings.gossip_bind == HostPort("0.0.0.0", 7946)
        assert settings.storage.tiering
        assert settings.drain_s == 10
        assert not settings.server.auth_enabled


class TestKinds:
    @pytest.mark.parametrize(
        ("text", "size"),
        [("1", 1), ("512MiB", 2**29), ("512 mib", 2**29), ("1G", 2**30), ("1GB", 10**9), ("0.5k", 512), ("2t", 2**41)],
    )
    def test_sizes(self, text: str, size: int) -> None:
        assert Size().parse(text) == size

    @pytest.mark.parametrize(
        ("of", "text", "value"),
        [
            ("s", "90", 90),
            ("s", "1.5m", 90),
            ("ms", "0.5s", 500),
            ("s", "7d", 604_800),
            ("h", "1d", 24),
            ("ms", "2", 2),
        ],
    )
    def test_durations_are_in_their_own_unit_unless_another_is_named(self, of: str, text: str, value: int) -> None:
        assert Duration(of).parse(text) == value

    def test_a_duration_that_is_no_whole_number_of_units_is_refused(self) -> None:
        with pytest.raises(ValueError):
            Duration("s").parse("1500ms")

    @pytest.mark.parametrize("word", ["true", "TRUE", "1", "yes", "on", "ha", "HA"])
    def test_words_for_true(self, word: str) -> None:
        assert Bool(also_true=("ha",)).parse(word) is True

    @pytest.mark.parametrize(
        ("text", "endpoint"),
        [
            ("dakera-1:7000", HostPort("dakera-1", 7000)),
            ("dakera-1", HostPort("dakera-1", 7946)),
            ("[::1]:7000", HostPort("::1", 7000)),
            ("[fe80::1]", HostPort("fe80::1", 7946)),
        ],
    )
    def test_endpoints(self, text: str, endpoint: HostPort) -> None:
        assert settings_of(DAKERA_GOSSIP_BIND=text).cluster.gossip_bind == endpoint

    def test_lists_drop_empty_items(self) -> None:
        assert Many(Int()).parse("1, 2,,3,") == (1, 2, 3)

    @pytest.mark.parametrize("spelling", [spelling for name in spellings() for spelling in (name, name.upper())])
    def test_every_spelling_of_the_model_catalogue_gives_the_clients_name(self, spelling: str) -> None:
        assert settings_of(DAKERA_EMBEDDING_MODEL=spelling).models.embedding_model == resolve(spelling).name

    @pytest.mark.parametrize("spelling", spellings(Task.RERANKER))
    def test_every_spelling_of_a_reranker_gives_its_name(self, spelling: str) -> None:
        for written in (spelling, spelling.upper()):
            assert settings_of(DAKERA_RERANKER_MODEL=written).models.reranker_model == "bge-reranker-base"
        assert settings_of(DAKERA_RERANKER_MODEL="/models/mine").models.reranker_model == "/models/mine"
        with pytest.raises(ConfigError):
            settings_of(DAKERA_EMBEDDING_MODEL=spelling if "/" not in spelling else "bge-reranker-base")

    def test_a_directory_is_a_model(self) -> None:
        assert settings_of(DAKERA_EMBEDDING_MODEL="/models/mine").models.embedding_model == "/models/mine"

    def test_gossip_keys_in_hex_and_base64(self) -> None:
        base64_key = "q6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s="
        settings = settings_of(DAKERA_GOSSIP_KEY="cd" * 32, DAKERA_GOSSIP_KEY_PREVIOUS=base64_key)
        assert settings.cluster.gossip_keys_text == f"{'cd' * 32},{base64_key}"


class TestRedaction:
    def test_no_secret_leaves_through_any_view(self) -> None:
        word = "hunter2hunter2"
        env: dict[str, str] = {"DAKERA_GOSSIP_KEY": "ab" * 32, "DAKERA_GOSSIP_KEY_PREVIOUS": "cd" * 32}
        env["AWS_ACCESS_KEY_ID"] = "visible"
        for row in ROWS:
            if row.secret and row.var.name not in env:
                env[row.var.name] = word
        env["DAKERA_REDIS_URL"] = f"redis://:{word}@redis:6379"
        settings, warnings = load(env)
        texts = [str(settings.effective()), str(warnings)]
        assert settings.server.root_api_key is not None
        assert settings.server.root_api_key.reveal() == word
        assert all(text.count(word) == 0 and "ab" * 32 not in text and "cd" * 32 not in text for text in texts)
        assert word not in repr(settings.server)
        assert word not in repr(settings.storage)

    def test_effective_shows_every_setting_as_plain_data(self) -> None:
        shown = settings_of(DAKERA_CLUSTER_SEEDS="a:1,b:2", DAKERA_STORAGE="filesystem").effective()
        assert {(section, field) for section, fields in shown.items() for field in fields} == {
            (row.section, row.field) for row in ROWS
        }
        assert shown["cluster"]["seeds"] == ["a:1", "b:2"]
        assert shown["storage"]["kind"] == "filesystem"
        plain = (str, int, float, bool, list, type(None))
        assert all(type(value) in plain for fields in shown.values() for value in fields.values())
