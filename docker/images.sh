#!/bin/sh
# Builds both images with podman or docker, pushes them where REGISTRY names one, and writes to images.json what the compiler puts into pipelines.
# Variables: ENGINE, REGISTRY, BASE, INDEX, WHEELS, FLASH_ATTN, and OPTIONS, words for the engine's build. docs/images.md explains them.
set -eu

fail() {
    echo "images: $1" >&2
    exit 78
}

engine=${ENGINE:-$(command -v podman || command -v docker || true)}
[ -n "$engine" ] || fail "expected podman or docker, found neither; install one or set ENGINE"
[ -f docker/ops.Dockerfile ] || fail "expected the project's folder as working folder, found $PWD; run make images there"
revision=$(git describe --always --dirty --abbrev=40 --exclude='*' 2>/dev/null || true)

argument() {
    eval "value=\${$1:-}"
    if [ -n "$value" ]; then printf -- '--build-arg %s=%s' "$1" "$value"; fi
}

# Prints the name of a pushed image with the digest that the registry knows it by.
push() {
    case $(basename "$engine") in
    podman*)
        digest=$(mktemp)
        "$engine" push --quiet --digestfile "$digest" "$1" >&2
        echo "${1%:*}@$(cat "$digest")"
        rm "$digest"
        ;;
    *)
        "$engine" push --quiet "$1" >&2
        "$engine" image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$1" | grep "^${1%:*}@"
        ;;
    esac
}

build() {
    image="${REGISTRY:-localhost}/unimed-$1:${revision:-unversioned}"
    flash=""
    if [ "$1" = train ]; then flash=$(argument FLASH_ATTN); fi
    # Unquoted: each holds several words or none.
    # shellcheck disable=SC2046,SC2086
    "$engine" build $(argument BASE) $(argument INDEX) $(argument WHEELS) $flash ${OPTIONS:-} \
        --build-arg "REVISION=$revision" --file "docker/$1.Dockerfile" --tag "$image" . >&2 || fail "expected $1 to build, found the error above"
    if [ -n "${REGISTRY:-}" ]; then push "$image"; else echo "$image"; fi
}

ops=$(build ops)
train=$(build train)
printf '{"ops": "%s", "train": "%s"}\n' "$ops" "$train" >images.json.partial
mv images.json.partial images.json
cat images.json
