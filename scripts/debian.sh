#!/usr/bin/env bash
# Installs Debian packages, or says which are missing when it may not: debian.sh PACKAGE...
set -euo pipefail
if [ "$(id -u)" != 0 ]; then
  echo "missing Debian packages: run 'apt-get install $*' as root" >&2
  exit 1
fi
echo "installing Debian packages: $*"
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
