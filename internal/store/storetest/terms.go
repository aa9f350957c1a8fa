package storetest

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/selector"
	"github.com/otad/otad/pkg/shadow"
)

// bound creates a running rollout with terms and gives the devices executions.
func (s *suite) bound(id string, terms ota.Terms, devices ...string) ota.Rollout {
	s.Helper()
	r := newRollout(id, 12)
	r.Terms = terms
	s.must(s.createRollout(r))
	insert := queued(0, 1, devices...)
	for i := range insert {
		insert[i].Lane = devices[i][:1]
	}
	return s.open(r, epoch, insert...)
}

func step(at ota.Step) map[string]string { return map[string]string{ota.DetailStep: string(at)} }

func at(minutes int) time.Time { return epoch.Add(time.Duration(minutes) * time.Minute) }

func keptAt(minutes int) time.Time { return kept.Add(time.Duration(minutes) * time.Minute) }

var termTests = []test{
	{"terms and the state of a rollout are kept", func(s *suite) {
		r := newRollout("r", 3)
		r.State = ota.RolloutAwaitingApproval
		r.Terms = ota.Terms{
			Start: epoch, Approval: true, Rate: ota.Rate{PerMinute: 7.5, Factor: 2, Each: 10, Of: ota.RateByNotified, Max: 100},
			InFlight: ota.InFlight{Max: 5, Per: "site", PerMax: 2}, Timers: ota.Timers{Claim: time.Hour, Health: time.Minute},
			Retry: ota.Retry{Attempts: 3, Backoff: time.Minute, On: []ota.Class{ota.ClassSilent}}, Strata: []string{"hardware"},
			OnPause: ota.PauseHoldBeforeInstall, Quarantined: true, Consent: &ota.Consent{MaxDefers: 2},
			Window: ota.Window{RRule: "FREQ=DAILY;BYHOUR=2", Duration: 3600},
		}
		r.Stages[1].Approval = true
		s.must(s.createRollout(r))
		r.Terms.Start = kept
		got, err := s.Rollout(ctx, "r")
		s.must(err)
		s.equal("rollout", got, r)
		r.State, r.Line, r.Cursor, r.InProgressTimeout = ota.RolloutRunning, "l1", 2, time.Hour
		r.Pause, r.Edits = ota.PauseLetFinish, 3
		r.PacedAt, r.ApprovedAt, r.StartedAt, r.Stages[1].ApprovedAt = kept.Add(1000), kept.Add(2000), kept.Add(3000), kept.Add(4000)
		got = s.open(r, epoch)
		r.Revision++
		s.equal("rollout", got, r)
		got.InProgressTimeout = time.Minute
		s.equal("a timeout that is fixed", s.open(got, epoch).InProgressTimeout, time.Hour)
	}},
	{"a step that was decided before a device was revoked leaves nothing on it", func(s *suite) {
		s.enrolled("a", "b")
		r := s.bound("r", ota.Terms{Timers: ota.Timers{Claim: time.Hour}}, "a", "b")
		for _, device := range []string{"a", "b"} {
			_, err := s.Report(ctx, ota.Report{RolloutID: "r", DeviceID: device, Status: ota.Failed}, at(1))
			s.must(err)
		}
		s.must(s.RevokeDevice(ctx, "b", at(2)))
		s.must(s.Advance(ctx, fleet.Advance{Rollout: r, Insert: queued(0, 2, "a", "b"), Now: at(3)}))
		a, err := s.Execution(ctx, "r", "a")
		s.must(err)
		s.equal("a", a.Status, ota.Queued)
		b, err := s.Execution(ctx, "r", "b")
		s.must(err)
		s.equal("b", b.Status, ota.Removed)
		s.equal("reason", b.Reason(), fleet.RevokedReason)
		s.equal("version", b.Version, int64(2))
		s.equal("finished", b.FinishedAt, keptAt(3))
		s.equal("expires", b.Expires, time.Time{})
	}},
	{"a line is kept in order until it is dropped", func(s *suite) {
		s.rollout("r", 4)
		put := func(line string, turn int, list ...ota.Candidate) {
			s.must(s.PutCandidates(ctx, "r", line, turn, list))
		}
		put("l", 0, ota.Candidate{DeviceID: "c", Lane: "x"}, ota.Candidate{DeviceID: "a"})
		put("l", 2, ota.Candidate{DeviceID: "b"})
		put("l", 0, ota.Candidate{DeviceID: "c", Lane: "x"}, ota.Candidate{DeviceID: "a"}) // again
		put("other", 0, ota.Candidate{DeviceID: "d"})
		all := []ota.Candidate{{DeviceID: "c", Lane: "x"}, {DeviceID: "a"}, {DeviceID: "b"}}
		line := func(from, limit int) []ota.Candidate {
			got, err := s.Candidates(ctx, "r", "l", from, limit)
			s.must(err)
			return got
		}
		s.equal("all", line(0, 10), all)
		s.equal("some", line(1, 1), all[1:2])
		s.equal("after the last", line(3, 10), []ota.Candidate(nil))
		turn := func(device string) any {
			n, ok, err := s.Turn(ctx, "r", "l", device)
			s.must(err)
			return []any{n, ok}
		}
		s.equal("turns", []any{turn("c"), turn("b"), turn("d")}, []any{[]any{0, true}, []any{2, true}, []any{0, false}})
		more, err := s.DropCandidates(ctx, "r", "l", 1)
		s.must(err)
		if more {
			more, err = s.DropCandidates(ctx, "r", "l", 1)
			s.must(err)
		}
		s.equal("more", more, false)
		s.equal("what is kept", line(0, 10), all)
		more, err = s.DropCandidates(ctx, "r", "", 2)
		s.must(err)
		s.equal("more", more, true)
		_, err = s.DropCandidates(ctx, "r", "", 10)
		s.must(err)
		s.equal("nothing is left", line(0, 10), []ota.Candidate(nil))
	}},
	{"a turn is lost by a device that is no longer eligible", func(s *suite) {
		s.enrolled("a", "b", "c", "d", "e", "f")
		image, other := strings.Repeat("ab", 32), strings.Repeat("cd", 32)
		runs := func(device, digest string) {
			_, err := s.UpdateShadow(ctx, device, "", shadow.NewUpdate(nil, map[string]any{"firmware": map[string]any{"digest": digest}}), epoch)
			s.must(err)
		}
		runs("b", image)
		runs("c", other)
		runs("f", image)
		_, err := s.DeleteShadow(ctx, "f", "", epoch)
		s.must(err)
		s.must(s.RevokeDevice(ctx, "a", epoch))
		newer := newRollout("s", 1)
		newer.CreatedAt = kept.Add(time.Second)
		s.must(s.createRollout(newer))
		s.open(newer, epoch, queued(0, 1, "d")...)
		r := newRollout("r", 9)
		r.Line, r.Terms.Timers.Claim = "l", time.Hour
		s.must(s.createRollout(r))
		s.must(s.PutCandidates(ctx, "r", "l", 0, []ota.Candidate{
			{DeviceID: "e"}, {DeviceID: "c", Lane: "x"}, {DeviceID: "a"}, {DeviceID: "gone"}, {DeviceID: "b"}, {DeviceID: "d"}, {DeviceID: "f"},
		}))
		s.must(s.Advance(ctx, fleet.Advance{Rollout: r, Open: &fleet.Opening{Stage: 1, From: 1, To: 7, Digest: image}, Now: epoch}))
		s.equal("opened", names(s.executions(fleet.ExecutionFilter{RolloutID: "r"})), []string{"r c 1", "r f 1"})
		s.equal("c", s.execution("r", "c"), ota.Execution{
			RolloutID: "r", DeviceID: "c", Release: r.Release, Stage: 1, Attempt: 1, Leg: 1, Status: ota.Queued, Version: 1, Lane: "x", From: other, QueuedAt: kept, UpdatedAt: kept,
			Timers: r.Terms.Timers, Expires: keptAt(60), ExpiresAs: ota.ClassTimedOut,
		})
		r.Revision++
		for _, bad := range []fleet.Opening{{From: 5, To: 8}, {Stage: 2, To: 1}, {Stage: -1, To: 1}} {
			s.wantErr(s.Advance(ctx, fleet.Advance{Rollout: r, Open: &bad, Now: epoch}), fleet.ErrInvalid)
		}
		s.must(s.Advance(ctx, fleet.Advance{Rollout: r, Open: &fleet.Opening{To: 5}, Now: at(1)}))
		s.equal("with any image", names(s.executions(fleet.ExecutionFilter{RolloutID: "r"})), []string{"r b 1", "r c 1", "r e 1", "r f 1"})
		s.equal("one that was there", s.execution("r", "c").QueuedAt, kept)
		back := newRollout("z", 9)
		back.Line = "l"
		s.must(s.createRollout(back))
		s.must(s.PutCandidates(ctx, "z", "l", 0, []ota.Candidate{{DeviceID: "e"}, {DeviceID: "c"}, {DeviceID: "b"}}))
		s.must(s.Advance(ctx, fleet.Advance{Rollout: back, Open: &fleet.Opening{To: 3, Only: []string{other, strings.Repeat("ef", 32)}}, Now: at(2)}))
		s.equal("with some images only", names(s.executions(fleet.ExecutionFilter{RolloutID: "z"})), []string{"z c 1", "z e 1"})
		s.equal("from", []string{s.execution("z", "c").From, s.execution("z", "e").From}, []string{other, ""})
	}},
	{"a survey says what each device is and runs", func(s *suite) {
		s.enrolled("a", "b", "c", "d", "e")
		image := strings.Repeat("ab", 32)
		for device, digest := range map[string]any{"a": image, "b": strings.ToUpper(image), "c": 7, "d": "d1\x00"} {
			_, err := s.UpdateShadow(ctx, device, "", shadow.NewUpdate(nil, map[string]any{"firmware": map[string]any{"digest": digest}, "n": 1}), epoch)
			s.must(err)
		}
		s.must(s.ChangeTags(ctx, "b", map[string]string{"site": "x", "other": "y"}, nil))
		survey := func(q fleet.DeviceQuery, tags ...string) (list []fleet.Surveyed) {
			s.must(s.Survey(ctx, q, tags, func(d fleet.Surveyed) bool {
				list = append(list, d)
				return true
			}))
			return list
		}
		of := func(id, digest string) fleet.Surveyed {
			return fleet.Surveyed{ID: id, Hardware: "board-a", Digest: digest}
		}
		s.equal("all", survey(fleet.DeviceQuery{}), []fleet.Surveyed{of("a", image), of("b", ""), of("c", ""), of("d", ""), of("e", "")})
		b := of("b", "")
		b.Tags = map[string]string{"site": "x"}
		s.equal("tags", survey(fleet.DeviceQuery{After: "a"}, "site", "none")[:2], []fleet.Surveyed{b, of("c", "")})
		for expr, want := range map[string][]fleet.Surveyed{
			`shadow.reported.n = 1`:                 {of("a", image), of("b", ""), of("c", ""), of("d", "")},
			`tags.site = "x"`:                       {of("b", "")},
			`NOT id = "a"`:                          {of("b", ""), of("c", ""), of("d", ""), of("e", "")},
			`shadow.reported.n <= 1.5 AND id < "c"`: {of("a", image), of("b", "")},
		} {
			s.equal(expr, survey(fleet.DeviceQuery{Selector: s.parsed(expr)}), want)
		}
		s.must(s.RevokeDevice(ctx, "a", epoch))
		no := false
		n := 0
		s.must(s.Survey(ctx, fleet.DeviceQuery{Revoked: &no}, nil, func(d fleet.Surveyed) bool {
			n++
			s.equal("first", d, of("b", ""))
			return false
		}))
		s.equal("calls", n, 1)
		_, err := s.DeleteShadow(ctx, "a", "", epoch)
		s.must(err)
		s.equal("without a shadow", survey(fleet.DeviceQuery{})[0], of("a", ""))
	}},
	{"no more are in flight than terms allow", func(s *suite) {
		s.enrolled("a1", "a2", "a3", "b1", "b2")
		s.bound("r", ota.Terms{InFlight: ota.InFlight{Max: 3, Per: "site", PerMax: 2}}, "a1", "a2", "a3", "b1", "b2")
		for _, d := range []string{"a1", "a2"} {
			_, err := s.StartNext(ctx, d, ota.Starting{}, epoch)
			s.must(err)
		}
		held := func(device string) {
			s.Helper()
			_, err := s.NextExecution(ctx, device)
			s.wantErr(err, fleet.ErrNotFound)
			_, err = s.StartNext(ctx, device, ota.Starting{}, epoch)
			s.wantErr(err, fleet.ErrNotFound)
			list, err := s.Pending(ctx, device, 10)
			s.must(err)
			s.equal("pending", len(list), 0)
			e, err := s.Report(ctx, ota.Report{RolloutID: "r", DeviceID: device, Status: ota.InProgress}, epoch)
			s.wantErr(err, ota.ErrTransition)
			s.equal("stands", e.Status, ota.Queued)
		}
		held("a3") // its lane is full
		s.report("r", "b1", ota.InProgress, epoch)
		held("b2") // the rollout is full
		s.report("r", "a1", ota.Succeeded, epoch)
		s.report("r", "a3", ota.InProgress, epoch)
		held("b2")
		s.report("r", "b1", ota.Failed, epoch)
		s.report("r", "b2", ota.InProgress, epoch)
	}},
	{"of devices that start at once, as many as may", func(s *suite) {
		ids := make([]string, 12)
		for i := range ids {
			ids[i] = fmt.Sprintf("%c%02d", 'a'+i%2, i)
		}
		s.enrolled(ids...)
		s.bound("r", ota.Terms{InFlight: ota.InFlight{Max: 5, Per: "site", PerMax: 3}}, ids...)
		errs := together(len(ids), func(i int) error {
			_, err := s.StartNext(ctx, ids[i], ota.Starting{}, epoch)
			return err
		})
		s.equal("started", s.wins(errs, fleet.ErrNotFound), 5)
	}},
	{"the timers of steps end as the class they stand for", func(s *suite) {
		s.enrolled("a", "b", "c")
		s.bound("r", ota.Terms{Timers: ota.Timers{Claim: 10 * time.Minute, Fetch: 20 * time.Minute, Reboot: 5 * time.Minute}}, "a", "b", "c")
		s.equal("a claim runs", s.execution("r", "a").Expires, keptAt(10))
		_, err := s.StartNext(ctx, "b", ota.Starting{Details: step(ota.StepFetching)}, epoch)
		s.must(err)
		_, err = s.Report(ctx, ota.Report{RolloutID: "r", DeviceID: "c", Status: ota.InProgress, Details: step(ota.StepRebooting)}, at(6))
		s.must(err)
		ended, next := s.expire(at(10))
		s.equal("ended", ended, "r a")
		s.equal("next", next, keptAt(11))
		s.equal("a", s.execution("r", "a").Class, ota.ClassTimedOut)
		ended, _ = s.expire(at(11))
		s.equal("ended", ended, "r c")
		c := s.execution("r", "c")
		s.equal("c", c.Class, ota.ClassSilent)
		s.equal("its status", c.Status, ota.TimedOut)
		_, err = s.Report(ctx, ota.Report{RolloutID: "r", DeviceID: "b", Status: ota.InProgress, Details: step(ota.StepRebooting)}, at(19))
		s.must(err)
		_, next = s.expire(at(20))
		s.equal("a step takes the timer of the one before along", next, keptAt(24))
	}},
	{"executions are under the terms of their rollout as it stands", func(s *suite) {
		s.enrolled("a")
		terms := ota.Terms{
			Window: ota.Window{RRule: "FREQ=DAILY;BYHOUR=2", Duration: 3600}, Consent: &ota.Consent{MaxDefers: 2},
			OnPause: ota.PauseHoldBeforeInstall, Retry: ota.Retry{Attempts: 2}, Timers: ota.Timers{Fetch: time.Hour}, Quarantined: true,
		}
		r := s.bound("r", terms, "a")
		s.report("r", "a", ota.InProgress, epoch)
		check := func(hold bool) {
			s.Helper()
			next, err := s.NextExecution(ctx, "a")
			s.must(err)
			pending, err := s.Pending(ctx, "a", 1)
			s.must(err)
			for _, e := range []ota.Execution{next, pending[0], s.execution("r", "a"), s.executions(fleet.ExecutionFilter{})[0], s.report("r", "a", ota.InProgress, epoch)} {
				s.equal("terms", []any{e.Window, e.Consent, e.Retry, e.Timers, e.Quarantined, e.Hold}, []any{terms.Window, terms.Consent, terms.Retry, terms.Timers, true, hold})
			}
		}
		check(false)
		r.State = ota.RolloutPaused
		r = s.open(r, epoch)
		check(true)
		r.Terms.OnPause = ota.PauseLetFinish
		r = s.open(r, epoch)
		check(false)
		r.Pause = ota.PauseHoldBeforeInstall
		r = s.open(r, epoch)
		check(true)
		s.equal("the plan and the pause in force are kept apart", []any{r.Terms.OnPause, r.Pause}, []any{ota.PauseLetFinish, ota.PauseHoldBeforeInstall})
	}},
	{"a device may wait before it begins", func(s *suite) {
		s.enrolled("a", "b")
		s.bound("r", ota.Terms{Timers: ota.Timers{Claim: time.Hour}}, "a", "b")
		e, err := s.Report(ctx, ota.Report{RolloutID: "r", DeviceID: "a", Status: ota.Queued, Details: step(ota.StepWaiting)}, at(30))
		s.must(err)
		s.equal("stands", []any{e.Status, e.Step(), e.Expires}, []any{ota.Queued, ota.StepWaiting, keptAt(90)})
		s.equal("stored", s.execution("r", "a"), e)
		_, err = s.Report(ctx, ota.Report{RolloutID: "r", DeviceID: "b", Status: ota.Queued}, at(30))
		s.wantErr(err, ota.ErrTransition)
		ended, _ := s.expire(at(60))
		s.equal("ended", ended, "r b")
		s.report("r", "a", ota.InProgress, at(61))
	}},
	{"a claim does not run while the device could not start", func(s *suite) {
		s.enrolled("a", "b", "c")
		claim := ota.Terms{Timers: ota.Timers{Claim: 10 * time.Minute}, InFlight: ota.InFlight{Max: 1}}
		r := s.bound("r", claim, "a", "b")
		s.report("r", "a", ota.InProgress, epoch)
		ended, next := s.expire(at(10))
		s.equal("held back", ended, "")
		s.equal("it gets its time anew", next, keptAt(20))
		r.State = ota.RolloutPaused
		r = s.open(r, at(11))
		ended, next = s.expire(at(60))
		s.equal("paused", ended, "")
		s.equal("no timer", next.IsZero(), true)
		s.report("r", "a", ota.Succeeded, at(61))
		r.State = ota.RolloutRunning
		s.open(r, at(70))
		s.equal("anew after the pause", s.execution("r", "b").Expires, keptAt(80))
		ended, _ = s.expire(at(80))
		s.equal("ended", ended, "r b")
	}},
	{"what failed is due for another attempt", func(s *suite) {
		s.enrolled("a", "b", "c")
		r := s.bound("r", ota.Terms{Retry: ota.Retry{Attempts: 2, Backoff: 10 * time.Minute}, Timers: ota.Timers{Claim: time.Hour}}, "a", "b", "c")
		s.equal("a retry", s.report("r", "a", ota.Failed, epoch).RetryAt, keptAt(10))
		s.report("r", "b", ota.Failed, at(5))
		s.report("r", "c", ota.Rejected, epoch)
		progress := func(minute int) ota.Progress {
			p, err := s.Progress(ctx, r, at(minute))
			s.must(err)
			return p
		}
		p := progress(9)
		s.equal("retrying", []any{p.Stages[0].Retrying, p.Due, p.NextRetry}, []any{2, 0, keptAt(10)})
		p = progress(10)
		s.equal("one due", []any{p.Stages[0].Retrying, p.Due, p.NextRetry}, []any{2, 1, keptAt(15)})
		s.equal("those due", len(s.executions(fleet.ExecutionFilter{RolloutID: "r", RetryDue: at(10)})), 1)
		r = s.open(r, at(12), queued(0, 2, "a")...)
		second := s.execution("r", "a")
		s.equal("second", []any{second.Attempt, second.Status, second.Expires, second.RetryAt.IsZero()}, []any{2, ota.Queued, keptAt(72), true})
		p = progress(12)
		s.equal("one left", []any{p.Stages[0].Retrying, p.Stages[0].Queued, p.Due}, []any{1, 1, 0})
		s.equal("the last attempt", s.report("r", "a", ota.Failed, at(13)).RetryAt.IsZero(), true)
		s.must(s.RevokeDevice(ctx, "b", at(14)))
		p = progress(60)
		s.equal("a revoked device is not tried again", []any{p.Stages[0].Retrying, p.Due}, []any{0, 0})
		s.equal("one that timed out", s.claimOver("c2").RetryAt, keptAt(60+10))
	}},
	{"a newer rollout of the firmware ends the attempts of an older one", func(s *suite) {
		s.enrolled("a", "b")
		old := s.bound("r", ota.Terms{Retry: ota.Retry{Attempts: 3}}, "a", "b")
		s.report("r", "a", ota.Failed, epoch)
		s.report("r", "b", ota.Failed, epoch)
		newer := newRollout("s", 1)
		newer.CreatedAt = at(1)
		s.must(s.createRollout(newer))
		s.open(newer, at(1), queued(0, 1, "a")...)
		s.report("s", "a", ota.Succeeded, at(2))
		s.must(s.Advance(ctx, fleet.Advance{Rollout: old, Insert: queued(0, 2, "a", "b"), Now: at(3)}))
		a, b := s.execution("r", "a"), s.execution("r", "b")
		s.equal("not again", []any{a.Attempt, a.Class, a.RetryAt.IsZero()}, []any{1, ota.ClassFailed, true})
		s.equal("again", []any{b.Attempt, b.Status}, []any{2, ota.Queued})
	}},
	{"a repeated stage is due as a whole, but for what succeeded", func(s *suite) {
		s.enrolled("a", "b", "c", "d", "e")
		r := s.bound("r", ota.Terms{}, "a", "b", "c", "d")
		r = s.open(r, epoch, queued(1, 1, "e")...)
		s.report("r", "a", ota.Failed, epoch)
		s.report("r", "b", ota.Succeeded, epoch)
		s.must(s.RevokeDevice(ctx, "c", epoch))
		s.report("r", "e", ota.Failed, epoch)
		stage := 0
		s.must(s.Advance(ctx, fleet.Advance{Rollout: r, Repeat: &stage, Now: at(1)}))
		due := s.executions(fleet.ExecutionFilter{RolloutID: "r", RetryDue: at(1)})
		s.equal("due", len(due), 1)
		s.equal("device", due[0].DeviceID, "a")
	}},
	{"cancelling reaches what is not activated yet", func(s *suite) {
		s.enrolled("a", "b", "c", "d", "e")
		r := s.bound("r", ota.Terms{Timers: ota.Timers{Fetch: time.Hour}}, "a", "b", "c", "d", "e")
		for device, at := range map[string]ota.Step{"b": ota.StepFetching, "c": ota.StepStaged, "d": ota.StepRebooting, "e": ""} {
			_, err := s.StartNext(ctx, device, ota.Starting{Details: step(at)}, epoch)
			s.must(err)
		}
		r.State, r.Reason = ota.RolloutAborting, "why"
		r = s.open(r, at(1))
		s.equal("cancelled, those at work first", s.cancel(r, at(1), 2), []string{"b", "c"})
		s.equal("then", s.cancel(r, at(1), 9), []string{"a"})
		for device, want := range map[string]ota.Status{
			"a": ota.Canceled, "b": ota.Canceled, "c": ota.Canceled, "d": ota.InProgress, "e": ota.InProgress,
		} {
			e := s.execution("r", device)
			s.equal("status of "+device, e.Status, want)
			if want == ota.Canceled {
				s.equal("details", e.Details, map[string]string{ota.DetailReason: "why"})
				s.equal("timer", e.Expires.IsZero(), true)
				_, err := s.Report(ctx, ota.Report{RolloutID: "r", DeviceID: device, Status: ota.InProgress}, at(2))
				s.wantErr(err, ota.ErrTerminal)
			}
		}
	}},
	{"a newer rollout of the firmware supersedes what waits", func(s *suite) {
		s.enrolled("a", "b", "c")
		s.bound("old", ota.Terms{Timers: ota.Timers{Claim: time.Hour}}, "a", "b", "c")
		s.report("old", "b", ota.InProgress, epoch)
		high := newRollout("high", 1)
		high.Priority = 2
		s.must(s.createRollout(high))
		s.open(high, epoch, queued(0, 1, "a")...)
		foreign := newRollout("foreign", 1)
		foreign.Release.Name = "other"
		s.must(s.createRollout(foreign))
		s.open(foreign, epoch, queued(0, 1, "a")...)
		r := newRollout("new", 3)
		r.CreatedAt = kept.Add(time.Second)
		s.must(s.createRollout(r))
		r.Line = "l"
		s.must(s.PutCandidates(ctx, "new", "l", 0, []ota.Candidate{{DeviceID: "a"}, {DeviceID: "b"}, {DeviceID: "c"}}))
		s.must(s.Advance(ctx, fleet.Advance{Rollout: r, Open: &fleet.Opening{To: 2}, Now: at(1)}))
		for rollout, want := range map[string]ota.Status{"old": ota.Canceled, "high": ota.Queued, "foreign": ota.Queued} {
			s.equal("a in "+rollout, s.execution(rollout, "a").Status, want)
		}
		a := s.execution("old", "a")
		s.equal("reason", a.Reason(), "superseded by rollout new")
		s.equal("timer", a.Expires.IsZero(), true)
		s.equal("b works on it", s.execution("old", "b").Status, ota.InProgress)
		s.equal("c was not reached", s.execution("old", "c").Status, ota.Queued)

		// It lets them go: who made way is looked at, and gets another attempt.
		s.settled()
		r = s.rolled("new")
		r.State, r.Reason = ota.RolloutAborting, "bad"
		s.open(r, at(2))
		s.equal("cancelled", s.cancel(r, at(2), 10), []string{"a", "b"})
		s.equal("marked", s.marks(), []string{"a", "b"})
		to := s.execution("old", "a")
		to.RetryAt = keptAt(3)
		looks := []fleet.Look{}
		for _, m := range s.marked(10) {
			l := fleet.Look{DeviceID: m.ID, Mark: m.Mark}
			if m.ID == "a" {
				l.Changed = []fleet.Changed{{From: a, To: to}}
			}
			looks = append(looks, l)
		}
		s.must(s.Settle(ctx, looks, at(3)))
		old := s.rolled("old")
		p, err := s.Progress(ctx, old, at(3))
		s.must(err)
		s.equal("due", []any{p.Due, p.Stages[0].Retrying, s.marks()}, []any{1, 1, []string(nil)})
		again := ota.Follow(s.execution("old", "a"), ota.Path{})
		again.Status = ota.Queued
		s.open(old, at(4), again)
		made := s.execution("old", "a")
		s.equal("again", []any{made.Status, made.Attempt, made.Stage}, []any{ota.Queued, 2, a.Stage})
		old = s.rolled("old")
		old.State = ota.RolloutAborting // nobody older goes on
		s.open(old, at(5))
		old = s.rolled("old")
		s.equal("the others", len(s.cancel(old, at(5), 10)) > 0, true)
		s.equal("marked no more", s.marks(), []string(nil))
	}},
}

// cancel returns whose executions were cancelled, in order.
func (s *suite) cancel(r ota.Rollout, now time.Time, limit int) (devices []string) {
	s.Helper()
	before := s.cancelled(r)
	done, err := s.Cancel(ctx, r, now, limit)
	s.must(err)
	after := s.cancelled(r)
	for _, e := range done.Begun {
		s.equal("status", e.Status, ota.Canceled)
		s.equal("had begun", e.StartedAt.IsZero(), false)
		s.equal(e.DeviceID+" is among them", after[e.DeviceID].StartedAt, e.StartedAt)
	}
	begun := 0
	for device, e := range after {
		if _, ok := before[device]; ok {
			continue
		}
		if devices = append(devices, device); !e.StartedAt.IsZero() {
			begun++
		}
	}
	s.equal("begun and waiting", []int{len(done.Begun), done.Queued}, []int{begun, len(devices) - begun})
	slices.Sort(devices)
	return devices
}

// cancelled are the executions of a rollout that are, by device.
func (s *suite) cancelled(r ota.Rollout) map[string]ota.Execution {
	s.Helper()
	found := map[string]ota.Execution{}
	s.must(s.Executions(ctx, fleet.ExecutionFilter{RolloutID: r.ID, Latest: true}, func(e ota.Execution) bool {
		if e.Status == ota.Canceled {
			found[e.DeviceID] = e
		}
		return true
	}))
	return found
}

func (s *suite) parsed(expr string) selector.Selector {
	s.Helper()
	sel, err := selector.Parse(expr)
	s.must(err)
	return sel
}

// claimOver enrolls a device and lets its claim run out after an hour.
func (s *suite) claimOver(device string) ota.Execution {
	s.Helper()
	s.enrolled(device)
	s.bound("claim", ota.Terms{Retry: ota.Retry{Attempts: 2, Backoff: 10 * time.Minute}, Timers: ota.Timers{Claim: time.Hour}}, device)
	s.expire(at(60))
	return s.execution("claim", device)
}
