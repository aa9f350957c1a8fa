package storetest

import (
	"fmt"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// command is a rollout of a command that the given devices have.
func (s *suite) command(id string, c ota.Command, devices ...string) ota.Rollout {
	s.Helper()
	r := newRollout(id, len(devices))
	r.Release, r.Command = ota.ReleaseID{}, &c
	s.must(s.CreateRollout(ctx, r))
	return s.open(r, epoch, queued(0, 1, devices...)...)
}

// opening gives turns of the rollout's line an execution.
func (s *suite) opening(r ota.Rollout, from, to int) ota.Rollout {
	s.Helper()
	s.must(s.Advance(ctx, fleet.Advance{Rollout: r, Open: &fleet.Opening{From: from, To: to}, Now: epoch}))
	r, err := s.Rollout(ctx, r.ID)
	s.must(err)
	return r
}

var commandTests = []test{
	{"a rollout of a command is kept with it, and has no release", func(s *suite) {
		s.enrolled("a")
		c := ota.Command{Name: "set", Parameters: map[string]string{"k": "v \x00 \u2028"}, TimeoutSeconds: 7, MaxOutputBytes: 9}
		r := s.command("r", c, "a")
		s.equal("command", r.Command, &c)
		s.equal("release", r.Release, ota.ReleaseID{})
		e := s.execution("r", "a")
		s.equal("of the execution", e.Command, &c)
		s.equal("release of the execution", e.Release, ota.ReleaseID{})
		r.Command, r.Release = nil, ota.ReleaseID{Name: "app", Version: "1"}
		r = s.open(r, epoch) // neither can be changed
		s.equal("command", r.Command, &c)
		s.equal("release", r.Release, ota.ReleaseID{})
	}},
	{"a command comes before an install, whatever their priorities and ages", func(s *suite) {
		s.enrolled("a")
		install := newRollout("install", 1)
		install.Priority = 9
		s.must(s.createRollout(install))
		s.open(install, epoch, queued(0, 1, "a")...)
		s.command("later", ota.Command{Name: "x"}, "a")
		first := newRollout("first", 1)
		first.Release, first.Command, first.Priority = ota.ReleaseID{}, &ota.Command{Name: "y"}, 5
		s.must(s.CreateRollout(ctx, first))
		s.open(first, epoch.Add(time.Hour), queued(0, 1, "a")...)
		list, err := s.Pending(ctx, "a", 10)
		s.must(err)
		s.equal("pending", names(list), []string{"first a 1", "later a 1", "install a 1"})
		e, err := s.StartNext(ctx, "a", ota.Starting{}, epoch)
		s.must(err)
		s.equal("started", e.RolloutID, "first")
		s.report("first", "a", ota.Succeeded, epoch)
		s.report("install", "a", ota.InProgress, epoch)
		e, err = s.NextExecution(ctx, "a")
		s.must(err)
		s.equal("what is in progress comes first", e.RolloutID, "install")
	}},
	{"a command goes past an install that waits for its window", func(s *suite) {
		s.enrolled("a")
		s.open(s.rollout("install", 1), epoch, queued(0, 1, "a")...)
		_, err := s.Report(ctx, ota.Report{RolloutID: "install", DeviceID: "a", Status: ota.Queued, Details: step(ota.StepWaiting)}, epoch)
		s.must(err)
		s.command("c", ota.Command{Name: "x"}, "a")
		e, err := s.StartNext(ctx, "a", ota.Starting{}, epoch)
		s.must(err)
		s.equal("started", e.RolloutID, "c")
		s.report("c", "a", ota.Failed, epoch)
		e, err = s.NextExecution(ctx, "a")
		s.must(err)
		s.equal("then", e.RolloutID, "install")
	}},
	{"commands and installs do not supersede each other", func(s *suite) {
		s.enrolled("a", "b")
		install := newRollout("install", 2)
		install.Line = "l"
		s.must(s.createRollout(install))
		s.must(s.PutCandidates(ctx, "install", "l", 0, []ota.Candidate{{DeviceID: "a"}, {DeviceID: "b"}}))
		install = s.opening(install, 0, 1)
		for _, id := range []string{"c1", "c2"} {
			r := newRollout(id, 2)
			r.Release, r.Command, r.CreatedAt, r.Priority, r.Line = ota.ReleaseID{}, &ota.Command{Name: "x"}, kept.Add(time.Hour), 9, "l"
			s.must(s.CreateRollout(ctx, r))
			s.must(s.PutCandidates(ctx, id, "l", 0, []ota.Candidate{{DeviceID: "a"}, {DeviceID: "b"}}))
			s.opening(r, 0, 2)
		}
		s.opening(install, 1, 2) // though a newer rollout has work for b
		for _, device := range []string{"a", "b"} {
			list, err := s.Pending(ctx, device, 10)
			s.must(err)
			s.equal("pending", names(list), []string{"c1 " + device + " 1", "c2 " + device + " 1", "install " + device + " 1"})
		}
	}},
}

// brought is an upload of attempt 1.
func brought(rollout, device string, bytes int64, at time.Time) fleet.Upload {
	return fleet.Upload{RolloutID: rollout, DeviceID: device, Attempt: 1, Bytes: bytes, At: at}
}

func (s *suite) uploads(f fleet.UploadFilter, limit int) (list []string) {
	s.Helper()
	all, err := s.Uploads(ctx, f, limit)
	s.must(err)
	for _, u := range all {
		list = append(list, fmt.Sprintf("%s %s %d: %d at %s", u.RolloutID, u.DeviceID, u.Attempt, u.Bytes, u.At.Format("04:05")))
	}
	return list
}

var uploadTests = []test{
	{"are listed once they are whole, and replaced", func(s *suite) {
		s.enrolled("a", "b")
		for _, r := range []string{"q", "r"} {
			s.command(r, ota.Command{Name: ota.CommandCollectLogs}, "a", "b")
		}
		s.wantErr(s.PutUpload(ctx, brought("r", "nobody", 1, epoch)), fleet.ErrNotFound)
		second := brought("r", "a", 1, epoch)
		second.Attempt = 2
		s.wantErr(s.PutUpload(ctx, second), fleet.ErrNotFound)
		s.must(s.PutUpload(ctx, brought("r", "a", fleet.UploadBegun, epoch)))
		s.equal("begun", s.uploads(fleet.UploadFilter{}, 10), []string(nil))
		s.must(s.PutUpload(ctx, brought("r", "a", 5, epoch)))
		s.must(s.PutUpload(ctx, brought("r", "a", 6, epoch.Add(time.Second))))
		s.must(s.PutUpload(ctx, brought("r", "b", 0, epoch)))
		s.must(s.PutUpload(ctx, brought("q", "b", 8, epoch)))
		s.equal("all", s.uploads(fleet.UploadFilter{}, 10), []string{"q b 1: 8 at 02:01", "r a 1: 6 at 02:02", "r b 1: 0 at 02:01"})
		s.equal("of a device", s.uploads(fleet.UploadFilter{DeviceID: "b"}, 10), []string{"q b 1: 8 at 02:01", "r b 1: 0 at 02:01"})
		s.equal("of a rollout", s.uploads(fleet.UploadFilter{RolloutID: "r"}, 1), []string{"r a 1: 6 at 02:02"})
		s.equal("after", s.uploads(fleet.UploadFilter{RolloutID: "r", After: brought("r", "a", 0, epoch)}, 10), []string{"r b 1: 0 at 02:01"})
	}},
	{"go by age and by number, begun ones too", func(s *suite) {
		s.enrolled("a", "b")
		for i := range 4 {
			r := fmt.Sprint("r", i)
			s.command(r, ota.Command{Name: ota.CommandCollectLogs}, "a", "b")
			s.must(s.PutUpload(ctx, brought(r, "a", int64(i), at(i))))
		}
		s.must(s.PutUpload(ctx, brought("r0", "b", fleet.UploadBegun, at(-1))))
		old := func(before time.Time, kept, limit int) (list []string) {
			all, err := s.OldUploads(ctx, before, kept, limit)
			s.must(err)
			for _, u := range all {
				list = append(list, u.RolloutID+" "+u.DeviceID)
			}
			return list
		}
		s.equal("none", old(at(-2), 4, 10), []string(nil))
		s.equal("by age", old(at(1), 4, 10), []string{"r0 b", "r0 a", "r1 a"})
		s.equal("by number", old(at(-2), 1, 10), []string{"r0 a", "r1 a", "r2 a"})
		s.equal("some", old(at(-2), 1, 2), []string{"r0 a", "r1 a"})
		s.must(s.DropUpload(ctx, brought("r0", "a", 0, at(0))))
		s.must(s.DropUpload(ctx, brought("r1", "a", 1, at(0)))) // it is another one by now
		s.equal("left", old(at(-2), 1, 10), []string{"r1 a", "r2 a"})
	}},
}
