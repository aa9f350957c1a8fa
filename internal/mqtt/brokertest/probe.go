package brokertest

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// ProbeTarget is one broker process or object under probes: what a client may
// rely on, told in raw packets. It lets everybody in and has free topics.
type ProbeTarget struct {
	// Addr is host:port of plain TCP.
	Addr string
	// WebSocket is the URL of MQTT over WebSocket; empty: there is none.
	WebSocket string
	// Restart kills the broker without a word and starts it on what it had stored.
	// Only RunDurableProbes needs it.
	Restart func()
	// Save makes a broker write what it has acknowledged, if it does so only later.
	// Nil: what is acknowledged is stored.
	Save func()
	// Resident is the memory of the broker in bytes, after it came to rest.
	Resident func() int64
	// PacketLimit is the largest packet it takes, 0: the protocol's.
	PacketLimit int
	// TellsWhy: whatever it refuses to an MQTT 5 client has a reason code.
	TellsWhy bool
	// Denied is a topic that nobody may use; empty: there is none.
	Denied string
	// ServerKeepAlive is the keep alive that it prescribes to clients that want a
	// longer one or none; 0: it does not.
	ServerKeepAlive uint16
	// Known are the probes that this broker is known to fail: a part of every fault
	// they then find. One that is not found is an error too.
	Known map[string][]string
	// Tries is how often a probe may run until it passes; 0 and 1: once. More is for
	// brokers that are not ours: their probes show that the probes are right.
	Tries int
	// Lucky are the probes that it passes now and then only: their faults are told
	// and do not count.
	Lucky []string
}

// probe is one test of a broker. It collects faults instead of failing a
// testing.T, so that what a broker is known to get wrong can be asserted.
type probe struct {
	target   ProbeTarget
	mu       sync.Mutex
	faults   []string
	cleanups []func()
}

func (p *probe) errorf(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.faults = append(p.faults, fmt.Sprintf(format, args...))
}

// fatalf ends the probe; like testing.T.FailNow it is for the probe's goroutine.
func (p *probe) fatalf(format string, args ...any) {
	p.errorf(format, args...)
	runtime.Goexit()
}

func (p *probe) cleanup(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cleanups = append(p.cleanups, f)
}

// pass lets real time pass: the clock of another process cannot be turned.
func (p *probe) pass(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	<-timer.C
}

// run returns what was wrong.
func (p *probe) run(test func(*probe)) []string {
	done := make(chan struct{})
	go func() {
		defer close(done)
		test(p)
	}()
	<-done
	for _, f := range slices.Backward(p.cleanups) {
		f()
	}
	return p.faults
}

type probeCase struct {
	name string
	test func(*probe)
}

// RunProbes runs every probe but those of durability on a broker of its own.
func RunProbes(t *testing.T, open func(t *testing.T) ProbeTarget) {
	t.Helper()
	runSets(t, open, flowProbes, timeProbes, featureProbes, malformedProbes, abuseProbes)
}

// RunMalformedProbes runs T12 alone: where Resident is given, they watch the
// memory of the broker.
func RunMalformedProbes(t *testing.T, open func(t *testing.T) ProbeTarget) {
	t.Helper()
	runSets(t, open, malformedProbes)
}

// RunDurableProbes runs T13, for which the target needs Restart.
func RunDurableProbes(t *testing.T, open func(t *testing.T) ProbeTarget) {
	t.Helper()
	runSets(t, open, durableProbes)
}

func runSets(t *testing.T, open func(t *testing.T) ProbeTarget, sets ...[]probeCase) {
	t.Helper()
	for _, set := range sets {
		for _, c := range set {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				judge(t, c, open)
			})
		}
	}
}

// judge runs a probe until it finds what is known and no more, at most
// target.Tries times.
func judge(t *testing.T, c probeCase, open func(t *testing.T) ProbeTarget) {
	t.Helper()
	for try := 1; ; try++ {
		target := open(t)
		p := &probe{target: target}
		faults := p.run(c.test)
		if slices.Contains(target.Lucky, c.name) {
			t.Logf("known: %q", faults)
			return
		}
		wrong := unexpected(target.Known[c.name], faults)
		if len(wrong) > 0 && try < target.Tries {
			t.Logf("tried again, since: %q", wrong)
			continue
		}
		for _, w := range wrong {
			t.Error(w)
		}
		return
	}
}

// unexpected returns the faults that are not known, and the known ones that are
// not there.
func unexpected(known, faults []string) (wrong []string) {
	found := map[string]bool{}
	for _, f := range faults {
		i := slices.IndexFunc(known, func(k string) bool { return strings.Contains(f, k) })
		if i < 0 {
			wrong = append(wrong, f)
			continue
		}
		found[known[i]] = true
	}
	for _, k := range known {
		if !found[k] {
			wrong = append(wrong, fmt.Sprintf("known to fail with %q, but does not", k))
		}
	}
	return wrong
}
