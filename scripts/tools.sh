#!/usr/bin/env bash
# Installs the developer tools into .cache/tools, if they are missing or another
# version: Go programs, pinned by tools/go.mod; and buf, pinned by
# tools/package-lock.json, as its makers built it for npm. Its source is 600
# packages, which took longer to compile than all the rest of make check.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p .cache/tools
(cd tools && GOFLAGS=-modcacherw go build -o ../.cache/tools/ tool)

# Only files are unpacked: no package gets to run a program of its own here.
if ! cmp -s tools/package-lock.json .cache/npm-tools/installed || [ ! -x .cache/tools/buf ]; then
  command -v npm >/dev/null || scripts/debian.sh nodejs npm
  echo "installing buf from npm into .cache/tools"
  mkdir -p .cache/npm-tools
  cp tools/package.json tools/package-lock.json .cache/npm-tools/
  (cd .cache/npm-tools && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
  # npm has unpacked the program for this platform and for no other.
  (cd .cache/tools && ln -sf ../npm-tools/node_modules/@bufbuild/buf-*/bin/buf buf && ./buf --version >/dev/null)
  cp tools/package-lock.json .cache/npm-tools/installed
fi
