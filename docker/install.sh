#!/bin/sh
# Installs packages with uv into /venv, in the versions of requirements.lock; the arguments are uv's. INDEX and WHEELS say where from.
set -eu
if [ -n "${INDEX:-}" ]; then export PIP_INDEX_URL="$INDEX" UV_DEFAULT_INDEX="$INDEX"; fi
if [ -n "${WHEELS:-}" ]; then export PIP_FIND_LINKS="$WHEELS" UV_FIND_LINKS="$WHEELS"; fi
# Wheels that are given hold the torch that is wanted; uv would look for it elsewhere.
if [ -z "${WHEELS:-}" ] && [ -n "${TORCH:-}" ]; then export UV_TORCH_BACKEND="$TORCH"; fi

if [ ! -x /uv/bin/uv ]; then
    python -m venv /uv
    /uv/bin/python -m pip install --quiet --no-cache-dir --disable-pip-version-check "$(grep '^uv==' requirements.lock)"
    /uv/bin/uv venv --quiet --python "$(command -v python)" /venv
fi
/uv/bin/uv pip install --python /venv/bin/python --constraints requirements.lock --build-constraints requirements.lock "$@"
# uv leaves a lock file that anyone may write to.
rm -f /*/.lock
