#!/usr/bin/env bash
# Runs the Eclipse interoperability tests (public repository paho.mqtt.testing,
# folder interoperability) against otad's embedded broker:
#
#   scripts/paho-interop.sh FOLDER              against bin/otad, started here
#   scripts/paho-interop.sh FOLDER HOST:PORT    against a broker that runs
#
# FOLDER is a checkout of that repository; nothing of it is part of this one.
# Prints a line a test and a count for MQTT 5 (client_test5.py) and 3.1.1
# (client_test.py); what failed is told in full in .cache/paho-interop. Ends with
# status 1 when a test failed. The suite takes about four minutes.
set -euo pipefail
cd "$(dirname "$0")/.."

[ $# = 1 ] || [ $# = 2 ] || { sed -n '2,12s/^# \{0,1\}//p' "$0" >&2; exit 2; }
suite=$(cd "$1" && pwd)/interoperability
[ -f "$suite/client_test5.py" ] && [ -f "$suite/client_test.py" ] ||
  { echo "$1 holds no interoperability/client_test5.py and client_test.py: want a checkout of paho.mqtt.testing" >&2; exit 2; }
logs=$PWD/.cache/paho-interop
mkdir -p "$logs"

server='' work=''
cleanup() {
  if [ -n "$server" ]; then kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; fi
  if [ -n "$work" ]; then rm -rf "$work"; fi
}
trap cleanup EXIT

if [ $# = 2 ]; then
  host=${2%:*} port=${2##*:}
else
  [ -x bin/otad ] || { echo "no bin/otad: run make build" >&2; exit 2; }
  work=$(mktemp -d)
  host=127.0.0.1
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
  bin/otad serve --data "$work/data" --hosts localhost,127.0.0.1 --log-format text \
    --api-listen 127.0.0.1:0 --device-listen 127.0.0.1:0 --mqtt-listen 127.0.0.1:0 \
    --mqtt-plain "$host:$port" --mqtt-plain-auth none --mqtt-limit keep-alive=60s,connect-rate=1000,failure-rate=1000,packet-rate=100000 >"$logs/otad.log" 2>&1 &
  server=$!
fi

# The suite's own command line loses its options half way, so its modules are
# told where the broker is, and which filter it refuses: anonymous connections to
# otad may not touch ota/. On another broker that test needs a rule of its own.
drive='
import logging, signal, socket, sys, time, unittest
suite, name, host, port, prefix = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5]
sys.path.insert(0, suite)
for _ in range(400):
    try:
        socket.create_connection((host, port), 1).close()
        break
    except OSError:
        time.sleep(0.05)
else:
    sys.exit("nothing listens on %s:%d" % (host, port))
m = __import__(name)
m.host, m.port, m.topic_prefix = host, port, prefix
m.topics = [prefix + t for t in ("TopicA", "TopicA/B", "Topic/C", "TopicA/C", "/TopicA")]
m.wildtopics = [prefix + t for t in ("TopicA/+", "+/C", "#", "/#", "/+", "+/+", "TopicA/#")]
m.nosubscribe_topics = ("ota/nosubscribe",)
logging.getLogger().setLevel(logging.ERROR)
out = sys.__stdout__

def late(*_):
    raise TimeoutError("no end after %d s" % limit)
limit = 120 # some tests wait for ever for what a broker does not send
signal.signal(signal.SIGALRM, late)

class Result(unittest.TextTestResult):
    failed = 0
    def startTest(self, test):
        super().startTest(test); signal.alarm(limit)
    def stopTest(self, test):
        signal.alarm(0); super().stopTest(test)
    def line(self, test, word):
        out.write("  %-32s %s\n" % (test.id().split(".")[-1], word))
        out.flush()
    def addSuccess(self, test):
        super().addSuccess(test); self.line(test, "ok")
    def addFailure(self, test, err):
        super().addFailure(test, err); self.failed += 1; self.line(test, "FAILED")
    def addError(self, test, err):
        super().addError(test, err); self.failed += 1; self.line(test, "FAILED")

log = open(sys.argv[6], "w")
sys.stdout = sys.stderr = log
tests = unittest.defaultTestLoader.loadTestsFromModule(m)
result = unittest.TextTestRunner(stream=log, resultclass=Result, verbosity=0).run(tests)
log.flush()
out.write("%s: %d of %d\n" % (name, result.testsRun - result.failed, result.testsRun))
sys.exit(1 if result.failed or not result.testsRun else 0)
'

status=0
for name in client_test5 client_test; do
  # The prefix of the MQTT 5 tests is that of the suite; the older ones have none.
  prefix=''
  [ $name = client_test ] || prefix=client_test5/
  python3 -c "$drive" "$suite" $name "$host" "$port" "$prefix" "$logs/$name.log" || status=1
done
[ $status = 0 ] || echo "what failed is told in .cache/paho-interop" >&2
exit $status
