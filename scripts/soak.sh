#!/usr/bin/env bash
# Long runs of what the tests do briefly; ends at the first loss with status 1.
#
#   SOAKTIME   how long each part lasts (default 10m), as Go writes durations
#   SOAKPARTS  which: kills simulation walks probes connections fuzz (default all)
#   SOAKSEED   repeats the moments of the kills, or the simulations or walks from a
#              seed on, that an earlier run printed
#   FUZZTIME   of each fuzz target (default: as many as fit into SOAKTIME)
#
# kills: otad is killed under MQTT traffic of devices, and then under rollouts over
# a thousand simulated agents, on SQLite and PostgreSQL, 1,000 times each at least,
# which takes longer than SOAKTIME when that is short; what it acknowledged must be
# there. simulation: rollouts in virtual time, seed after seed. walks: random
# walks of the stores and of what pkg/ proves by drawing, which make test draws the
# same each time. probes: the probes of the broker (T1 to T13), again and again.
# connections: 10,000 plain and then 10,000 mTLS
# connections that rest and have to be heard. fuzz: every parser.
set -euo pipefail
cd "$(dirname "$0")/.."
export SOAKTIME=${SOAKTIME:-10m}
parts=${SOAKPARTS:-kills simulation walks probes connections fuzz}
logs=$PWD/.cache/soak
mkdir -p "$logs" .cache/tools

# seconds DURATION: 90, 90s, 15m, 2h, 1h30m
seconds() {
  local rest=$1 sum=0
  [[ $rest =~ ^([0-9]+[hms]?)+$ ]] || { echo "SOAKTIME=$1: want a duration such as 15m" >&2; exit 2; }
  while [[ $rest =~ ^([0-9]+)([hms]?)(.*)$ ]]; do
    case ${BASH_REMATCH[2]} in h) sum=$((sum + BASH_REMATCH[1] * 3600)) ;; m) sum=$((sum + BASH_REMATCH[1] * 60)) ;; *) sum=$((sum + BASH_REMATCH[1])) ;; esac
    rest=${BASH_REMATCH[3]}
  done
  echo "$sum"
}
long=$(seconds "$SOAKTIME")
[[ $SOAKTIME =~ [hms]$ ]] || export SOAKTIME=${SOAKTIME}s

# lost PART LOG REPEAT
lost() {
  echo "soak: $1: LOST; its output is in $2, again with: $3" >&2
  grep -E '^\s+[a-z_]+_test\.go:|^--- FAIL|panic:|DATA RACE' "$2" | head -40 >&2 || true
  exit 1
}

kills() {
  local log=$logs/kills.log seed=${SOAKSEED:-$(date +%s%N)} what
  for what in TestDeviceTrafficOutlivesKills TestRolloutsOutliveKills; do
    echo "soak: kills ($what) for $SOAKTIME, SOAKSEED=$seed"
    SOAKSEED=$seed CGO_ENABLED=1 go test -race -count=1 -timeout $((long + 7200))s -v -run "^$what\$" ./internal/e2e >"$log" 2>&1 ||
      lost kills "$log" "SOAKPARTS=kills SOAKSEED=$seed make soak"
    grep -E 'none lost' "$log" | sed 's/^ *[a-z]*_test.go:[0-9]*:/soak: kills:/'
  done
}

simulation() {
  local log=$logs/simulation.log seed=${SOAKSEED:-$(date +%s)}
  echo "soak: simulated rollouts for $SOAKTIME, SOAKSEED=$seed"
  go test -count=1 -timeout $((long + 900))s -v -run '^TestRollouts$' ./internal/sim -first "$seed" -long "$SOAKTIME" >"$log" 2>&1 ||
    lost simulation "$log" "$(grep -oE "go test ./internal/sim .*" "$log" | head -1)"
  grep -E 'seeds [0-9]+ to' "$log" | sed 's/^ *sim_test.go:[0-9]*:/soak: simulation:/'
}

walks() {
  local log=$logs/walks.log seed=${SOAKSEED:-$(date +%s)} end=$((SECONDS + long)) round=0 of name checks
  echo "soak: random walks for $SOAKTIME, SOAKSEED=$seed"
  while [ $round = 0 ] || [ $SECONDS -lt $end ]; do
    for of in './internal/store/sqlite ^TestStore$/^model$ 300' './internal/store/postgres ^TestStore$/^model$ 100' './pkg/ota ^TestPlanProperty$ 3000' './pkg/... . 300'; do
      read -r of name checks <<<"$of"
      RAPID_NOFAILFILE=true RAPID_SEED=$((seed + round)) RAPID_CHECKS=$checks go test -count=1 -timeout 60m -v -run "$name" "$of" >"$log" 2>&1 ||
        { grep -o -m1 'To reproduce.*' "$log" | sed "s|\$|, of $of|" >&2 || true
          lost "walks, of $of" "$log" "SOAKPARTS=walks SOAKSEED=$((seed + round)) make soak"; }
    done
    round=$((round + 1))
    echo "soak: walks: round $round well"
  done
}

probes() {
  local log=$logs/probes.log end=$((SECONDS + long)) round=0
  echo "soak: probes for $SOAKTIME"
  while [ $round = 0 ] || [ $SECONDS -lt $end ]; do
    round=$((round + 1))
    { CGO_ENABLED=1 go test -race -count=1 -timeout 20m -run '^TestProbes$' ./internal/mqtt/broker &&
      CGO_ENABLED=1 go test -race -count=1 -timeout 20m -run '^TestBroker(Killed|Probes)$' ./internal/e2e; } >"$log" 2>&1 ||
      lost "probes, round $round" "$log" "SOAKPARTS=probes make soak"
    echo "soak: probes: round $round well"
  done
}

connections() {
  local log=$logs/connections.log
  echo "soak: 10,000 connections, plain and then mTLS, for $SOAKTIME"
  go build -o .cache/tools/otad-bench ./internal/bench
  .cache/tools/otad-bench -bin bin -only held -hold "$SOAKTIME" >"$log" 2>&1 || { tail -3 "$log" >&2; lost connections "$log" "SOAKPARTS=connections make soak"; }
  grep held "$log" | tail -2 | sed 's/^bench: /soak: connections: /'
}

fuzz() {
  local log=$logs/fuzz.log targets
  targets=$(grep -rhoE '^func Fuzz[A-Za-z0-9_]+' --include='*_test.go' . | wc -l)
  local each=${FUZZTIME:-$((long / targets > 5 ? long / targets : 5))s}
  echo "soak: $targets fuzz targets for $each each"
  FUZZTIME=$each scripts/fuzz.sh >"$log" 2>&1 ||
    lost fuzz "$log" "the command that the output names (the input lies in testdata/fuzz)"
}

for part in $parts; do
  case $part in kills | simulation | walks | probes | connections | fuzz) "$part" ;; *) echo "SOAKPARTS: $part: want kills, simulation, walks, probes, connections or fuzz" >&2; exit 2 ;; esac
done
echo "soak: nothing lost"
