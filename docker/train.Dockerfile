# The image for stages on GPUs: torch for CUDA, DeepSpeed, TRL and, if asked for, flash-attn-4. docs/images.md says how to build it.
# python:3.11-slim-bookworm (Python 3.11.16) as it stood in September 2026.
ARG BASE=docker.io/library/python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

# A C++ compiler stays in the image: triton and DeepSpeed compile small modules when they are first used. CUDA comes with torch's wheels.
FROM ${BASE} AS system
RUN apt-get update && apt-get install -y --no-install-recommends g++ libc6-dev && rm -rf /var/lib/apt/lists/*

FROM system AS dependencies
# INDEX: a package index instead of the default one. WHEELS: a folder or page of wheels, looked at as well.
# TORCH: which build of torch, in uv's words, where WHEELS is empty; empty takes the index's own, which is for CUDA.
ARG INDEX=""
ARG WHEELS=""
ARG TORCH=""
# FLASH_ATTN: any word adds the package that `flash_attn: true` in params asks for.
ARG FLASH_ATTN=""
ENV UV_NO_CACHE=1 UV_SYSTEM_CERTS=1 UV_COMPILE_BYTECODE=1 PYC_INVALIDATION_MODE=UNCHECKED_HASH
WORKDIR /build
COPY pyproject.toml requirements.lock docker/install.sh ./
RUN sh install.sh --requirements pyproject.toml --extra train ${FLASH_ATTN:+--extra flash} && /uv/bin/uv pip check --python /venv/bin/python

# Our own code is a small layer of its own, so that an edit moves kilobytes. It is installed in place, as sources: recipe keys and dvc.lock
# hash those. Any user can read it, whatever the umask of the builder.
FROM dependencies AS code
COPY LICENSE NOTICE README.md pyproject.toml dvc.yaml exclusions.csv /app/
COPY src /app/src
COPY components /app/components
COPY pipelines /app/pipelines
RUN sh install.sh --no-deps --no-build-isolation --prefix /code --editable /app \
    && python -m compileall -q --invalidation-mode unchecked-hash /app && chmod -R a+rX /app /code

FROM system
COPY --from=dependencies /venv /venv
COPY --from=code /code /venv
COPY --from=code /app /app
ARG REVISION=""
LABEL org.opencontainers.image.title="uni-medvlm-train" \
      org.opencontainers.image.description="Uni-MedVLM: training and evaluation on GPUs. For research only." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.revision="${REVISION}"
# A home and a name for any user id; nothing is written beside the code; no telemetry, no downloads.
ENV PATH=/venv/bin:${PATH} PYTHONPATH=/app PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    HOME=/tmp USER=unimed LOGNAME=unimed GIT_PYTHON_REFRESH=quiet \
    DO_NOT_TRACK=1 GX_ANALYTICS_ENABLED=false HF_HUB_DISABLE_TELEMETRY=1 HF_HUB_OFFLINE=1 MLFLOW_DISABLE_TELEMETRY=true
WORKDIR /app
USER 65532:65532
ENTRYPOINT []
CMD ["unimed", "--help"]
