#!/usr/bin/env bash
# base-image.sh NAME ENGINE   a stand-in for the image's base, from this machine's own Debian or Ubuntu package sources
# For tests on machines that reach no image registry: never publish it, nor an image made from it.
set -euo pipefail

name=${1:?usage: base-image.sh NAME docker|podman|buildah}
engine=${2:?usage: base-image.sh NAME docker|podman|buildah}

fail() {
  echo "base-image.sh: $1" >&2
  exit 1
}

[ "$(id -u)" = 0 ] || fail "making a base image without a registry takes root"
command -v mmdebstrap >/dev/null || fail "mmdebstrap is missing; apt-get install mmdebstrap"

# shellcheck source=/dev/null
codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
sources=()
for file in /etc/apt/sources.list /etc/apt/sources.list.d/{debian,ubuntu}.{sources,list}; do
  [ ! -s "$file" ] || sources+=("$file")
done
[ -n "$codename" ] && [ ${#sources[@]} -gt 0 ] || fail "this machine is not Debian or Ubuntu with package sources"

# Proxies and the like, for the making only.
apt_options=()
while IFS= read -r file; do
  apt_options+=("--aptopt=$file")
done < <(grep -ls '^ *Acquire' /etc/apt/apt.conf /etc/apt/apt.conf.d/* || true)

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# shellcheck disable=SC2016  # $1 belongs to the hooks
mmdebstrap --quiet --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates \
  "${apt_options[@]}" \
  --dpkgopt='path-exclude=/usr/share/doc/*' \
  --dpkgopt='path-exclude=/usr/share/man/*' \
  --dpkgopt='path-exclude=/usr/share/locale/*' \
  --customize-hook='rm -f "$1"/usr/lib/python3*/EXTERNALLY-MANAGED' \
  --customize-hook='ln -s python3 "$1"/usr/bin/python' \
  --customize-hook='rm -rf "$1"/etc/apt/sources.list* "$1"/etc/apt/apt.conf.d/99mmdebstrap' \
  --customize-hook='"$1"/usr/bin/python3 -c "import sys; sys.exit(sys.version_info < (3, 11))"' \
  "$codename" "$scratch/base.tar" "${sources[@]}"

if [ "$engine" = buildah ]; then
  container=$(buildah from scratch)
  buildah add --quiet "$container" "$scratch/base.tar" / >/dev/null
  buildah commit --quiet --rm "$container" "$name" >/dev/null
else
  "$engine" import "$scratch/base.tar" "$name" >/dev/null
fi
