package fleet

import (
	"context"
	"fmt"

	"github.com/otad/otad/pkg/ota"
)

// line says of a device that the rollout means, and that was given nothing, where it
// stands in line and what that waits for.
func (w inquiry) line(ctx context.Context, r ota.Rollout) (Because, error) {
	if by := w.passedBy(r); by != nil {
		return w.overtaken(r, *by), nil
	}
	if r.State != ota.RolloutRunning {
		return notRunning(r), nil
	}
	if newer, err := w.awaits(ctx, r); newer != "" || err != nil {
		return Because{Cause: CauseAwaits, Other: newer, Why: "it runs what rollout " + newer + ", which is newer and continuous, brings; this one leaves it alone as long as that follows"}, err
	}
	turn, there, err := w.s.Store.Turn(ctx, r.ID, r.Line, w.device.ID)
	switch {
	case err != nil:
		return Because{}, err
	case r.Terms.Continuous && (!there || turn < r.Cursor):
		return Because{Cause: CauseJoins, Why: "it is about to join: devices that change are looked at within seconds"}, nil
	case !there:
		return w.notInLine(r), nil
	case turn < r.Cursor:
		return Because{Cause: CauseTurnLost, Since: r.StartedAt,
			Why: fmt.Sprintf("it had turn %d of %d, and could not take the release then", turn+1, r.Population)}, nil
	}
	return w.waits(ctx, r, turn)
}

// awaits names a newer continuous rollout that brings the device what it runs already,
// see watched.newer. Empty: none does.
func (w inquiry) awaits(ctx context.Context, r ota.Rollout) (newer string, err error) {
	runs := ReportedDigest(w.device.Shadow)
	for _, o := range w.list {
		if !r.Terms.Continuous || !o.Follows || !o.Supersedes(r) || runs == "" {
			continue
		}
		release, err := w.s.Store.Release(ctx, o.Release)
		if err != nil {
			return "", err
		}
		if meant, err := w.s.means(ctx, o.Selector, w.device.ID); err != nil || meant && release.ImageDigest == runs {
			return o.ID, err
		}
	}
	return "", nil
}

// notInLine says why a device has no turn.
func (w inquiry) notInLine(r ota.Rollout) Because {
	b := Because{Cause: CauseLate, Since: r.StartedAt}
	reached := r.Stages[len(r.Stages)-1].Target
	switch {
	case w.device.CreatedAt.After(r.StartedAt):
		b.Why, b.Since = "it enrolled after the rollout had begun", w.device.CreatedAt
	case reached < r.Population:
		b.Why = fmt.Sprintf("the stages reach %d of %d devices, and this one is not among them", reached, r.Population)
	default:
		b.Why = "it could not take the release when the rollout began, or was not meant then"
	}
	return b
}

// waits says what the turn of a device waits for.
func (w inquiry) waits(ctx context.Context, r ota.Rollout, turn int) (Because, error) {
	now := min(r.Current(), len(r.Stages)-1)
	stage := r.Stages[now]
	b := Because{Cause: CauseStage, Since: stage.OpenedAt}
	b.Why = fmt.Sprintf("%s; it is number %d in line, in stage %d", itsTurn(r), turn+1, stageOf(r, turn)+1)
	health, err := w.s.heldByHealth(ctx, r)
	switch {
	case err != nil:
		return b, err
	case stage.State == ota.StagePending && stage.Approval && stage.ApprovedAt.IsZero():
		b.Cause, b.Since = CauseStageApproval, r.StartedAt
		if now > 0 {
			b.Since = r.Stages[now-1].EndedAt
		}
		b.Why += fmt.Sprintf("; stage %d awaits its approval", now+1)
	case turn < stage.Target && stage.State == ota.StageOpen:
		b.Cause = CauseTurn
		next := w.now
		if rate := r.Terms.Rate; rate != (ota.Rate{}) {
			if r.PacedAt.After(next) { // see ota.Rate
				next = r.PacedAt
			}
			next = next.Add(rate.Least(turn - r.Cursor))
			b.Cause, b.Until = CauseRate, next
			b.Why += fmt.Sprintf("; the rate is %s", rate)
		}
		b.Why += w.shut(r, next)
	case health != "":
		b.Cause = CauseHealth
		b.Why += health
	case stage.State == ota.StageSoaking:
		b.Cause, b.Since, b.Until = CauseSoak, stage.SoakingAt, stage.SoakingAt.Add(stage.Soak)
	}
	return b, nil
}

// stageOf is the index of the stage that a turn belongs to.
func stageOf(r ota.Rollout, turn int) int {
	for i, s := range r.Stages {
		if turn < s.Target {
			return i
		}
	}
	return len(r.Stages) - 1
}

func itsTurn(r ota.Rollout) string {
	stage := min(r.Current(), len(r.Stages)-1)
	return fmt.Sprintf("waits for its turn: stage %d of %d is %s, %d of %d devices had theirs", stage+1, len(r.Stages), r.Stages[stage].State, r.Cursor, r.Population)
}

// heldByHealth says which signal a rollout waits for; empty: none.
func (s *Service) heldByHealth(ctx context.Context, r ota.Rollout) (string, error) {
	if !r.Terms.Health.Set() || r.State != ota.RolloutRunning {
		return "", nil
	}
	p, err := s.Store.Progress(ctx, r, s.Now())
	for _, v := range ota.Verdicts(r.Terms.Health, p.Health) {
		if v.Judgement == ota.HealthHold {
			return "; its health is not settled: " + v.String(), err
		}
	}
	return "", err
}

// notReturned says why the device has no execution of a revert.
func (w inquiry) notReturned(ctx context.Context, r ota.Rollout) (Because, error) {
	of, err := w.s.Store.Rollout(ctx, r.RevertOf)
	if err != nil {
		return Because{}, err
	}
	to, err := w.s.Store.Release(ctx, r.Release)
	if err != nil {
		return Because{}, err
	}
	b := Because{Cause: CauseNotReturned, Other: of.ID, Why: fmt.Sprintf("it reverts rollout %s, which has not changed the device", of.ID)}
	changed, returns := false, false
	_, err = w.s.changes(ctx, of, w.device.ID, func(e ota.Execution) { changed, returns = true, e.From == to.ImageDigest })
	switch {
	case err != nil || !changed:
		return b, err
	case !returns:
		b.Why = fmt.Sprintf("it brings devices of rollout %s back to %s, which this one did not run before", of.ID, to.ID())
		return b, nil
	}
	return w.line(ctx, r)
}
