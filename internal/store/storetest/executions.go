package storetest

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// next returns the rollout of the device's next execution, "" for none.
func (s *suite) next(device string) string {
	s.Helper()
	e, err := s.NextExecution(ctx, device)
	if err != nil {
		s.wantErr(err, fleet.ErrNotFound)
		return ""
	}
	return e.RolloutID
}

var executionTests = []test{
	{"next is in progress first, then by priority, then by age", func(s *suite) {
		s.enrolled("d")
		s.equal("none yet", s.next("d"), "")
		s.equal("unknown device", s.next("nobody"), "")
		for i, id := range []string{"young", "old", "urgent"} {
			r := newRollout(id, 1)
			if id == "urgent" {
				r.Priority = 7
			}
			s.must(s.createRollout(r))
			s.open(r, epoch.Add(-time.Duration(i)*time.Second), queued(0, 1, "d")...)
		}
		s.report("young", "d", ota.InProgress, epoch)
		s.equal("in progress", s.next("d"), "young")
		s.report("young", "d", ota.Succeeded, epoch)
		s.equal("priority", s.next("d"), "urgent")
		s.report("urgent", "d", ota.Rejected, epoch)
		s.equal("what is left", s.next("d"), "old")
		s.report("old", "d", ota.Failed, epoch)
		s.equal("none left", s.next("d"), "")
	}},
	{"what is unfinished in a rollout, in order", func(s *suite) {
		devices := make([]string, 150) // more than a page or two
		for i := range devices {
			devices[i] = fmt.Sprintf("d%03d", i)
		}
		s.enrolled(devices...)
		s.open(s.rollout("other", 1), epoch, queued(0, 1, "d001")...)
		r := s.open(s.rollout("r", len(devices)), epoch, queued(0, 1, devices...)...)
		s.report("r", "d000", ota.Succeeded, epoch)
		s.report("r", "d063", ota.InProgress, epoch)
		s.report("r", "d064", ota.Failed, epoch)
		s.report("r", "d065", ota.Failed, epoch)
		s.open(r, epoch, queued(0, 2, "d065")...)
		s.must(s.RevokeDevice(ctx, "d149", epoch))
		var got []string
		s.must(s.Unfinished(ctx, "r", func(id string) bool { got = append(got, id); return true }))
		want := slices.DeleteFunc(slices.Clone(devices), func(id string) bool { return id == "d000" || id == "d064" || id == "d149" })
		s.equal("unfinished", got, want)
		got = nil
		s.must(s.Unfinished(ctx, "r", func(id string) bool { got = append(got, id); return len(got) < 2 }))
		s.equal("until it is enough", got, want[:2])
		s.must(s.Unfinished(ctx, "nobody's", func(id string) bool { s.Errorf("%s", id); return true }))
	}},
	{"what went back in a rollout, in order", func(s *suite) {
		devices := make([]string, 150) // more than a page or two
		for i := range devices {
			devices[i] = fmt.Sprintf("d%03d", i)
		}
		s.enrolled(devices...)
		goesBack := func(rollout, device string) {
			_, err := s.Report(ctx, ota.Report{RolloutID: rollout, DeviceID: device, Status: ota.Failed, Details: map[string]string{ota.DetailClass: string(ota.ClassRolledBack)}}, epoch)
			s.must(err)
		}
		s.open(s.rollout("other", 1), epoch, queued(0, 1, "d001")...)
		goesBack("other", "d001")
		r := s.open(s.rollout("r", len(devices)), epoch, queued(0, 1, devices...)...)
		var want []string
		for i, id := range devices {
			switch i % 50 {
			case 1:
				s.report("r", id, ota.Succeeded, epoch)
			case 2:
				s.report("r", id, ota.Failed, epoch)
			case 3:
			default:
				goesBack("r", id)
				want = append(want, id+" 1")
			}
		}
		s.open(r, epoch, queued(0, 2, devices[70])...) // what went back stays so
		goesBack("r", devices[70])
		want = append(want, devices[70]+" 2")
		var got []string
		all := func(e ota.Execution) bool { got = append(got, fmt.Sprint(e.DeviceID, " ", e.Attempt)); return true }
		s.must(s.WentBack(ctx, "r", all))
		s.equal("went back", got, want)
		got = nil
		s.must(s.WentBack(ctx, "r", func(e ota.Execution) bool { return all(e) && len(got) < 2 }))
		s.equal("until it is enough", got, want[:2])
		s.must(s.WentBack(ctx, "nobody's", func(e ota.Execution) bool { s.Errorf("%+v", e); return true }))
	}},
	{"what went back after the server had ended it", func(s *suite) {
		s.enrolled("a", "b", "c")
		s.timed("r", time.Hour, "a", "b", "c")
		r := s.rolled("r")
		for _, id := range []string{"a", "b", "c"} {
			s.report("r", id, ota.InProgress, epoch)
		}
		ended, _ := s.expire(epoch.Add(time.Hour))
		s.equal("ended", ended, "r a, r b, r c")
		s.open(r, epoch.Add(time.Hour), queued(0, 2, "b")...)
		progress := func() ota.Progress {
			p, err := s.Progress(ctx, s.rolled("r"), epoch.Add(2*time.Hour))
			s.must(err)
			return p
		}
		counted := progress()
		before := map[string]ota.Execution{"a": s.execution("r", "a"), "b": s.execution("r", "b"), "c": s.execution("r", "c")}
		back := func(device string, attempt int, want error) ota.Execution {
			s.Helper()
			e, err := s.Report(ctx, ota.Report{RolloutID: "r", DeviceID: device, Attempt: attempt, Status: ota.Failed, Details: map[string]string{ota.DetailClass: string(ota.ClassRolledBack)}}, at(90))
			s.wantErr(err, want)
			return e
		}
		s.equal("answered", back("a", 1, ota.ErrTerminal), s.execution("r", "a"))
		s.equal("answered with the newest", back("b", 1, ota.ErrVersionMismatch), before["b"])
		_, err := s.Report(ctx, ota.Report{RolloutID: "r", DeviceID: "c", Status: ota.Succeeded}, at(90))
		s.wantErr(err, ota.ErrTerminal)
		back("a", 1, ota.ErrTerminal)
		var got []string
		s.must(s.WentBack(ctx, "r", func(e ota.Execution) bool {
			got = append(got, fmt.Sprint(e.DeviceID, " ", e.Attempt))
			s.equal("since", e.WentBackAt, keptAt(90))
			return true
		}))
		s.equal("went back", got, []string{"a 1", "b 1"})
		s.equal("counted as before", progress(), counted)
		for id, e := range before {
			now := s.execution("r", id)
			if now.WentBackAt = e.WentBackAt; id != "a" {
				s.equal(id, s.execution("r", id), e)
			}
			s.equal(id, now, e)
		}
		// Who looks at the device sees it on an older attempt too.
		s.runs("b", "x", at(91))
		for _, m := range s.marked(10) {
			if m.ID == "b" && (len(m.Executions) != 2 || !m.Executions[0].WentBack()) {
				s.Errorf("marked: %+v", m.Executions)
			}
		}
		s.equal("marks", s.marks(), []string{"b"})
	}},
	{"the oldest of one priority is next", func(s *suite) {
		s.enrolled("d")
		s.open(s.rollout("a", 1), epoch.Add(time.Second), queued(0, 1, "d")...)
		s.open(s.rollout("b", 1), epoch, queued(0, 1, "d")...)
		s.equal("next", s.next("d"), "b")
	}},
	{"queued ones of a rollout that does not run are held back", func(s *suite) {
		s.enrolled("d", "e")
		r := s.open(s.rollout("r", 2), epoch, queued(0, 1, "d", "e")...)
		low := newRollout("low", 1)
		low.Priority = 0
		s.must(s.createRollout(low))
		s.open(low, epoch, queued(0, 1, "d")...)
		s.report("r", "e", ota.InProgress, epoch)
		for _, state := range []ota.RolloutState{ota.RolloutPaused, ota.RolloutAborting} {
			r = s.set(r, state)
			s.equal("next", s.next("d"), "low")
			s.equal("in flight", s.next("e"), "r")
			e, err := s.Report(ctx, ota.Report{RolloutID: "r", DeviceID: "d", Status: ota.InProgress}, epoch)
			s.wantErr(err, ota.ErrTransition)
			s.equal("as it stands", e, s.execution("r", "d"))
			s.equal("status", e.Status, ota.Queued)
			s.report("r", "e", ota.InProgress, epoch)
		}
		s.set(r, ota.RolloutRunning)
		s.equal("next", s.next("d"), "r")
	}},
	{"pending are what is next, one after the other", func(s *suite) {
		s.enrolled("d", "e")
		list := func(device string, limit int) (out []string) {
			s.Helper()
			all, err := s.Pending(ctx, device, limit)
			s.must(err)
			for _, e := range all {
				s.equal("device", e.DeviceID, device)
				out = append(out, e.RolloutID)
			}
			if len(out) > 0 {
				s.equal("the first is next", s.next(device), out[0])
			}
			return out
		}
		s.equal("none yet", list("d", 10), []string(nil))
		s.equal("unknown device", list("nobody", 10), []string(nil))
		for i, id := range []string{"third", "second", "first", "begun"} {
			r := newRollout(id, 2)
			if id == "first" {
				r.Priority = 7
			}
			s.must(s.createRollout(r))
			s.open(r, epoch.Add(-time.Duration(i)*time.Second), queued(0, 1, "d", "e")...)
		}
		s.report("begun", "d", ota.InProgress, epoch)
		s.equal("all", list("d", 10), []string{"begun", "first", "second", "third"})
		s.equal("some", list("d", 2), []string{"begun", "first"})
		r, err := s.Rollout(ctx, "first")
		s.must(err)
		s.set(r, ota.RolloutPaused)
		s.equal("held back", list("d", 10), []string{"begun", "second", "third"})
		s.report("begun", "d", ota.Failed, epoch)
		s.report("third", "d", ota.Succeeded, epoch)
		s.equal("finished", list("d", 10), []string{"second"})
		s.equal("another device's", list("e", 10), []string{"begun", "second", "third"})
	}},
	{"start-next starts once, and is harmless again", func(s *suite) {
		s.enrolled("d")
		_, err := s.StartNext(ctx, "d", ota.Starting{}, epoch)
		s.wantErr(err, fleet.ErrNotFound)
		_, err = s.StartNext(ctx, "nobody", ota.Starting{}, epoch)
		s.wantErr(err, fleet.ErrNotFound)
		s.open(s.rollout("r", 1), epoch, queued(0, 1, "d")...)
		details := map[string]string{ota.DetailStep: "fetching"}
		first, err := s.StartNext(ctx, "d", ota.Starting{Details: details}, epoch.Add(time.Second))
		s.must(err)
		details[ota.DetailStep] = "changed by the caller"
		want := ota.Execution{
			RolloutID: "r", DeviceID: "d", Release: ota.ReleaseID{Name: "app", Version: "1"}, Attempt: 1, Leg: 1, Status: ota.InProgress,
			Details: map[string]string{ota.DetailStep: "fetching"}, Version: 2,
			QueuedAt: kept, StartedAt: kept.Add(time.Second), StepAt: kept.Add(time.Second), UpdatedAt: kept.Add(time.Second),
		}
		s.equal("started", first, want)
		again, err := s.StartNext(ctx, "d", ota.Starting{Details: map[string]string{ota.DetailStep: "other"}}, epoch.Add(time.Hour))
		s.must(err)
		s.equal("again", again, want)
		s.equal("stored", s.execution("r", "d"), want)
	}},
	{"start-next with details out of range changes nothing", func(s *suite) {
		s.enrolled("d")
		s.open(s.rollout("r", 1), epoch, queued(0, 1, "d")...)
		_, err := s.StartNext(ctx, "d", ota.Starting{Details: map[string]string{"no spaces": ""}}, epoch)
		s.wantErr(err, ota.ErrInvalid)
		s.equal("status", s.execution("r", "d").Status, ota.Queued)
	}},
	{"a device starts one thing at a time", func(s *suite) {
		s.enrolled("d")
		const n = 8
		for i := range n {
			s.open(s.rollout(fmt.Sprintf("r%d", i), 1), epoch, queued(0, 1, "d")...)
		}
		errs := together(n, func(i int) error {
			_, err := s.Report(ctx, ota.Report{RolloutID: fmt.Sprintf("r%d", i), DeviceID: "d", Status: ota.InProgress}, epoch)
			return err
		})
		s.equal("started", s.wins(errs, ota.ErrTransition), 1)
		busy := s.next("d")
		started := make([]string, n)
		errs = together(n, func(i int) error {
			e, err := s.StartNext(ctx, "d", ota.Starting{}, epoch)
			started[i] = e.RolloutID
			return err
		})
		s.equal("answers", s.wins(errs, nil), n)
		for _, r := range started {
			s.equal("start-next", r, busy)
		}
	}},
	{"of reports that expect one version, one wins", func(s *suite) {
		s.enrolled("d")
		s.open(s.rollout("r", 1), epoch, queued(0, 1, "d")...)
		errs := together(10, func(i int) error {
			_, err := s.Report(ctx, ota.Report{RolloutID: "r", DeviceID: "d", Status: ota.InProgress, ExpectedVersion: 1}, epoch)
			return err
		})
		s.equal("winners", s.wins(errs, ota.ErrVersionMismatch), 1)
		s.equal("version", s.execution("r", "d").Version, int64(2))
	}},
	{"a failed report returns the execution as it stands", func(s *suite) {
		s.enrolled("d")
		s.open(s.rollout("r", 1), epoch, queued(0, 1, "d")...)
		stands := s.report("r", "d", ota.InProgress, epoch)
		for _, c := range []struct {
			report ota.Report
			want   error
		}{
			{ota.Report{Status: ota.Succeeded, ExpectedVersion: 7}, ota.ErrVersionMismatch},
			{ota.Report{Status: ota.Succeeded, Attempt: 2}, ota.ErrVersionMismatch},
			{ota.Report{Status: ota.Queued}, ota.ErrTransition},
			{ota.Report{Status: ota.Succeeded, Details: map[string]string{"": ""}}, ota.ErrInvalid},
		} {
			c.report.RolloutID, c.report.DeviceID = "r", "d"
			e, err := s.Report(ctx, c.report, epoch.Add(time.Hour))
			s.wantErr(err, c.want)
			s.equal("returned", e, stands)
		}
		s.equal("stored", s.execution("r", "d"), stands)
		_, err := s.Report(ctx, ota.Report{RolloutID: "r", DeviceID: "nobody", Status: ota.Succeeded}, epoch)
		s.wantErr(err, fleet.ErrNotFound)
	}},
	{"a finished execution never reopens", func(s *suite) {
		s.enrolled("d")
		r := s.open(s.rollout("r", 1), epoch, queued(0, 1, "d")...)
		done := s.report("r", "d", ota.Failed, epoch)
		s.equal("class", done.Class, ota.ClassFailed)
		for _, status := range ota.Statuses {
			e, err := s.Report(ctx, ota.Report{RolloutID: "r", DeviceID: "d", Status: status}, epoch)
			s.wantErr(err, ota.ErrTerminal)
			s.equal("returned", e, done)
		}
		s.equal("cancelled", s.cancel(r, epoch, 9), []string(nil))
		s.equal("stored", s.execution("r", "d"), done)
	}},
	{"a report is about the newest attempt", func(s *suite) {
		s.enrolled("d")
		r := s.open(s.rollout("r", 1), epoch, queued(0, 1, "d")...)
		s.report("r", "d", ota.Failed, epoch)
		s.open(r, epoch, queued(0, 2, "d")...)
		s.equal("newest", s.execution("r", "d").Attempt, 2)
		_, err := s.Report(ctx, ota.Report{RolloutID: "r", DeviceID: "d", Status: ota.Succeeded, Attempt: 1}, epoch)
		s.wantErr(err, ota.ErrVersionMismatch)
		s.equal("second", s.report("r", "d", ota.Succeeded, epoch).Attempt, 2)
		first := s.executions(fleet.ExecutionFilter{DeviceID: "d"})[0]
		s.equal("first", first.Status, ota.Failed)
	}},
	{"details are replaced, or kept when there are none", func(s *suite) {
		s.enrolled("d")
		s.open(s.rollout("r", 1), epoch, queued(0, 1, "d")...)
		e, err := s.Report(ctx, ota.Report{RolloutID: "r", DeviceID: "d", Status: ota.InProgress, Details: map[string]string{"step": "a", "bytes": "1"}}, epoch)
		s.must(err)
		s.equal("set", e.Details, map[string]string{"step": "a", "bytes": "1"})
		s.equal("kept", s.report("r", "d", ota.InProgress, epoch).Details, e.Details)
		e, err = s.Report(ctx, ota.Report{RolloutID: "r", DeviceID: "d", Status: ota.InProgress, Details: map[string]string{"step": "b"}}, epoch)
		s.must(err)
		s.equal("replaced", e, s.execution("r", "d"))
		s.equal("replaced", e.Details, map[string]string{"step": "b"})
	}},
	{"that are at their step longest come first", func(s *suite) {
		s.enrolled("a", "b", "c", "d", "e")
		s.open(s.rollout("r", 5), epoch, queued(0, 1, "a", "b", "c", "d", "e")...)
		for i, id := range []string{"d", "c", "b", "a"} {
			s.report("r", id, ota.InProgress, at(i/2))
		}
		_, err := s.Report(ctx, ota.Report{RolloutID: "r", DeviceID: "d", Status: ota.InProgress, Details: step(ota.StepRebooting)}, at(5))
		s.must(err)
		s.report("r", "c", ota.InProgress, at(6)) // a sign of life, at the same step
		s.report("r", "b", ota.Succeeded, at(7))
		list, err := s.AtWork(ctx, "r", 9)
		s.must(err)
		s.equal("all", names(list), []string{"r c 1", "r a 1", "r d 1"})
		s.equal("whole", list[2], s.execution("r", "d"))
		list, err = s.AtWork(ctx, "r", 1)
		s.must(err)
		s.equal("the first", names(list), []string{"r c 1"})
		list, err = s.AtWork(ctx, "nobody", 9)
		s.must(err)
		s.equal("none", len(list), 0)
	}},
	{"that failed last come first", func(s *suite) {
		s.enrolled("a", "b", "c", "d", "e")
		r := s.open(s.rollout("r", 5), epoch, queued(0, 1, "a", "b", "c", "d", "e")...)
		s.open(s.rollout("q", 5), epoch, queued(0, 1, "a")...)
		s.report("r", "c", ota.Failed, epoch)
		s.report("r", "b", ota.Rejected, epoch.Add(time.Second))
		s.report("r", "a", ota.Failed, epoch.Add(time.Second))
		s.report("r", "d", ota.Succeeded, epoch.Add(2*time.Second))
		s.open(r, epoch.Add(3*time.Second), queued(0, 2, "c")...)
		s.report("r", "c", ota.Failed, epoch.Add(4*time.Second))
		list, err := s.Failures(ctx, "r", 10)
		s.must(err)
		s.equal("all", names(list), []string{"r c 2", "r a 1", "r b 1", "r c 1"})
		s.equal("whole", list[0], s.execution("r", "c"))
		list, err = s.Failures(ctx, "r", 2)
		s.must(err)
		s.equal("the last two", names(list), []string{"r c 2", "r a 1"})
	}},
	{"are listed in order, narrowed by the filter", func(s *suite) {
		s.enrolled("a", "b")
		r := s.open(s.rollout("r", 2), epoch, queued(0, 1, "b", "a")...)
		s.open(s.rollout("q", 2), epoch, queued(1, 1, "b")...)
		s.report("r", "a", ota.Failed, epoch)
		s.open(r, epoch, queued(1, 2, "a")...)
		one := 1
		for _, c := range []struct {
			filter fleet.ExecutionFilter
			want   []string
		}{
			{fleet.ExecutionFilter{}, []string{"q b 1", "r a 1", "r a 2", "r b 1"}},
			{fleet.ExecutionFilter{RolloutID: "r"}, []string{"r a 1", "r a 2", "r b 1"}},
			{fleet.ExecutionFilter{DeviceID: "b"}, []string{"q b 1", "r b 1"}},
			{fleet.ExecutionFilter{Stage: &one}, []string{"q b 1", "r a 2"}},
			{fleet.ExecutionFilter{Active: true}, []string{"q b 1", "r a 2", "r b 1"}},
			{fleet.ExecutionFilter{Latest: true, RolloutID: "r"}, []string{"r a 2", "r b 1"}},
			{fleet.ExecutionFilter{RolloutID: "nobody"}, nil},
			{fleet.ExecutionFilter{After: fleet.ExecutionKey{RolloutID: "q", DeviceID: "b"}}, []string{"q b 1", "r a 1", "r a 2", "r b 1"}},
			{fleet.ExecutionFilter{After: fleet.ExecutionKey{RolloutID: "q", DeviceID: "b", Attempt: 1}}, []string{"r a 1", "r a 2", "r b 1"}},
			{fleet.ExecutionFilter{After: fleet.ExecutionKey{RolloutID: "r", DeviceID: "a", Attempt: 1}, DeviceID: "a"}, []string{"r a 2"}},
			{fleet.ExecutionFilter{After: fleet.ExecutionKey{RolloutID: "r", DeviceID: "a", Attempt: 2}, RolloutID: "q"}, nil},
		} {
			s.equal(fmt.Sprintf("%+v", c.filter), names(s.executions(c.filter)), c.want)
		}
		n := 0
		s.must(s.Executions(ctx, fleet.ExecutionFilter{}, func(ota.Execution) bool { n++; return n < 2 }))
		s.equal("stopped", n, 2)
		_, err := s.Execution(ctx, "r", "nobody")
		s.wantErr(err, fleet.ErrNotFound)
	}},
}

// cancelledTests hold every method against "a cancelled context changes
// nothing".
var cancelledTests = []test{
	{"a cancelled context changes nothing", func(s *suite) {
		s.enrolled("d")
		s.update("d", "", "k", "v")
		r := s.open(s.rollout("r", 1), epoch, queued(0, 1, "d")...)
		before := snapshot(s)
		gone, cancel := context.WithCancel(ctx)
		cancel()
		calls := map[string]func() error{
			"Enroll":       func() error { _, err := s.Enroll(gone, fleet.Device{ID: "e"}, secret(1), epoch); return err },
			"Device":       func() error { _, err := s.Device(gone, "d"); return err },
			"Devices":      func() error { return s.Devices(gone, "", func(fleet.DeviceView) bool { return true }) },
			"ChangeTags":   func() error { return s.ChangeTags(gone, "d", map[string]string{"k": "v"}, nil) },
			"RevokeDevice": func() error { return s.RevokeDevice(gone, "d", epoch) },
			"SeenDevices":  func() error { return s.SeenDevices(gone, map[string]time.Time{"d": epoch}) },
			"CreateDevice": func() error { return s.CreateDevice(gone, fleet.Device{ID: "e"}) },
			"SaveConnections": func() error {
				return s.SaveConnections(gone, map[string]fleet.Connection{"d": {Since: epoch, Began: epoch}})
			},
			"EndConnections":   func() error { return s.EndConnections(gone, "x", epoch) },
			"Beat":             func() error { return s.Beat(gone, "r", epoch) },
			"PutCredential":    func() error { return s.PutCredential(gone, key("d", "x")) },
			"DeleteCredential": func() error { return s.DeleteCredential(gone, "d", "x", epoch) },
			"CreateIssuer":     func() error { return s.CreateIssuer(gone, fleet.Issuer{Name: "x"}) },
			"DeleteIssuer":     func() error { return s.DeleteIssuer(gone, "x") },
			"Provision": func() error {
				_, err := s.Provision(gone, fleet.Device{ID: "e"}, bound("c"), "for d", epoch)
				return err
			},
			"ProvisionedDevice": func() error { _, err := s.ProvisionedDevice(gone, "c"); return err },
			"EnrollmentToken":   func() error { _, err := s.EnrollmentToken(gone, "for d"); return err },
			"AppendEvents":      func() error { _, err := s.AppendEvents(gone, "d", "a", numbered(1, 1), epoch); return err },
			"Events":            func() error { _, err := s.Events(gone, "d", 0, 1); return err },
			"CreateEnrollmentToken": func() error {
				return s.CreateEnrollmentToken(gone, fleet.EnrollmentToken{ID: "x", SecretHash: secret(9)})
			},
			"RevokeEnrollmentToken": func() error { return s.RevokeEnrollmentToken(gone, "for d", epoch) },
			"CreateAPIToken":        func() error { return s.CreateAPIToken(gone, fleet.APIToken{ID: "x"}) },
			"FillGroup":             func() error { _, err := s.FillGroup(gone, "g"); return err },
			"CreateGroup":           func() error { return s.CreateGroup(gone, fleet.Group{Name: "g", CreatedAt: epoch}, []string{"d"}) },
			"IndexFields":           func() error { return s.IndexFields(gone, indexed) },
			"UpdateShadow":          func() error { _, err := s.UpdateShadow(gone, "d", "", reported("k", "w"), epoch); return err },
			"DeleteShadow":          func() error { _, err := s.DeleteShadow(gone, "d", "", epoch); return err },
			"CreateRelease":         func() error { _, err := s.CreateRelease(gone, release("x", "1")); return err },
			"PublishMetadata": func() error {
				return s.PublishMetadata(gone, []fleet.Metadata{{Role: fleet.RoleRoot, Version: 1, Bytes: []byte("r")}}, nil, epoch)
			},
			"CreateRollout": func() error { return s.CreateRollout(gone, newRollout("x", 1)) },
			"Advance":       func() error { return s.Advance(gone, fleet.Advance{Rollout: r, Now: epoch}) },
			"Cancel":        func() error { _, err := s.Cancel(gone, r, epoch, 9); return err },
			"StartNext":     func() error { _, err := s.StartNext(gone, "d", ota.Starting{}, epoch); return err },
			"Expire":        func() error { _, _, err := s.Expire(gone, epoch.Add(1000*time.Hour)); return err },
			"Report": func() error {
				_, err := s.Report(gone, ota.Report{RolloutID: "r", DeviceID: "d", Status: ota.Succeeded}, epoch)
				return err
			},
		}
		for name, call := range calls {
			if err := call(); err == nil {
				s.Errorf("%s: no error", name)
			} else {
				s.wantErr(err, context.Canceled)
			}
		}
		s.equal("everything", snapshot(s), before)
	}},
	{"a call cancelled at any moment has happened or not, as it says", func(s *suite) {
		s.enrolled("d")
		accepted := make([]bool, 100)
		errs := together(len(accepted), func(i int) error {
			c, cancel := context.WithCancel(ctx)
			if i%2 == 1 {
				go cancel()
			} else {
				defer cancel()
			}
			_, err := s.UpdateShadow(c, "d", "", reported(fmt.Sprintf("k%d", i), "v"), epoch)
			accepted[i] = err == nil
			return err
		})
		n := s.wins(errs, context.Canceled)
		doc, err := s.Shadow(ctx, "d", "")
		s.must(err)
		s.equal("version", doc.Version, int64(n))
		for i, ok := range accepted {
			_, stored := doc.Reported.Get(fmt.Sprintf("k%d", i))
			s.equal(fmt.Sprintf("update %d stored", i), stored, ok)
		}
	}},
}
