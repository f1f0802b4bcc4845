# The node's image: Python, the node's packages, and the embedding model, so that a container fetches nothing when it runs.
# Build: docker build -t dakera-cluster:0.11.55 .

FROM python:3.11.14-slim-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends build-essential \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/dakera/venv
ENV PATH=/opt/dakera/venv/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY dakera_cluster dakera_cluster
COPY node node
# The wheel holds the library and the process, not the tools of the checkout.
RUN pip install . && rm -rf build ./*.egg-info
RUN DAKERA_MODEL_CACHE=/opt/dakera/models dakera models pull minilm

FROM python:3.11.14-slim-bookworm
RUN apt-get update \
    && apt-get install -y --no-install-recommends curl \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home --home-dir /data --shell /usr/sbin/nologin dakera \
    && mkdir -p /data/rocksdb /data/cache \
    && chown -R dakera:dakera /data
COPY --from=build /opt/dakera /opt/dakera
# State lives in /data and nowhere else. The model stands outside, where no volume hides it.
ENV PATH=/opt/dakera/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    DAKERA_HOST=0.0.0.0 \
    DAKERA_PORT=3000 \
    DAKERA_STORAGE=filesystem \
    DAKERA_STORAGE_PATH=/data \
    DAKERA_CACHE_DIR=/data/cache \
    DAKERA_ROCKSDB_PATH=/data/rocksdb \
    DAKERA_MODEL_CACHE=/opt/dakera/models
USER dakera
WORKDIR /data
VOLUME /data
EXPOSE 3000 50051 7946/tcp 7946/udp
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --retries=5 --start-period=15s \
    CMD curl -fsS "http://127.0.0.1:${DAKERA_PORT}/health" || exit 1
CMD ["dakera", "serve"]
