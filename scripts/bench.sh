#!/usr/bin/env bash
# Measures the figures of docs/benchmarks.md and prints them as one table; some
# half an hour on two cores. Needs 7 GiB of disk in TMPDIR. Arguments go to the
# program: --only encode,download runs a part, --keep leaves its files.
set -euo pipefail
cd "$(dirname "$0")/.."
kernels=.cache/kernels
only=
for ((i = 1; i < $#; i++)); do
  case "${!i}" in -only | --only) n=$((i + 1)) only=${!n} ;; esac
done
if [ -z "$only" ] || [[ ",$only," =~ ,(encode|download|stream), ]]; then
  scripts/fetch-kernels.sh "$kernels" >&2 || {
    echo "no kernels: the benchmark needs real firmware; put two images into $kernels/old and $kernels/new" >&2
    exit 1
  }
fi
mkdir -p .cache/tools
go build -o .cache/tools/otad-bench ./internal/bench
exec .cache/tools/otad-bench -bin bin -kernels "$kernels" "$@"
