package fleet

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/shadow"
)

// Limits of the health gate.
const (
	// MaxPairs is how many pairs a rollout makes since it started or was resumed:
	// what they do not prove is too small to matter. The devices after them are not
	// compared.
	MaxPairs = 10_000
	// healthEvery is the time between two looks at the pairs of a rollout.
	healthEvery = 10 * time.Second
	// maxMatched is how many devices get a partner in one look, maxPartners among
	// how many of the line these are chosen, and maxJudged how many pairs are judged
	// at a time.
	maxMatched  = 500
	maxPartners = 2000
	maxJudged   = 500
)

// Pair is an updated device with its partner, which was not updated.
type Pair struct {
	DeviceID      string
	Attempt       int
	PartnerID     string    // empty: there was none
	PartnerDigest string    // the ReportedDigest of the partner when the pair was made
	From          time.Time // when the update succeeded
	Until         time.Time // until when both are watched
	Outcomes      string    // an ota.Outcome for each signal of the plan; empty: it is watched; PairAlone: without a partner
}

// PairAlone are the Outcomes of a device without a partner.
const PairAlone = "alone"

// Member is an updated device that is in no pair yet.
type Member struct {
	Surveyed
	Attempt    int
	FinishedAt time.Time
}

// Vitals is what the server knows of a device: from its events in the time of its
// pair, and as it stands.
type Vitals struct {
	Crashes, Reboots int
	Known, Connected bool // whether it ever connected, and is connected
	Shadow           shadow.Document
}

// WatchedPair is a pair whose time is over.
type WatchedPair struct {
	Pair
	Device, Partner Vitals
	Changed         bool // the partner was given the rollout meanwhile, or runs another image
}

// Kinds of events that signals count.
const (
	EventCrash  = "crash"
	EventReboot = "reboot"
)

// HealthStore keeps pairs. ota.Progress.Health counts them.
type HealthStore interface {
	// Unmatched returns devices whose newest attempt succeeded in the rollout after
	// its ArmedAt and is in no pair, at most limit. Of the tags those of
	// Terms.Strata.
	Unmatched(ctx context.Context, r ota.Rollout, limit int) ([]Member, error)
	// Partners returns devices of the rollout's line from the turn on, in order, at
	// most limit: that are not revoked, in no pair and not given the rollout.
	Partners(ctx context.Context, r ota.Rollout, turn, limit int) ([]Surveyed, error)
	// PutPairs stores pairs; one whose attempt has one, or whose partner is one, is
	// passed over.
	PutPairs(ctx context.Context, rolloutID string, pairs []Pair) error
	// DuePairs returns pairs that are watched and whose time is over, the longest
	// first, at most limit. Shadows are read only if a signal asks for them.
	DuePairs(ctx context.Context, r ota.Rollout, now time.Time, limit int) ([]WatchedPair, error)
	// PutOutcomes stores the Outcomes of pairs that are watched; others stay.
	PutOutcomes(ctx context.Context, rolloutID string, pairs []Pair) error
}

// lookAfter matches and judges the pairs of a rollout, if it is time for that. It
// says whether it looked, and else when to look again; zero: nothing is to be seen.
func (s *Service) lookAfter(ctx context.Context, r ota.Rollout, seen ota.Seen, now time.Time) (looked bool, again time.Time, err error) {
	if r.State != ota.RolloutRunning || seen.Watched == 0 && seen.Unmatched == 0 {
		return false, time.Time{}, nil
	}
	if last := s.looked.of(r.ID); !now.Before(last) && now.Before(last.Add(healthEvery)) {
		return false, last.Add(healthEvery), nil
	}
	if seen.Unmatched > 0 {
		if err := s.match(ctx, r); err != nil {
			return false, time.Time{}, err
		}
	}
	if err := s.judgePairs(ctx, r, now); err != nil {
		return false, time.Time{}, err
	}
	s.looked.set(r.ID, now)
	return true, time.Time{}, nil
}

// match gives updated devices partners of the same strata, from the part of the
// line that comes after the stage that is open.
func (s *Service) match(ctx context.Context, r ota.Rollout) error {
	// The partners first: the other way round, those whom another replica takes in
	// between would be missing while its members seem to be unmatched, who would then
	// be alone beside partners that are free.
	free, err := s.freePartners(ctx, r)
	if err != nil {
		return err
	}
	members, err := s.Store.Unmatched(ctx, r, maxMatched)
	if err != nil || len(members) == 0 {
		return err
	}
	pairs := make([]Pair, len(members))
	for i, m := range members {
		pairs[i] = Pair{DeviceID: m.ID, Attempt: m.Attempt, From: m.FinishedAt, Until: m.FinishedAt.Add(r.Terms.Health.Watching()), Outcomes: PairAlone}
		stratum := stratumOf(r, m.Surveyed)
		if list := free[stratum]; len(list) > 0 {
			pairs[i].PartnerID, pairs[i].PartnerDigest, pairs[i].Outcomes = list[0].ID, list[0].Digest, ""
			free[stratum] = list[1:]
		}
	}
	return s.Store.PutPairs(ctx, r.ID, pairs)
}

// freePartners are the devices that can be partners now, by stratum.
func (s *Service) freePartners(ctx context.Context, r ota.Rollout) (map[string][]Surveyed, error) {
	i := r.Current()
	if i >= len(r.Stages) {
		return nil, nil
	}
	partners, err := s.Store.Partners(ctx, r, r.Stages[i].Target, maxPartners)
	if err != nil {
		return nil, err
	}
	release, err := s.Store.Release(ctx, r.Release)
	if err != nil {
		return nil, err
	}
	free := map[string][]Surveyed{}
	for _, p := range partners {
		if p.Digest != release.ImageDigest {
			stratum := stratumOf(r, p)
			free[stratum] = append(free[stratum], p)
		}
	}
	return free, nil
}

// judgePairs judges the pairs whose time is over.
func (s *Service) judgePairs(ctx context.Context, r ota.Rollout, now time.Time) error {
	for {
		due, err := s.Store.DuePairs(ctx, r, now, maxJudged)
		if err != nil || len(due) == 0 {
			return err
		}
		pairs := make([]Pair, len(due))
		for i, p := range due {
			pairs[i] = p.Pair
			pairs[i].Outcomes = outcomes(r.Terms.Health.Signals, p)
		}
		if err := s.Store.PutOutcomes(ctx, r.ID, pairs); err != nil || len(due) < maxJudged {
			return err
		}
	}
}

// outcomes is how the two of a pair did. One whose partner was changed too, by this
// rollout, another one or somebody else, says nothing.
func outcomes(signals []ota.Signal, p WatchedPair) string {
	b := make([]byte, len(signals))
	for i, s := range signals {
		b[i] = byte(ota.OutcomeChanged)
		if !p.Changed {
			b[i] = byte(s.Compare(p.Device.of(s, p.From), p.Partner.of(s, p.From)))
		}
	}
	return string(b)
}

// of is the value of a signal since a moment; NaN: there is none.
func (v Vitals) of(s ota.Signal, from time.Time) float64 {
	share := func(has bool) float64 {
		if has {
			return 1
		}
		return 0
	}
	switch s.Name {
	case ota.SignalCrash:
		return share(v.Crashes > 0)
	case ota.SignalReboot:
		return share(v.Reboots > 0)
	case ota.SignalOffline:
		if !v.Known {
			return math.NaN()
		}
		return share(!v.Connected)
	}
	return reported(v.Shadow, s.Path(), from)
}

// reported is the number at a path that a device told since a moment; NaN: none. Shadows
// know the second of a report: one of the same second is taken.
func reported(d shadow.Document, path []string, from time.Time) float64 {
	v, _ := d.Reported.At(path...)
	n, _ := v.Number()
	f, err := n.Float64()
	if err != nil || v.Written(d.ReportedAt) < from.Unix() {
		return math.NaN()
	}
	return f
}

// tellNumbers refuses a plan with a signal that is a number which none of the devices it
// means has ever told: no pair of it would count. The first that did ends the look, and
// where an index of the path is none either that nobody did is soon known.
func (s *Service) tellNumbers(ctx context.Context, j judge) error {
	valid := false
	for i, signal := range j.rollout.Terms.Health.Signals {
		path := signal.Path()
		if path == nil {
			continue
		}
		told := false
		q := DeviceQuery{Selector: j.selector.Reporting(path), Revoked: &valid}
		err := s.Store.SelectDevices(ctx, q, func(v DeviceView) bool {
			told = j.release.Fits(v.Hardware) && !math.IsNaN(reported(v.Shadow, path, time.Time{}))
			return !told
		})
		if err != nil {
			return err
		}
		if !told {
			return ota.AtField(fmt.Sprintf("health.signals[%d]", i), fmt.Errorf("%w: health signal %s: none of the devices that the plan means has a number there, so nothing could be compared; correct the path (otactl shadow get shows what a device reports), or leave the signal out",
				ErrInvalid, signal.Name))
		}
	}
	return nil
}

// Unpaired is the pair of a device that is deleted before it was in one.
func Unpaired(e ota.Execution) Pair {
	return Pair{DeviceID: e.DeviceID, Attempt: e.Attempt, From: e.FinishedAt, Until: e.FinishedAt, Outcomes: PairAlone}
}
