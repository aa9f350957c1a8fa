package api

import (
	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

func decodeHealth(m *otadv1.Health) ota.Health {
	h := ota.Health{Watch: m.GetWatch().AsDuration(), Wait: m.GetWait().AsDuration(), OnFail: ota.HealthPolicy(m.GetOnFail())}
	for _, s := range m.GetSignals() {
		h.Signals = append(h.Signals, ota.Signal{
			Name: s.GetName(), Tolerance: s.GetTolerance(), Margin: s.GetMargin(), Alpha: s.GetAlpha(), MinPairs: int(s.GetMinPairs()),
		})
	}
	return h
}

// encodeHealth is the terms as decodeHealth reads them; nil when there are none.
func encodeHealth(h ota.Health) *otadv1.Health {
	if !h.Set() {
		return nil
	}
	m := &otadv1.Health{Watch: duration(h.Watch), Wait: duration(h.Wait), OnFail: string(h.OnFail)}
	for _, s := range h.Signals {
		m.Signals = append(m.Signals, encodeSignal(s))
	}
	return m
}

func encodeSignal(s ota.Signal) *otadv1.HealthSignal {
	return &otadv1.HealthSignal{Name: s.Name, Tolerance: s.Tolerance, Margin: s.Margin, Alpha: s.Alpha, MinPairs: int32(s.MinPairs)}
}

// encodeSeen is what was compared; nil when nothing is.
func encodeSeen(v fleet.RolloutView) *otadv1.HealthSeen {
	if !v.Terms.Health.Set() {
		return nil
	}
	seen := v.Progress.Health
	m := &otadv1.HealthSeen{Watched: int32(seen.Watched), Alone: int32(seen.Alone), Unmatched: int32(seen.Unmatched)}
	for _, verdict := range ota.Verdicts(v.Terms.Health, seen) {
		m.Verdicts = append(m.Verdicts, &otadv1.HealthVerdict{
			Signal: encodeSignal(verdict.Signal), Verdict: string(verdict.Judgement), Why: verdict.Why,
			Worse: int32(verdict.Worse), Same: int32(verdict.Same), Within: int32(verdict.Within), Better: int32(verdict.Better - verdict.Within),
			Unknown: int32(verdict.Unknown), Silent: int32(verdict.Silent), Changed: int32(verdict.Changed),
			P: verdict.P, AtLeast: verdict.AtLeast, AtMost: verdict.AtMost,
		})
	}
	return m
}
