#!/usr/bin/env bash
# What must hold for every commit beside the tests.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=$PWD/.cache/tools
export PATH=$tools:$PATH

echo "gofmt"
unformatted=$(gofmt -l $(git ls-files -co --exclude-standard '*.go' | grep -v '\.pb\.go$'))
[ -z "$unformatted" ] || { echo "run gofmt -w on:"; echo "$unformatted"; exit 1; }

echo "go vet"
go vet ./...

echo "staticcheck"
staticcheck ./...

echo "go.mod is tidy"
go mod tidy -diff

echo "generated code is clean"
buf lint
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
buf generate -o "$fresh"
diff -r -x '*.proto' "$fresh/proto" proto || { echo "run make generate"; exit 1; }

echo "import rules"
go test -count=1 ./internal/arch

if command -v govulncheck >/dev/null; then
  echo "govulncheck"
  govulncheck ./...
else
  echo "govulncheck is not installed: known vulnerabilities were not looked up"
fi
