package simulate

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/otad/otad/agent"
	"github.com/otad/otad/pkg/ota"
)

// Attempt is one execution on one device.
type Attempt struct {
	Job    string `json:"job"` // the rollout
	Device string `json:"device"`
	Number int    `json:"attempt"`
}

func (a Attempt) compare(b Attempt) int {
	return cmp.Or(cmp.Compare(a.Job, b.Job), cmp.Compare(a.Device, b.Device), a.Number-b.Number)
}

// Entry is what the server has acknowledged of an attempt: that it had the report.
type Entry struct {
	Attempt
	Status ota.Status `json:"status"`
}

// Ledger is every attempt that a device has reported about, with the last status
// that the server acknowledged. The zero value is empty; safe for concurrent use.
type Ledger struct {
	mu     sync.Mutex
	acked  map[Attempt]ota.Status
	broken []string
}

// acknowledge enters a report that the server says it has stored.
func (l *Ledger) acknowledge(a Attempt, status ota.Status) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.acked == nil {
		l.acked = map[Attempt]ota.Status{}
	}
	if last, ok := l.acked[a]; ok && last.Terminal() {
		l.broken = append(l.broken, fmt.Sprintf("device %s, attempt %d of job %s: %s was acknowledged, and %s after it", a.Device, a.Number, a.Job, last, status))
		return
	}
	l.acked[a] = status
}

// Entries returns everything, in order of job, device and attempt.
func (l *Ledger) Entries() []Entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := make([]Entry, 0, len(l.acked))
	for a, status := range l.acked {
		list = append(list, Entry{a, status})
	}
	slices.SortFunc(list, func(x, y Entry) int { return x.compare(y.Attempt) })
	return list
}

// Jobs returns the rollouts that devices have reported about.
func (l *Ledger) Jobs() []string {
	var jobs []string
	for _, e := range l.Entries() {
		if len(jobs) == 0 || jobs[len(jobs)-1] != e.Job {
			jobs = append(jobs, e.Job)
		}
	}
	return jobs
}

// Missing returns, in words, what the server acknowledged and does not say any
// more, and what it acknowledged twice. stored is what it says of every attempt
// of the jobs in the ledger.
func (l *Ledger) Missing(stored map[Attempt]ota.Status) []string {
	l.mu.Lock()
	missing := slices.Clone(l.broken)
	l.mu.Unlock()
	for _, e := range l.Entries() {
		switch now, ok := stored[e.Attempt]; {
		case !ok:
			missing = append(missing, fmt.Sprintf("device %s, attempt %d of job %s: %s was acknowledged, and the server does not know it", e.Device, e.Number, e.Job, e.Status))
		case e.Status.Terminal() && now != e.Status:
			missing = append(missing, fmt.Sprintf("device %s, attempt %d of job %s: %s was acknowledged, and the server says %s", e.Device, e.Number, e.Job, e.Status, now))
		case now == ota.Queued && e.Status != ota.Queued:
			missing = append(missing, fmt.Sprintf("device %s, attempt %d of job %s: it had begun, and the server says %s", e.Device, e.Number, e.Job, now))
		}
	}
	return missing
}

// recorder is a device's transport that enters into the ledger what the server
// acknowledges.
type recorder struct {
	agent.Transport
	device string
	ledger *Ledger
}

// Report implements agent.Transport.
func (r recorder) Report(ctx context.Context, report agent.Report) error {
	return r.record(r.Transport.Report(ctx, report), report)
}

// Announce implements agent.Transport.
func (r recorder) Announce(ctx context.Context, report agent.Report, version int64) error {
	return r.record(r.Transport.Announce(ctx, report, version), report)
}

func (r recorder) record(err error, report agent.Report) error {
	if err == nil {
		r.ledger.acknowledge(Attempt{report.JobID, r.device, report.Attempt}, report.Status)
	}
	return err
}
