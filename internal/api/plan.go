package api

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

// decodeSpec reads a plan; what is in it is judged by ota.
func decodeSpec(s *otadv1.RolloutSpec) (ota.Rollout, error) {
	id, command, err := decodeWhat(s)
	if err != nil {
		return ota.Rollout{}, err
	}
	terms, err := decodeTerms(s)
	if err != nil {
		return ota.Rollout{}, err
	}
	r := ota.Rollout{
		Release: id, Command: command, Selector: s.GetSelector(), Seed: s.GetSeed(), Priority: int(s.GetPriority()),
		InProgressTimeout: s.GetInProgressTimeout().AsDuration(), Terms: terms,
	}
	for _, stage := range s.GetStages() {
		r.Stages = append(r.Stages, ota.Stage{
			Size: ota.Size{Percent: stage.GetPercent(), Count: int(stage.GetCount()), Selector: stage.GetSelector()},
			Gate: ota.Gate{Success: stage.GetGate().GetSuccess(), MinFinished: int(stage.GetGate().GetMinFinished())},
			Soak: stage.GetSoak().AsDuration(), Approval: stage.GetApproval(), State: ota.StagePending,
		})
	}
	for _, a := range s.GetAbort() {
		r.Abort = append(r.Abort, ota.AbortRule{Class: ota.Class(a.GetClass()), Share: a.GetShare(), MinSample: int(a.GetMinSample()), Count: int(a.GetCount())})
	}
	return r, nil
}

// decodeWhat reads the firmware or the command.
func decodeWhat(s *otadv1.RolloutSpec) (id ota.ReleaseID, command *ota.Command, err error) {
	if s.GetCommand() != nil {
		if command, err = decodeCommand(s.GetCommand()); err != nil {
			return id, nil, err
		}
	}
	if s.GetFirmware() != "" || command == nil {
		id, err = ota.ParseReleaseID(s.GetFirmware())
	}
	return id, command, err
}

func decodeTerms(s *otadv1.RolloutSpec) (ota.Terms, error) {
	rate, flight, timers, retry := s.GetRate(), s.GetInFlight(), s.GetTimers(), s.GetRetry()
	t := ota.Terms{
		Approval: s.GetApproval(), Strata: s.GetStrata(), OnPause: ota.PausePolicy(s.GetOnPause()), OnAbort: ota.AbortPolicy(s.GetOnAbort()), Health: decodeHealth(s.GetHealth()), Quarantined: s.GetQuarantined(),
		Rate:     ota.Rate{PerMinute: rate.GetPerMinute(), Factor: rate.GetFactor(), Each: int(rate.GetEach()), Of: ota.RateBasis(rate.GetOf()), Max: rate.GetMax()},
		InFlight: ota.InFlight{Max: int(flight.GetMax()), Per: flight.GetPer(), PerMax: int(flight.GetPerMax())},
		Timers: ota.Timers{
			Claim: timers.GetClaim().AsDuration(), Fetch: timers.GetFetch().AsDuration(), Install: timers.GetInstall().AsDuration(),
			Reboot: timers.GetReboot().AsDuration(), Health: timers.GetHealth().AsDuration(),
		},
		Retry: ota.Retry{Attempts: int(retry.GetAttempts()), Backoff: retry.GetBackoff().AsDuration()}, Drift: ota.DriftPolicy(s.GetDrift()), Continuous: s.GetContinuous(),
	}
	if w := s.GetWindow(); w != nil {
		t.Window = ota.Window{RRule: w.GetRrule(), Start: w.GetStart(), Duration: w.GetDuration().GetSeconds(), Fetch: w.GetFetch()}
	}
	if c := s.GetConsent(); c != nil {
		t.Consent = &ota.Consent{MaxDefers: int(c.GetMaxDefers())}
		if c.GetDeadline() != nil {
			t.Consent.Deadline = c.GetDeadline().AsTime()
		}
	}
	for _, class := range retry.GetOn() {
		t.Retry.On = append(t.Retry.On, ota.Class(class))
	}
	if s.GetStart() != nil {
		if err := s.GetStart().CheckValid(); err != nil {
			return t, fmt.Errorf("%w: start: %w", fleet.ErrInvalid, err)
		}
		t.Start = s.GetStart().AsTime()
	}
	return t, nil
}

// encodeSpec is the plan of a rollout as decodeSpec reads it.
func encodeSpec(r ota.Rollout) *otadv1.RolloutSpec {
	t := r.Terms
	s := &otadv1.RolloutSpec{
		Firmware: r.Release.String(), Selector: r.Selector, Seed: r.Seed, Priority: int32(r.Priority), InProgressTimeout: duration(r.InProgressTimeout),
		Approval: t.Approval, Strata: t.Strata, OnPause: string(t.OnPause), OnAbort: string(t.OnAbort), Health: encodeHealth(t.Health), Quarantined: t.Quarantined, Start: timestamp(t.Start), Drift: string(t.Drift), Continuous: t.Continuous,
	}
	if r.Command != nil {
		s.Command = encodeCommand(*r.Command)
	}
	for _, stage := range r.Stages {
		s.Stages = append(s.Stages, encodeStageSpec(stage))
	}
	for _, a := range r.Abort {
		s.Abort = append(s.Abort, &otadv1.AbortRule{Class: string(a.Class), Share: a.Share, MinSample: int32(a.MinSample), Count: int32(a.Count)})
	}
	if w := t.Window; w != (ota.Window{}) {
		s.Window = &otadv1.Window{Rrule: w.RRule, Start: w.Start, Duration: duration(time.Duration(w.Duration) * time.Second), Fetch: w.Fetch}
	}
	if c := t.Consent; c != nil {
		s.Consent = &otadv1.Consent{MaxDefers: int32(c.MaxDefers), Deadline: timestamp(c.Deadline)}
	}
	if t.Rate != (ota.Rate{}) {
		s.Rate = &otadv1.Rate{PerMinute: t.Rate.PerMinute, Factor: t.Rate.Factor, Each: int32(t.Rate.Each), Of: string(t.Rate.Of), Max: t.Rate.Max}
	}
	if t.InFlight != (ota.InFlight{}) {
		s.InFlight = &otadv1.InFlight{Max: int32(t.InFlight.Max), Per: t.InFlight.Per, PerMax: int32(t.InFlight.PerMax)}
	}
	if t.Timers != (ota.Timers{}) {
		s.Timers = &otadv1.Timers{
			Claim: duration(t.Timers.Claim), Fetch: duration(t.Timers.Fetch), Install: duration(t.Timers.Install),
			Reboot: duration(t.Timers.Reboot), Health: duration(t.Timers.Health),
		}
	}
	if t.Retry.Attempts > 0 {
		s.Retry = &otadv1.Retry{Attempts: int32(t.Retry.Attempts), Backoff: duration(t.Retry.Backoff)}
		for _, class := range t.Retry.On {
			s.Retry.On = append(s.Retry.On, string(class))
		}
	}
	return s
}

func encodeStageSpec(s ota.Stage) *otadv1.StageSpec {
	return &otadv1.StageSpec{
		Percent: s.Size.Percent, Count: int32(s.Size.Count), Selector: s.Size.Selector,
		Gate: &otadv1.Gate{Success: s.Gate.Success, MinFinished: int32(s.Gate.MinFinished)},
		Soak: durationpb.New(s.Soak), Approval: s.Approval,
	}
}

// strata are the counts of a stage's strata.
func strata(m map[string]int) map[string]int32 {
	if m == nil {
		return nil
	}
	out := make(map[string]int32, len(m))
	for k, n := range m {
		out[k] = int32(n)
	}
	return out
}

// duration leaves out none.
func duration(d time.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(d)
}

// timestamp leaves out the zero time.
func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
