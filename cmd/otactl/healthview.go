package main

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/otad/otad/pkg/ota"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

// healthView is what a rollout compares and what that has shown.
type healthView struct {
	Watch     string       `json:"watch"` // Go durations
	Wait      string       `json:"wait"`
	OnFail    string       `json:"onFail"`
	Watched   int32        `json:"watched"`   // pairs that are being watched
	Alone     int32        `json:"alone"`     // updated devices for which there was no partner
	Unmatched int32        `json:"unmatched"` // updated devices that were not looked at yet
	Signals   []signalView `json:"signals"`
}

// signalView is the verdict on a signal.
type signalView struct {
	Signal     string  `json:"signal"`  // as --health takes it
	Verdict    string  `json:"verdict"` // pass, hold, fail or none
	Why        string  `json:"why"`
	Worse      int32   `json:"worse"`  // pairs in which the updated device did worse
	Silent     int32   `json:"silent"` // of these: only its partner told a value
	Same       int32   `json:"same"`
	Within     int32   `json:"within"` // of a number: not better, and within the margin
	Better     int32   `json:"better"`
	Unknown    int32   `json:"unknown"`    // pairs that do not count
	Changed    int32   `json:"changed"`    // of these: the partner was updated meanwhile
	Difference float64 `json:"difference"` // of the shares, as seen; of a number, of those over the margin and under it
	AtLeast    float64 `json:"atLeast"`    // as proven, -1: nothing is
	AtMost     float64 `json:"atMost"`     // as left possible
	P          float64 `json:"p"`          // of being within the tolerance, valid at every look
}

// newHealthView returns nil for a rollout that compares nothing.
func newHealthView(terms *otadv1.Health, seen *otadv1.HealthSeen) *healthView {
	if terms == nil {
		return nil
	}
	v := &healthView{
		Watch: orDefault(terms.GetWatch(), ota.Health{}.Watching().String()), Wait: orDefault(terms.GetWait(), ota.DefaultHealthWait.String()),
		OnFail: first(terms.GetOnFail(), string(ota.HealthPause)), Watched: seen.GetWatched(), Alone: seen.GetAlone(), Unmatched: seen.GetUnmatched(),
		Signals: []signalView{},
	}
	for _, d := range seen.GetVerdicts() {
		s := signalView{
			Signal: signalOf(d.GetSignal()).String(), Verdict: d.GetVerdict(), Why: d.GetWhy(),
			Worse: d.GetWorse(), Silent: d.GetSilent(), Same: d.GetSame(), Within: d.GetWithin(), Better: d.GetBetter(),
			Unknown: d.GetUnknown(), Changed: d.GetChanged(), AtLeast: d.GetAtLeast(), AtMost: d.GetAtMost(), P: d.GetP(),
		}
		s.Difference = float64(s.Worse-s.Within-s.Better) / float64(max(s.pairs(), 1))
		v.Signals = append(v.Signals, s)
	}
	return v
}

// pairs is how many count.
func (s signalView) pairs() int32 { return s.Worse + s.Same + s.Within + s.Better }

// share writes a difference of shares. That of a number is between the pairs over the
// margin and those under it: what people ask for is the share of those over it.
func (s signalView) share(difference float64) string {
	if strings.HasPrefix(s.Signal, ota.ShadowSignals) {
		return fmt.Sprintf("%.1f%%", (difference+1)*50)
	}
	return fmt.Sprintf("%+.1f%%", difference*100)
}

func orDefault(d *durationpb.Duration, otherwise string) string {
	if d == nil {
		return otherwise
	}
	return d.AsDuration().String()
}

// changes returns a line for each verdict that differs from before. Both may be nil.
func (v *healthView) changes(before *healthView) (lines []string) {
	if v == nil {
		return nil
	}
	for i, s := range v.Signals {
		if pairs := s.pairs(); pairs+s.Unknown > 0 && (before == nil || before.Signals[i] != s) {
			line := fmt.Sprintf("health %s: %s, %d of %d pairs worse: %s", s.Signal, s.Verdict, s.Worse, pairs, s.Why)
			if s.Verdict == string(ota.HealthHold) {
				line += "; the stage waits at most " + v.Wait + " for it once it has soaked"
			}
			lines = append(lines, line)
		}
	}
	return lines
}

func signalOf(s *otadv1.HealthSignal) ota.Signal {
	return ota.Signal{Name: s.GetName(), Tolerance: s.GetTolerance(), Margin: s.GetMargin(), Alpha: s.GetAlpha(), MinPairs: int(s.GetMinPairs())}
}

func healthMessage(h ota.Health) *otadv1.Health {
	if !h.Set() {
		return nil
	}
	m := &otadv1.Health{Watch: someTime(h.Watch), Wait: someTime(h.Wait), OnFail: string(h.OnFail)}
	for _, s := range h.Signals {
		m.Signals = append(m.Signals, &otadv1.HealthSignal{Name: s.Name, Tolerance: s.Tolerance, Margin: s.Margin, Alpha: s.Alpha, MinPairs: int32(s.MinPairs)})
	}
	return m
}

var healthHeads = []string{"HEALTH", "VERDICT", "WORSE", "SAME", "BETTER", "PAIRS", "UNKNOWN", "SEEN", "PROVEN", "P", "WHY"}

func (v healthView) rows() [][]string {
	var rows [][]string
	for _, s := range v.Signals {
		seen, proven := "-", "-"
		if s.pairs() > 0 {
			seen = s.share(s.Difference)
		}
		if s.AtLeast > -0.999 || s.AtMost < 0.999 {
			proven = s.share(s.AtLeast) + " to " + s.share(s.AtMost)
		}
		rows = append(rows, []string{
			s.Signal, s.Verdict, number(s.Worse), number(s.Same + s.Within), number(s.Better), number(s.pairs()), number(s.Unknown), seen, proven,
			fmt.Sprintf("%.2g", s.P), s.Why,
		})
	}
	return rows
}
