package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	otadv1 "github.com/otad/otad/proto/otad/v1"
)

// The rows say of numbers what is over the margin, not what the test counts.
func TestHealthRows(t *testing.T) {
	v := newHealthView(&otadv1.Health{}, &otadv1.HealthSeen{Verdicts: []*otadv1.HealthVerdict{
		{Signal: &otadv1.HealthSignal{Name: "crash", Tolerance: 0.01}, Verdict: "pass", Same: 15, Worse: 1, Better: 4, AtLeast: -0.5, AtMost: 0.25, P: 1, Why: "w"},
		{Signal: &otadv1.HealthSignal{Name: "shadow.reported.t", Margin: 5}, Verdict: "pass", Same: 1, Within: 3, Unknown: 2, AtLeast: -1, AtMost: 0.5, P: 1, Why: "w"},
		{Signal: &otadv1.HealthSignal{Name: "shadow.reported.u", Margin: 5}, Verdict: "hold", Unknown: 5, AtLeast: -1, AtMost: 1, P: 1, Why: "w"},
	}})
	want := [][]string{
		{"crash +1%", "pass", "1", "15", "4", "20", "0", "-15.0%", "-50.0% to +25.0%", "1", "w"},
		{"shadow.reported.t +5", "pass", "0", "4", "0", "4", "2", "12.5%", "0.0% to 75.0%", "1", "w"},
		{"shadow.reported.u +5", "hold", "0", "0", "0", "0", "5", "-", "-", "1", "w"},
	}
	if diff := cmp.Diff(want, v.rows()); diff != "" {
		t.Error(diff)
	}
}
