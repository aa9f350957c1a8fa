package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/otad/otad/pkg/ota"
)

// Because says what one rollout means for a device, what holds it up, and what to do
// about it.
type Because struct {
	Rollout   ota.Rollout
	Execution *ota.Execution // the newest attempt; nil: it has none
	Cause     Cause
	Why       string    // for people
	Since     time.Time // when that began; zero: it is not known
	Until     time.Time // when that ends by itself; zero: not by time
	Remedy    string    // a command, or what else to do; or that it goes on by itself
	Other     string    // the rollout that is the cause; empty: none other
}

// Why explains what holds a device now: what every rollout that has not ended means
// for it; of those that have, the last that it has drifted from, and the last to leave it
// without a firmware, where no other one brings it that. Rollouts of releases for other
// hardware are left out, unless their selector means the device or there is no other.
func (s *Service) Why(ctx context.Context, deviceID string) ([]Because, error) {
	w, err := s.inquire(ctx, deviceID)
	if err != nil {
		return nil, err
	}
	var list, said []Because
	for _, ended := range []bool{false, true} {
		for _, r := range w.list {
			if r.State.Terminal() != ended || ended && !w.asksAfter(r, said) {
				continue
			}
			b, err := w.explain(ctx, r)
			if err != nil {
				return nil, err
			}
			if r.Kind() == ota.KindInstall && b.Cause.concerns() {
				said = append(said, b)
			}
			if !ended || b.Cause.concerns() && b.Cause != CauseSucceeded {
				list = append(list, b)
			}
		}
	}
	others := func(b Because) bool { return b.Cause == CauseHardware && b.Rollout.Selector == "" }
	if slices.ContainsFunc(list, func(b Because) bool { return !others(b) }) {
		list = slices.DeleteFunc(list, others)
	}
	return list, nil
}

// inquiry is a device, with all that rollouts have made of it.
type inquiry struct {
	s        *Service
	now      time.Time
	device   DeviceRecord
	list     []ota.Rollout // newest first
	rollouts map[string]ota.Rollout
	attempts []ota.Execution          // on the device
	newest   map[string]ota.Execution // by rollout
	pending  []ota.Execution
}

func (s *Service) inquire(ctx context.Context, deviceID string) (w inquiry, err error) {
	w = inquiry{s: s, now: s.Now(), rollouts: map[string]ota.Rollout{}, newest: map[string]ota.Execution{}}
	if w.device, err = s.Device(ctx, deviceID); err != nil {
		return w, err
	}
	if w.list, err = s.Store.Rollouts(ctx); err != nil {
		return w, err
	}
	for _, r := range w.list {
		w.rollouts[r.ID] = r
	}
	// Of each rollout at most one is not finished.
	if w.pending, err = s.Store.Pending(ctx, deviceID, len(w.list)+1); err != nil {
		return w, err
	}
	err = s.Store.Executions(ctx, ExecutionFilter{DeviceID: deviceID}, func(e ota.Execution) bool {
		w.attempts = append(w.attempts, e)
		w.newest[e.RolloutID] = e // they come by attempt
		return true
	})
	return w, err
}

// asksAfter reports whether a rollout that has ended is looked at, after what is said of
// others: the device has drifted from it, and that is not moot, or nothing else is known
// to bring it the firmware.
func (w inquiry) asksAfter(r ota.Rollout, said []Because) bool {
	e, given := w.newest[r.ID]
	if given && e.Class == ota.ClassDrifted {
		return !slices.ContainsFunc(said, func(b Because) bool { return b.moots(r) })
	}
	if r.Kind() != ota.KindInstall || r.RevertOf != "" || slices.ContainsFunc(said, func(b Because) bool { return b.Rollout.Release.Name == r.Release.Name }) {
		return false
	}
	// Of those that have nothing for it only the last: each costs a look at the device.
	last := slices.IndexFunc(w.list, func(o ota.Rollout) bool {
		return o.State.Terminal() && o.Kind() == ota.KindInstall && o.RevertOf == "" && o.Release.Name == r.Release.Name
	})
	return given || w.list[last].ID == r.ID
}

// moots reports whether after b there is nothing to do about a drift from r, which has
// ended: b is about the same release, brings a newer one, or is a later drift. What has
// ended counts as newer by its age: the operator may have gone back to an older release.
func (b Because) moots(r ota.Rollout) bool {
	if b.Rollout.Release.Name != r.Release.Name {
		return false
	}
	if b.Rollout.Release == r.Release || b.Rollout.State.Terminal() && b.Cause == CauseDrifted {
		return true
	}
	newer := b.Rollout.Supersedes(r)
	if order, known := ota.ParseVersion(b.Rollout.Release.Version).Compare(ota.ParseVersion(r.Release.Version)); known && !b.Rollout.State.Terminal() {
		newer = order > 0
	}
	return newer && b.Cause.brings()
}

// explain says what a rollout means for the device.
func (w inquiry) explain(ctx context.Context, r ota.Rollout) (b Because, err error) {
	if e, ok := w.newest[r.ID]; ok {
		b = w.given(r, e)
		b.Execution = &e
		b.Why = onLeg(e) + b.Why
	} else if b, err = w.notGiven(ctx, r); err != nil {
		return b, err
	}
	b.Rollout = r
	b.Remedy = b.Cause.remedy(w, b)
	return b, nil
}

// passedBy is the rollout that supersedes r and has work for the device, or had; nil:
// there is none.
func (w inquiry) passedBy(r ota.Rollout) *ota.Rollout {
	var by *ota.Rollout
	for _, e := range w.attempts {
		o := w.rollouts[e.RolloutID]
		if e.Status == ota.Canceled || e.Status == ota.Removed || !o.Supersedes(r) {
			continue
		}
		if by == nil || cmp.Or(o.CreatedAt.Compare(by.CreatedAt), cmp.Compare(o.ID, by.ID)) > 0 {
			by = &o
		}
	}
	return by
}

// means reports whether a selector means the device.
func (s *Service) means(ctx context.Context, expr, deviceID string) (bool, error) {
	only := fmt.Sprintf("id = %q", deviceID)
	if expr != "" {
		only += " AND (" + expr + ")"
	}
	sel, err := s.selector(ctx, only)
	if err != nil {
		return false, err
	}
	n, err := s.Store.CountDevices(ctx, DeviceQuery{Selector: sel})
	return n > 0, err
}

// judgement says which of the words for exclusion fits the device, with what there is
// to say beside it; ErrUnsigned: the release may not be rolled out.
func (w inquiry) judgement(ctx context.Context, r ota.Rollout) (why, detail string, err error) {
	meant, err := w.s.means(ctx, r.Selector, w.device.ID)
	if err != nil {
		return "", "", err
	}
	if !meant {
		return ExcludedSelector, "", nil
	}
	j, err := w.s.judgeOf(ctx, r)
	if err != nil {
		return "", "", err
	}
	d := Survey(w.device.DeviceView, nil)
	why = j.exclude(d)
	return why, j.detail(why, d), nil
}

// notGiven says why the device has no execution of a rollout.
func (w inquiry) notGiven(ctx context.Context, r ota.Rollout) (Because, error) {
	if w.device.Revoked() {
		return Because{Cause: CauseRevoked, Why: "the device is revoked", Since: w.device.RevokedAt}, nil
	}
	if r.RevertOf != "" {
		return w.notReturned(ctx, r)
	}
	why, detail, err := w.judgement(ctx, r)
	switch {
	case errors.Is(err, ErrUnsigned):
		release, err := w.s.Store.Release(ctx, r.Release)
		return Because{Cause: CauseWithdrawn, Why: release.WithdrawnText(), Since: release.WithdrawnAt}, err
	case err != nil:
		return Because{}, err
	case why != "":
		return excludedBecause(r, why, detail), nil
	}
	return w.line(ctx, r)
}

// excludedBecause says that the device is not eligible.
func excludedBecause(r ota.Rollout, why, detail string) Because {
	switch {
	case why == ExcludedSelector && r.Terms.Continuous:
		return Because{Cause: CauseJoinsWhenSelected, Why: "the rollout's selector does not match it; it joins when it does"}
	case why == ExcludedSelector:
		return Because{Cause: CauseNotSelected, Why: "the rollout's selector does not match it"}
	case why == ExcludedHardware:
		return Because{Cause: CauseHardware, Why: "the release is for other hardware"}
	case why == ExcludedCurrent:
		return Because{Cause: CauseCurrent, Why: "it runs this image already"}
	case why == ExcludedQuarantined:
		return Because{Cause: CauseQuarantined, Why: "it tried this image, or one on the way to it, before and went back"}
	}
	return Because{Cause: CauseNeedsVersion, Why: detail}
}

// overtaken says that a newer rollout has the device.
func (w inquiry) overtaken(r, by ota.Rollout) Because {
	e := w.newest[by.ID]
	b := Because{Cause: CausePassedBy, Why: "rollout " + by.ID + " of " + by.Release.String() + ", which is newer, has it: " + w.standsThere(by), Since: e.QueuedAt, Other: by.ID}
	if by.State.Terminal() && e.Class != ota.ClassSucceeded {
		b.Cause = CausePassedByFailed
	}
	return b
}

// standsThere is how the device stands to another rollout, in a few words.
func (w inquiry) standsThere(o ota.Rollout) string {
	text := "that is " + string(o.State)
	if e, ok := w.newest[o.ID]; ok {
		text = "there it is " + string(e.Status)
		if e.Status.Terminal() {
			text = "there it ended " + ended(e)
		}
	}
	return text
}
