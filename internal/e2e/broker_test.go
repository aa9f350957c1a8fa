package e2e

import (
	"testing"

	"github.com/otad/otad/internal/mqtt/brokertest"
	"github.com/otad/otad/internal/testserver"
)

// openBroker is an otad with a listener without credentials, and no room for what is to
// be collected: the probes look for what stays.
func openBroker(t *testing.T) brokertest.ProbeTarget {
	addr := freeAddr(t)
	s := prepareSite(t, []string{"GOGC=100"}, "--mqtt-plain", addr, "--mqtt-plain-auth", "none", "--log-level", "error",
		"--mqtt-limit", "packet-rate=1000000000,byte-rate=1000000000,connect-rate=1000000000,failure-rate=1000000000")
	s.startServer()
	return brokertest.ProbeTarget{
		Addr: addr, PacketLimit: 256 << 10, TellsWhy: true, ServerKeepAlive: 1200,
		Restart: func() {
			s.server.kill()
			s.startServer()
		},
		Resident: func() int64 {
			n, err := testserver.Resident(s.server.cmd.Process.Pid)
			if err != nil {
				t.Error(err)
			}
			return n
		},
	}
}

// TestBrokerKilled is T13 on the program itself: nothing it acknowledged is lost.
func TestBrokerKilled(t *testing.T) { brokertest.RunDurableProbes(t, openBroker) }

// TestBrokerProbes are the probes that look at the memory of the broker, which
// has to be a process of its own for that.
func TestBrokerProbes(t *testing.T) { brokertest.RunMalformedProbes(t, openBroker) }
