package main

import (
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/otad/otad/pkg/ota"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

// termsView is what binds a rollout as a whole, written as a plan file has it.
type termsView struct {
	Rate        string            `json:"rate,omitempty"`
	InFlight    int32             `json:"inFlight,omitempty"`
	MaxPer      string            `json:"maxPer,omitempty"` // KEY=N
	Timers      map[string]string `json:"timers,omitempty"`
	Attempts    int32             `json:"attempts,omitempty"`
	Backoff     string            `json:"backoff,omitempty"`
	RetryOn     []string          `json:"retryOn,omitempty"`
	Window      string            `json:"window,omitempty"`
	MaxDefers   *int32            `json:"maxDefers,omitempty"`
	DeferUntil  *time.Time        `json:"deferUntil,omitempty"` // it is put off no longer after that
	Strata      []string          `json:"strata,omitempty"`
	Start       *time.Time        `json:"start,omitempty"`
	Approval    bool              `json:"approval,omitempty"`
	OnPause     string            `json:"onPause,omitempty"`
	OnAbort     string            `json:"onAbort,omitempty"`
	Drift       string            `json:"drift,omitempty"`
	Continuous  bool              `json:"continuous,omitempty"`
	Quarantined bool              `json:"quarantined,omitempty"`
}

func newTermsView(s *otadv1.RolloutSpec) termsView {
	r, w := s.GetRate(), s.GetWindow()
	v := termsView{
		Rate:     ota.Rate{PerMinute: r.GetPerMinute(), Factor: r.GetFactor(), Each: int(r.GetEach()), Of: ota.RateBasis(r.GetOf()), Max: r.GetMax()}.String(),
		InFlight: s.GetInFlight().GetMax(), Attempts: s.GetRetry().GetAttempts(), RetryOn: s.GetRetry().GetOn(),
		Strata: s.GetStrata(), Start: when(s.GetStart()), Approval: s.GetApproval(), OnPause: s.GetOnPause(), OnAbort: s.GetOnAbort(), Quarantined: s.GetQuarantined(),
		Drift: s.GetDrift(), Continuous: s.GetContinuous(),
	}
	if w != nil {
		v.Window = ota.Window{RRule: w.GetRrule(), Start: w.GetStart(), Duration: w.GetDuration().GetSeconds(), Fetch: w.GetFetch()}.String()
	}
	if f := s.GetInFlight(); f.GetPer() != "" {
		v.MaxPer = fmt.Sprintf("%s=%d", f.GetPer(), f.GetPerMax())
	}
	if d := s.GetRetry().GetBackoff(); d != nil {
		v.Backoff = d.AsDuration().String()
	}
	if c := s.GetConsent(); c != nil {
		n := c.GetMaxDefers()
		v.MaxDefers, v.DeferUntil = &n, when(c.GetDeadline())
	}
	t := s.GetTimers()
	for name, d := range map[string]*durationpb.Duration{
		"claim": t.GetClaim(), "fetch": t.GetFetch(), "install": t.GetInstall(), "reboot": t.GetReboot(), "health": t.GetHealth(),
	} {
		if d != nil {
			if v.Timers == nil {
				v.Timers = map[string]string{}
			}
			v.Timers[name] = d.AsDuration().String()
		}
	}
	return v
}

// words are the terms for people.
func (v termsView) words() []string {
	var words []string
	add := func(set bool, format string, args ...any) {
		if set {
			words = append(words, fmt.Sprintf(format, args...))
		}
	}
	add(v.Continuous, "continuous")
	add(v.Rate != "", "rate %s", v.Rate)
	add(v.InFlight > 0, "%d in flight", v.InFlight)
	add(v.MaxPer != "", "in flight for each %s", v.MaxPer)
	for _, name := range []string{"claim", "fetch", "install", "reboot", "health"} {
		add(v.Timers[name] != "", "%s within %s", name, v.Timers[name])
	}
	add(v.Attempts > 1, "%d attempts", v.Attempts)
	add(v.Backoff != "", "backoff %s", v.Backoff)
	add(len(v.RetryOn) > 0, "retried on %s", strings.Join(v.RetryOn, ", "))
	add(v.Window != "", "window %s", v.Window)
	add(v.MaxDefers != nil, "put off at most %d times", value(v.MaxDefers))
	add(v.DeferUntil != nil, "put off until %s at most", rfc3339(v.DeferUntil))
	add(len(v.Strata) > 0, "strata %s", strings.Join(v.Strata, ", "))
	add(v.Start != nil, "not before %s", rfc3339(v.Start))
	add(v.OnPause != "" && v.OnPause != string(ota.PauseLetFinish), "on pause %s", v.OnPause)
	add(v.OnAbort == string(ota.AbortRevert), "reverted on an abort")
	add(v.Drift == string(ota.DriftRecord), "drift is recorded only")
	add(v.Quarantined, "quarantined devices too")
	return words
}

func value(n *int32) int32 {
	if n == nil {
		return 0
	}
	return *n
}

func rfc3339(t *time.Time) string {
	if t == nil {
		return ""
	}
	return t.Format(time.RFC3339)
}

// approval is the command that approves the plan as it is shown, and no other.
func (r rolloutView) approval() string {
	return fmt.Sprintf("otactl rollout approve %s --revision %d", r.ID, r.Revision)
}

// waitsFor says what an operator has to do, or which time has to come.
func (r rolloutView) waitsFor() string {
	switch ota.RolloutState(r.State) {
	case ota.RolloutDraft:
		return "otactl rollout submit " + r.ID
	case ota.RolloutAwaitingApproval:
		return r.approval()
	case ota.RolloutScheduled:
		return rfc3339(r.Terms.Start)
	case ota.RolloutRollingBack:
		var ids []string
		for _, back := range r.Reverts {
			if !ota.RolloutState(back.State).Terminal() {
				ids = append(ids, fmt.Sprintf("rollout %s, which is %s", back.ID, back.State))
			}
		}
		return strings.Join(ids, "; ")
	case ota.RolloutRunning:
		if r.Idle {
			return "devices that join it, or otactl rollout finish " + r.ID
		}
		for i, s := range r.Stages {
			if s.State == string(ota.StagePending) {
				if s.Approval == "needed" {
					return fmt.Sprintf("otactl rollout approve %s --stage %d", r.ID, i+1)
				}
				return ""
			}
			if s.State != string(ota.StagePassed) {
				return ""
			}
		}
	}
	return ""
}
