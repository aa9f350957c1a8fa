package simulate

import (
	"slices"
	"strings"
	"testing"

	"github.com/otad/otad/pkg/ota"
)

func at(job, device string, n int) Attempt { return Attempt{Job: job, Device: device, Number: n} }

func TestLedgerFindsWhatIsMissing(t *testing.T) {
	for name, c := range map[string]struct {
		acked  []ota.Status
		stored map[Attempt]ota.Status
		words  string // of the one that is missing; empty: none
	}{
		"all is there":          {acked: []ota.Status{ota.InProgress, ota.Succeeded}, stored: map[Attempt]ota.Status{at("j", "d", 1): ota.Succeeded}},
		"not begun":             {acked: []ota.Status{ota.Queued}, stored: map[Attempt]ota.Status{at("j", "d", 1): ota.Queued}},
		"goes on":               {acked: []ota.Status{ota.InProgress}, stored: map[Attempt]ota.Status{at("j", "d", 1): ota.InProgress}},
		"ended by the server":   {acked: []ota.Status{ota.InProgress}, stored: map[Attempt]ota.Status{at("j", "d", 1): ota.TimedOut}},
		"unknown":               {acked: []ota.Status{ota.InProgress}, stored: map[Attempt]ota.Status{at("j", "d", 2): ota.Succeeded}, words: "does not know it"},
		"the end is lost":       {acked: []ota.Status{ota.Succeeded}, stored: map[Attempt]ota.Status{at("j", "d", 1): ota.InProgress}, words: "SUCCEEDED was acknowledged, and the server says IN_PROGRESS"},
		"another end":           {acked: []ota.Status{ota.Failed}, stored: map[Attempt]ota.Status{at("j", "d", 1): ota.TimedOut}, words: "server says TIMED_OUT"},
		"the beginning is lost": {acked: []ota.Status{ota.InProgress}, stored: map[Attempt]ota.Status{at("j", "d", 1): ota.Queued}, words: "it had begun"},
		"twice":                 {acked: []ota.Status{ota.Succeeded, ota.Failed}, stored: map[Attempt]ota.Status{at("j", "d", 1): ota.Succeeded}, words: "FAILED after it"},
	} {
		t.Run(name, func(t *testing.T) {
			var l Ledger
			for _, status := range c.acked {
				l.acknowledge(at("j", "d", 1), status)
			}
			missing := l.Missing(c.stored)
			switch {
			case c.words == "" && len(missing) > 0:
				t.Errorf("nothing is missing, and it says %q", missing)
			case c.words != "" && (len(missing) != 1 || !strings.Contains(missing[0], c.words)):
				t.Errorf("%q, want one with %q", missing, c.words)
			}
		})
	}
}

func TestLedgerIsInOrder(t *testing.T) {
	var l Ledger
	want := []Attempt{at("a", "d1", 1), at("a", "d1", 2), at("a", "d2", 1), at("b", "d1", 1)}
	for _, i := range []int{3, 1, 2, 0} {
		l.acknowledge(want[i], ota.Succeeded)
	}
	var got []Attempt
	for _, e := range l.Entries() {
		got = append(got, e.Attempt)
	}
	if !slices.Equal(got, want) || !slices.Equal(l.Jobs(), []string{"a", "b"}) {
		t.Errorf("%v of %v", got, l.Jobs())
	}
}
