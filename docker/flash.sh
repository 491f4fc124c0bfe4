#!/bin/sh
# Builds flash-attn from its sources against the torch in /venv and lays it into the folder /flash; an empty FLASH_ATTN leaves the folder empty.
set -eu
mkdir -p /flash
if [ -z "$FLASH_ATTN" ]; then exit 0; fi

cuda=$(/venv/bin/python -c "import torch; print(torch.version.cuda or '')")
if [ -z "$cuda" ]; then
    echo "FLASH_ATTN=$FLASH_ATTN: expected a torch built for CUDA, found one for CPUs; leave WHEELS out, or FLASH_ATTN empty" >&2
    exit 78
fi
# The compiler in the version of the CUDA libraries that torch pins: both are wheels, so no CUDA base image is needed.
toolkit=$(/venv/bin/python -c "from importlib.metadata import version; print(version('cuda-toolkit'))")
sh install.sh "cuda-toolkit[nvcc,cccl]==$toolkit" wheel
CUDA_HOME=$(echo /venv/lib/python3.11/site-packages/nvidia/cu[0-9]*)
export CUDA_HOME
# Wheels hold libNAME.so.MAJOR only, the linker asks for libNAME.so.
for library in "$CUDA_HOME"/lib/lib*.so.*; do ln -sf "$library" "${library%%.so.*}.so"; done
ln -sfn lib "$CUDA_HOME/lib64"
export FLASH_ATTENTION_FORCE_BUILD=TRUE FLASH_ATTN_CUDA_ARCHS="$CUDA_ARCHS" MAX_JOBS="$JOBS" PATH="/venv/bin:$CUDA_HOME/bin:$PATH"
sh install.sh --no-deps --no-build-isolation --no-binary flash-attn --prefix /flash "flash-attn==$FLASH_ATTN"
