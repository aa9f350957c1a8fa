package sim

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/otad/otad/pkg/ota"
)

var rolloutMoves = map[ota.RolloutState][]ota.RolloutState{
	"":                          {ota.RolloutDraft, ota.RolloutAwaitingApproval, ota.RolloutScheduled},
	ota.RolloutDraft:            {ota.RolloutDraft, ota.RolloutAwaitingApproval, ota.RolloutScheduled, ota.RolloutAborting, ota.RolloutRollingBack},
	ota.RolloutAwaitingApproval: {ota.RolloutAwaitingApproval, ota.RolloutScheduled, ota.RolloutAborting, ota.RolloutRollingBack},
	ota.RolloutScheduled:        {ota.RolloutAwaitingApproval, ota.RolloutScheduled, ota.RolloutRunning, ota.RolloutPaused, ota.RolloutAborting, ota.RolloutRollingBack},
	ota.RolloutRunning:          {ota.RolloutRunning, ota.RolloutPaused, ota.RolloutAborting, ota.RolloutRollingBack, ota.RolloutFinishing, ota.RolloutCompleted},
	ota.RolloutPaused:           {ota.RolloutPaused, ota.RolloutRunning, ota.RolloutScheduled, ota.RolloutAborting, ota.RolloutRollingBack, ota.RolloutFinishing},
	ota.RolloutCompleted:        {ota.RolloutRollingBack},
	ota.RolloutAborted:          {ota.RolloutRollingBack},
	ota.RolloutFinishing:        {ota.RolloutFinishing, ota.RolloutPaused, ota.RolloutAborting, ota.RolloutRollingBack, ota.RolloutCompleted},
	ota.RolloutAborting:         {ota.RolloutAborting, ota.RolloutAborted},
	ota.RolloutRollingBack:      {ota.RolloutRollingBack, ota.RolloutPaused, ota.RolloutRolledBack},
}

var stageMoves = map[ota.StageState][]ota.StageState{
	ota.StagePending: {ota.StageOpen},
	ota.StageOpen:    {ota.StageSoaking, ota.StagePassed, ota.StageFailed},
	ota.StageSoaking: {ota.StageOpen, ota.StagePassed, ota.StageFailed},
	ota.StageFailed:  {ota.StagePending, ota.StagePassed, ota.StageOpen},
}

// rollout looks at a rollout that changed; old is zero when it is new.
func (k *checker) rollout(c change, old, r ota.Rollout) {
	name := fmt.Sprintf("%s: rollout %s", c.label, r.ID)
	if !slices.Contains(rolloutMoves[old.State], r.State) {
		k.say("%s went from %s to %s", name, old.State, r.State)
	}
	if r.RevertOf != "" {
		k.revert(name, old, r)
	}
	if old.ID == "" {
		return
	}
	if r.Revision != old.Revision+1 {
		k.say("%s went from revision %d to %d", name, old.Revision, r.Revision)
	}
	if byHand := strings.HasPrefix(c.label, "op pause ") || strings.HasPrefix(c.label, "op stop all "); byHand && r.State != ota.RolloutPaused {
		k.say("%s was paused by an operator and is %s", name, r.State)
	}
	if r.State == ota.RolloutPaused && r.Reason == "" {
		k.say("%s is paused without a reason", name)
	}
	if r.State == ota.RolloutRunning && old.State != ota.RolloutRunning {
		k.runs[r.ID] = c.now
	}
	if !old.State.Begun() {
		return
	}
	if r.Cursor < old.Cursor {
		k.say("%s: the cursor went from %d back to %d", name, old.Cursor, r.Cursor)
	}
	k.sizes(name, r)
	b := k.basis[c.label+" "+r.ID]
	for i := range r.Stages {
		if i < len(old.Stages) && old.Stages[i].State != r.Stages[i].State {
			k.stage(c, fmt.Sprintf("%s: stage %d", name, i+1), i, old, r, b)
		}
	}
	if went := c.advance != nil && (c.advance.Insert != nil || c.advance.Open != nil || r.State == ota.RolloutCompleted && old.State != ota.RolloutFinishing); went {
		if b.revision != old.Revision {
			k.say("%s moved on what stood at revision %d", name, b.revision)
		}
		k.untripped(name, old, b)
	}
	if r.State.Terminal() {
		k.ended(name, r)
	}
}

// stage looks at a stage that changed its state.
func (k *checker) stage(c change, name string, i int, old, r ota.Rollout, b basis) {
	was, now := old.Stages[i], r.Stages[i]
	if !slices.Contains(stageMoves[was.State], now.State) {
		k.say("%s went from %s to %s", name, was.State, now.State)
	}
	if now.State != ota.StagePending && i > 0 && r.Stages[i-1].State != ota.StagePassed {
		k.say("%s is %s while the one before it is %s", name, now.State, r.Stages[i-1].State)
	}
	byOperator := strings.HasPrefix(c.label, "op ") && old.State == ota.RolloutPaused && r.State == ota.RolloutRunning
	if was.State == ota.StageFailed && !byOperator {
		k.say("%s went from FAILED to %s and no operator said so", name, now.State)
	}
	if skips := was.State == ota.StageFailed && now.State != ota.StagePending; skips == now.SkippedAt.Equal(was.SkippedAt) {
		k.say("%s went from %s to %s, skipped at %s, before at %s", name, was.State, now.State, now.SkippedAt, was.SkippedAt)
	}
	if was.State == ota.StageFailed && now.State == ota.StagePending {
		k.repeats[r.ID]++
	}
	if was.State == ota.StageFailed || r.State.Ending() {
		return
	}
	if b.revision != old.Revision {
		k.say("%s went from %s to %s on what stood at revision %d", name, was.State, now.State, b.revision)
		return
	}
	seen := b.stages[i]
	if !was.SkippedAt.IsZero() { // what finished before an operator skipped it counts no more
		seen.sample, seen.succeeded = 0, b.armed[ota.ClassSucceeded]
		for class, n := range b.armed {
			if class != ota.ClassNone && class != ota.ClassUnderway {
				seen.sample += n
			}
		}
	}
	settled := seen.active+seen.retrying == 0
	switch {
	case old.State == ota.RolloutFinishing:
		if passes := r.Cursor >= now.Target && (seen.sample == 0 || seen.met(now.Gate)); passes != (now.State == ota.StagePassed) {
			k.say("%s is finished as %s at %d of %d: %+v, its gate is %s", name, now.State, r.Cursor, now.Target, seen, now.Gate)
		}
		return
	case now.State == ota.StageOpen && was.State == ota.StagePending:
		if now.Approval && now.ApprovedAt.IsZero() {
			k.say("%s opened without approval", name)
		}
	case now.State == ota.StagePassed && was.State == ota.StageOpen:
		unproved := r.Kind() == ota.KindCommand && now.Gate.Success == 0 && settled && seen.sample == 0
		first := 0
		if i > 0 {
			first = r.Stages[i-1].Target
		}
		proof := i+1 < len(r.Stages) && (now.Size.Selector != "" || now.Target > first) && (r.Kind() == ota.KindInstall || now.Gate.Success > 0)
		if (seen.total > 0 || proof) && !unproved || r.Cursor < now.Target {
			k.say("%s passed unjudged at %d of %d: %+v", name, r.Cursor, now.Target, seen)
		}
	case now.State == ota.StageSoaking:
		enough := settled || now.Gate.MinFinished > 0 && seen.sample >= now.Gate.MinFinished
		if !enough || !seen.met(now.Gate) || r.Cursor < now.Target {
			k.say("%s soaks at %d of %d: %+v, its gate is %s", name, r.Cursor, now.Target, seen, now.Gate)
		}
	case now.State == ota.StagePassed:
		if soaked := now.EndedAt.Sub(now.SoakingAt); soaked+time.Millisecond < now.Soak || !seen.met(now.Gate) {
			k.say("%s passed after %s: %+v, its gate is %s, its soak time %s", name, soaked, seen, now.Gate, now.Soak)
		}
	case now.State == ota.StageFailed && r.Terms.Health.Set() && strings.Contains(r.Reason, "health"):
		if seen.total == 0 {
			k.say("%s failed by health, and has no device", name)
		}
	case now.State == ota.StageFailed:
		if !settled || seen.met(now.Gate) {
			k.say("%s failed: %+v, its gate is %s", name, seen, now.Gate)
		}
	}
	k.untripped(name, old, b)
}

// untripped: a rollout does not go on over an abort rule.
func (k *checker) untripped(name string, r ota.Rollout, b basis) {
	for _, rule := range r.Abort {
		n, sample := 0, 0
		for class, of := range b.armed {
			if class == ota.ClassNone || class == ota.ClassUnderway {
				continue
			}
			sample += of
			if class == rule.Class || rule.Class == ota.ClassAny && class != ota.ClassSucceeded {
				n += of
			}
		}
		over := rule.Share < 1 && n > 0 && sample >= rule.MinSample && float64(n) > rule.Share*float64(sample)+1e-6
		if over || rule.Count > 0 && n >= rule.Count {
			k.say("%s went on with %d of %d, over the rule %s", name, n, sample, rule)
		}
	}
}

// sizes: no stage has more devices than it may.
func (k *checker) sizes(name string, r ota.Rollout) {
	size := make([]int, len(r.Stages))
	for at, attempts := range k.executions {
		if at.rollout == r.ID {
			size[attempts[0].Stage]++
		}
	}
	from := 0
	for i, stage := range r.Stages {
		if most := max(stage.Target-from, 0); size[i] > most {
			k.say("%s: stage %d has %d devices, over %d", name, i+1, size[i], most)
		}
		from = max(from, stage.Target)
	}
}

// ended looks at a rollout that has ended.
func (k *checker) ended(name string, r ota.Rollout) {
	if n := k.active(r.ID, ota.Queued) + k.active(r.ID, ota.InProgress); n > 0 {
		k.say("%s is %s with %d executions that are not finished", name, r.State, n)
	}
	for i, stage := range r.Stages {
		if r.State == ota.RolloutCompleted && !r.Terms.Continuous && (stage.State != ota.StagePassed || r.Cursor < stage.Target) {
			k.say("%s is COMPLETED, stage %d is %s at %d of %d", name, i+1, stage.State, r.Cursor, stage.Target)
		}
	}
}
