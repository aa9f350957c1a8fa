#!/usr/bin/env bash
# Installs what the tests start, if it is missing: Debian packages by apt (when
# root), the S3 server as a Go program into .cache/tools, MQTT clients from npm
# into .cache/clients. Quick the second time.
set -euo pipefail
cd "$(dirname "$0")/.."

need=()
command -v gcc >/dev/null || need+=(gcc libc6-dev) # the race detector needs cgo
command -v mosquitto >/dev/null || [ -x /usr/sbin/mosquitto ] || need+=(mosquitto)
command -v mosquitto_rr >/dev/null || need+=(mosquitto-clients)
/usr/bin/python3 -c 'import paho.mqtt.client' 2>/dev/null || need+=(python3 python3-paho-mqtt)
command -v node >/dev/null || need+=(nodejs)
command -v npm >/dev/null || need+=(npm)
command -v zstd >/dev/null || need+=(zstd)
command -v jq >/dev/null || need+=(jq)
command -v openssl >/dev/null || need+=(openssl)
command -v curl >/dev/null || need+=(curl)
command -v pgrep >/dev/null || need+=(procps)
if ! command -v postgres >/dev/null && ! compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null; then
  need+=(postgresql)
  # The tests start servers of their own; Debian's would only stand by.
  if [ "$(id -u)" = 0 ] && [ ! -e /etc/postgresql-common/createcluster.conf ]; then
    mkdir -p /etc/postgresql-common
    echo 'create_main_cluster = false' >/etc/postgresql-common/createcluster.conf
  fi
fi
[ ${#need[@]} = 0 ] || scripts/debian.sh "${need[@]}"

gateway=v1.8.0
if [ ! -x .cache/tools/versitygw ]; then
  echo "installing versitygw $gateway (S3 server) into .cache/tools"
  mkdir -p .cache/tools
  # Half of what it is made of are clouds and queues that no test uses: not worth the
  # time of being optimised.
  GOBIN=$PWD/.cache/tools GOFLAGS= go install -gcflags='github.com/...=-N -l' -ldflags='-s -w' "github.com/versity/versitygw/cmd/versitygw@$gateway"
fi

# Only files are unpacked: no package gets to run a program of its own here.
if ! cmp -s internal/e2e/clients/package-lock.json .cache/clients/installed; then
  echo "installing the npm clients of internal/e2e/clients into .cache/clients"
  mkdir -p .cache/clients
  cp internal/e2e/clients/package.json internal/e2e/clients/package-lock.json .cache/clients/
  (cd .cache/clients && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error)
  cp internal/e2e/clients/package-lock.json .cache/clients/installed
fi
