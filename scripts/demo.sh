#!/usr/bin/env bash
# Builds the binaries and runs the demo on two real kernels; without Debian's
# package tools or a network the firmware is made from otactl itself.
set -euo pipefail
cd "$(dirname "$0")/.."
make --no-print-directory -s build
kernels=.cache/kernels
if scripts/fetch-kernels.sh "$kernels" >&2; then
  exec bin/otactl demo --old "$kernels/old" --new "$kernels/new" "$@"
fi
echo "no kernels: the firmware is made from otactl itself" >&2
exec bin/otactl demo "$@"
