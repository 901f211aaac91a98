#!/usr/bin/env bash
# Installs what image.sh needs, on Debian or Ubuntu as root, where no docker engine, podman or buildah is there yet.
# Exits 0 when images can be built and run afterwards, else 1.
set -euo pipefail

if { command -v docker && docker info; } >/dev/null 2>&1; then
  echo "install-tools.sh: docker is there and its engine answers"
  exit 0
fi
if command -v podman >/dev/null; then
  echo "install-tools.sh: podman is there"
  exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "install-tools.sh: neither docker nor podman is there, and installing podman takes root on Debian or Ubuntu" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
if apt-get update -qq &&
  apt-get install -qq -y --no-install-recommends buildah podman runc crun mmdebstrap uidmap catatonit iptables; then
  echo "install-tools.sh: podman and buildah are installed"
else
  echo "install-tools.sh: apt-get could not install podman and buildah; its messages are above" >&2
  exit 1
fi
