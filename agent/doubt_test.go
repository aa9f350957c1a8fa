package agent_test

import (
	"context"
	"strings"
	"testing"

	"github.com/otad/otad/agent"
	"github.com/otad/otad/pkg/ota"
)

// flip damages a file the first times it is fetched.
func flip(name string, times int, fetched *int) func(string, []byte) []byte {
	return func(got string, b []byte) []byte {
		if got == name {
			if *fetched++; *fetched <= times {
				b[len(b)/2] ^= 1
			}
		}
		return b
	}
}

// TestDoubtsAreBounded: files that do not verify may come of a publication under
// way, and are fetched again a few times, not for ever.
func TestDoubtsAreBounded(t *testing.T) {
	const tries = 5
	for _, name := range []string{"timestamp.json", "2.snapshot.json", "2.targets.json", "gateway/1.0.idx"} {
		for times, want := range map[int]ota.Status{tries - 1: ota.Succeeded, tries: ota.Rejected} {
			r := newRepo(t)
			d := newDevice(t, r, noise(1, 2000))
			r.release("1.0", noise(2, 3000), nil)
			fetched := 0
			r.twist = flip(name, times, &fetched)
			r.order("job-1", "1.0", 1)
			v := d.until("job-1", 1)
			// An idle agent goes on trying to renew what it could not verify.
			if expect(t, v, want, ""); fetched < tries || want == ota.Succeeded && fetched != tries {
				t.Errorf("%s: fetched %d times", name, fetched)
			}
			if v.Status == ota.Rejected && !strings.Contains(v.Details[ota.DetailReason], strings.TrimPrefix(strings.TrimSuffix(name, "/1.0.idx"), "2.")) {
				t.Errorf("%s: %v", name, v.Details)
			}
		}
	}
}

// TestUnknownReleaseIsRejected: the operators signed no such thing.
func TestUnknownReleaseIsRejected(t *testing.T) {
	r := newRepo(t)
	d := newDevice(t, r, noise(1, 2000))
	r.release("1.0", noise(2, 3000), nil)
	r.order("job-1", "6.6", 1)
	expect(t, d.until("job-1", 1), ota.Rejected, "unknown target")
}

// TestDoubtAfterARestartInFetch: a half-written slot changes nothing about it.
func TestDoubtAfterARestartInFetch(t *testing.T) {
	r := newRepo(t)
	old, img := noise(1, 20_000), noise(2, 100_000)
	d := newDevice(t, r, old)
	r.release("1.0", img, nil)
	r.order("job-1", "1.0", 1)
	r.chop = 1
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- d.live(ctx) }()
	d.waitStatus(func(s agent.Status) bool { return s.State == agent.StateFetch })
	stop()
	must(t, <-ended)
	fetched := 0
	r.chop, r.twist = 0, flip("timestamp.json", 100, &fetched)
	expect(t, d.until("job-1", 1), ota.Rejected, "timestamp")
	refused(t, d, old, img)
}
