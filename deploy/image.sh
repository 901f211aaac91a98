#!/usr/bin/env bash
# image.sh build   bento and OCI image, by ENGINE or the first of docker, podman and buildah that is there
# image.sh test    run the image locked down and compare its answers with those of the bento served on this machine
# image.sh abuse   run it so under the tests of tests/ that are marked `container`; further arguments are pytest's
set -euo pipefail

cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"
cache=$PWD/.cache/image
base=docker.io/library/python:3.11-slim
# The image's name; several may be built on one machine.
image=${IMAGE:-trueodds}
stand_in=localhost/trueodds-test-base:3.11
# A home of its own: BentoML wipes parts of it at start.
export BENTOML_HOME=$cache/bentoml BENTOML_DO_NOT_TRACK=True

say() {
  echo "image.sh: $1"
}

fail() {
  echo "image.sh: $1" >&2
  exit 1
}

find_engine() {
  if { command -v docker && docker info; } >/dev/null 2>&1; then
    echo docker
  elif command -v podman >/dev/null; then
    echo podman
  elif command -v buildah >/dev/null; then
    echo buildah
  else
    fail "docker (with its engine running), podman or buildah is needed: see https://docs.docker.com/get-docker/ or \
https://podman.io/docs/installation; deploy/install-tools.sh installs podman on Debian and Ubuntu"
  fi
}

# Root without CAP_SYS_RESOURCE (bit 24): podman's default limits cannot be set.
adapt_to_sandbox() {
  local capabilities
  [ "$(id -u)" = 0 ] && [ -r /proc/self/status ] || return 0
  [ -z "${CONTAINERS_CONF:-}" ] && [ ! -e /etc/containers/containers.conf ] || return 0
  capabilities=$(sed -n 's/^CapEff:[[:space:]]*//p' /proc/self/status)
  (((16#$capabilities >> 24) & 1)) || export CONTAINERS_CONF=$PWD/deploy/containers.conf
}

has_image() {
  case $engine in
    buildah) buildah inspect --type image "$1" ;;
    *) "$engine" image inspect "$1" ;;
  esac >/dev/null 2>&1
}

prepare_base() {
  has_image "$base" && return
  say "pulling $base"
  "$engine" pull --quiet "$base" >"$cache/pull.log" 2>&1 && return
  if ! has_image "$stand_in"; then
    say "cannot pull it ($(tail -n 1 "$cache/pull.log"))"
    say "making a stand-in from this machine's package sources: the image will do for tests, not for publishing"
    deploy/base-image.sh "$stand_in" "$engine" >"$cache/base-image.log" 2>&1 ||
      fail "no base image; pull $base where a registry is reachable. $(tail -n 1 "$cache/base-image.log")"
  fi
  base=$stand_in
}

# pip's settings (index, certificates, local folders) may mean nothing inside a build, and must not stay in an image:
# where there are any, pip fetches the wheels out here. Else pip in the build asks the public index.
fetch_wheels() {
  [ -n "$(python -m pip config list)" ] || return 0
  [ "$(python -c 'import sys; print(sys.platform, *sys.version_info[:2])')" = "linux 3 11" ] || return 0
  say "fetching the wheels with this machine's pip settings"
  python -m pip download --quiet --disable-pip-version-check --require-hashes --only-binary :all: \
    --requirement requirements/serve.lock --requirement requirements/oidc.lock --requirement requirements/signing.lock \
    --requirement requirements/postgres.lock --dest "$cache/wheels" >"$cache/wheels.log" 2>&1 ||
    { cat "$cache/wheels.log" >&2 && fail "pip could not fetch the wheels"; }
  options+=(--opt "build-context=wheels=$cache/wheels")
}

build() {
  local started=$SECONDS version revision tag
  version=$(python -c 'from service import VERSION; print(VERSION)')
  revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
  mkdir -p "$cache"
  rm -rf "$BENTOML_HOME"
  mkdir -p "$BENTOML_HOME"

  bentoml build --output tag >"$cache/bento.log" 2>&1 || { cat "$cache/bento.log" >&2 && fail "bentoml build failed"; }
  tag=$(sed -n 's/^__tag__://p' "$cache/bento.log")
  say "bento $tag, $(du -sm "$BENTOML_HOME/bentos" | cut -f 1) MB, $((SECONDS - started)) s"

  options=(--backend "$engine" --image-tag "$image:$version" --image-tag "$image:latest")
  options+=(--opt "label=org.opencontainers.image.version=$version")
  options+=(--opt "label=org.opencontainers.image.revision=$revision")
  prepare_base
  options+=(--opt "build-arg=BASE=$base")
  fetch_wheels
  # buildah's own sandboxing asks for more than a sandbox grants.
  [ "$engine" != buildah ] || [ -z "${CONTAINERS_CONF:-}" ] || options+=(--opt isolation=chroot)
  say "building the image with $engine"
  # BentoML copies the bento to TMPDIR and refuses a template there unless that is below the working directory.
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  if ! (cd "$scratch" && TMPDIR=$scratch bentoml containerize "$tag" "${options[@]}") >"$cache/image.log" 2>&1 ||
    ! has_image "$image:latest"; then
    grep -v '^INFO' "$cache/image.log" | tail -n 20 >&2
    fail "the image was not built; all of the log is in $cache/image.log"
  fi
  say "image $image:$version (and $image:latest), $(size_of "$image:latest"), $((SECONDS - started)) s in all"
}

size_of() {
  case $engine in
    buildah) buildah images --format '{{.Size}}' "$1" | head -n 1 ;;
    *) "$engine" image inspect --format '{{.Size}}' "$1" | awk '{printf "%.0f MB\n", $1 / 1e6}' ;;
  esac
}

# Temporary files are memory, so they are bounded too.
locked_down=(--read-only --tmpfs /tmp:size=64m --memory 1g --pids-limit 256 --cap-drop ALL)
locked_down+=(--security-opt no-new-privileges)

run_image() {
  # Two workers, as many as 1 GiB holds with ease, whatever the number of cores.
  "$engine" run --detach --name "$container" --publish 127.0.0.1::3000 --env TRUEODDS_WORKERS=2 \
    "${locked_down[@]}" "$image:latest" >/dev/null
}

clean_up() {
  local status=$?
  [ -z "${bento_pid:-}" ] || kill "$bento_pid" 2>/dev/null || true
  if [ "$status" != 0 ]; then
    echo "image.sh: the container's log:" >&2
    "$engine" logs "$container" >&2 || true
  fi
  "$engine" rm --force "$container" >/dev/null 2>&1 || true
}

check_runnable() {
  [ "$engine" != buildah ] || fail "buildah builds but does not run services; install podman or docker"
  has_image "$image:latest" || fail "there is no image yet; run make image first"
}

# Processes in the container are looked at and killed from outside, which takes root.
abuse_image() {
  check_runnable
  [ "$(id -u)" = 0 ] || fail "the tests reach into the container, which takes root"
  KIT_IMAGE=$image:latest KIT_RUN="$engine run ${locked_down[*]}" python -m pytest -m container tests/abuse "$@"
}

test_image() {
  local started url port bento_url user
  mkdir -p "$cache"
  check_runnable
  user=$("$engine" image inspect --format '{{.Config.User}}' "$image:latest")
  case $user in '' | 0 | 0:* | root*) fail "the image runs as root" ;; esac

  container=trueodds-test-$$
  trap clean_up EXIT
  started=$(python -c 'import time; print(time.time())')
  run_image
  url=http://$("$engine" port "$container" 3000/tcp | head -n 1)
  python deploy/compare.py ready "$url" 60
  say "the image is ready after $(python -c "import time; print(f'{time.time() - $started:.1f} s')"), as user $user"

  port=$(python -c 'import socket; print(socket.create_server(("127.0.0.1", 0)).getsockname()[1])')
  bento_url=http://127.0.0.1:$port
  bentoml serve trueodds:latest --host 127.0.0.1 --port "$port" >"$cache/serve.log" 2>&1 &
  bento_pid=$!
  python deploy/compare.py ready "$bento_url" 60 || fail "the bento is not served; see $cache/serve.log"
  python deploy/compare.py answers "$url" "$bento_url"
  say "the image answers as the bento does"
}

command -v bentoml >/dev/null || fail "bentoml is missing; run make image, which installs it into .venv"
engine=${ENGINE:-$(find_engine)}
[ "$engine" = docker ] || adapt_to_sandbox
# By itself podman makes more places to write to, of any size.
[ "$engine" != podman ] || locked_down+=(--read-only-tmpfs=false)
case ${1:-} in
  build) build ;;
  test) test_image ;;
  abuse) abuse_image "${@:2}" ;;
  *) fail "usage: deploy/image.sh build|test|abuse" ;;
esac
