package storetest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// forgets deletes a device at a time.
func (s *suite) forgets(id string, now time.Time) {
	s.Helper()
	s.must(s.DeleteDevice(ctx, fleet.Deletion{DeviceID: id}, now))
}

var forgetTests = []test{
	{"what a deleted device still says of its execution is answered with how that ended", func(s *suite) {
		s.enrolled("a")
		s.open(s.rollout("r", 1), epoch, queued(0, 1, "a")...)
		s.forgets("a", at(1))
		removed := s.execution("r", "a")
		for _, status := range []ota.Status{ota.InProgress, ota.Succeeded} {
			e, err := s.Report(ctx, ota.Report{RolloutID: "r", DeviceID: "a", Status: status}, at(2))
			s.wantErr(err, ota.ErrTerminal)
			s.equal(string(status), e, removed)
		}
	}},
	{"a deleted device leaves nothing behind, and can come anew", func(s *suite) {
		s.enrolled("d", "e")
		s.group("dynamic", `hardware = "board-a"`)
		s.must(s.CreateGroup(ctx, fleet.Group{Name: "static", CreatedAt: epoch}, []string{"d", "e"}))
		s.must(s.ChangeTags(ctx, "d", map[string]string{"site": "x"}, nil))
		s.update("d", "", "a", "1")
		s.update("d", "named", "a", "1")
		s.update("e", "", "a", "1")
		s.must(s.PutCredential(ctx, fleet.Credential{ID: "c", DeviceID: "d", Kind: fleet.CredentialPassword, Secret: "s", CreatedAt: epoch}))
		_, err := s.AppendEvents(ctx, "d", "log", []fleet.Event{{Seq: 1, Kind: "k", Data: "{}"}}, epoch)
		s.must(err)
		s.must(s.SeenDevices(ctx, map[string]time.Time{"d": at(1)}))
		s.must(s.SaveConnections(ctx, map[string]fleet.Connection{"d": {Connected: true, Since: epoch, Began: epoch, Replica: "r"}}))
		s.runs("d", strings.Repeat("ab", 32), epoch)

		s.forgets("d", at(2))
		_, err = s.Device(ctx, "d")
		s.wantErr(err, fleet.ErrNotFound)
		s.equal("devices", s.devices(""), []string{"e"})
		_, err = s.Shadow(ctx, "d", "named")
		s.wantErr(err, fleet.ErrNotFound)
		s.equal("dynamic", s.members("dynamic"), []string{"e"})
		s.equal("static", s.members("static"), []string{"e"})
		s.equal("credentials", len(s.credentials("d")), 0)
		s.equal("evictions", s.evictions(at(2)), []string{"d deleted 2m0s"})
		s.equal("marks", s.marks(), []string{})
		s.wantErr(s.DeleteDevice(ctx, fleet.Deletion{DeviceID: "d"}, at(3)), fleet.ErrNotFound)

		s.enrolled("d")
		d, err := s.Device(ctx, "d")
		s.must(err)
		s.equal("anew", d, fleet.Device{ID: "d", Hardware: "board-a", KeyFingerprint: "key of d", CreatedAt: kept})
		s.equal("its version", s.update("d", "", "a", "1").Document.Version, int64(1))
		events, err := s.Events(ctx, "d", 0, 9)
		s.must(err)
		s.equal("events", len(events), 0)
		s.equal("dynamic then", s.members("dynamic"), []string{"d", "e"})
		s.equal("static then", s.members("static"), []string{"e"})
	}},
	{"a deleted device's certificates stay refused until they end, and its key too", func(s *suite) {
		s.enrolled("d", "e")
		s.token(fleet.EnrollmentToken{ID: "t", SecretHash: secret(1), Uses: 9})
		s.must(s.PutCertificate(ctx, certificate("d", 10, at(60)), epoch))
		s.must(s.PutCertificate(ctx, certificate("d", 11, at(120)), epoch))
		s.must(s.PutCertificate(ctx, certificate("e", 12, at(60)), epoch))
		_, err := s.Provision(ctx, fleet.Device{ID: "d", KeyFingerprint: "key of d"}, bound("J"), "t", epoch)
		s.must(err)
		s.forgets("d", at(1))
		s.equal("revoked", s.revoked(at(2)), []string{"d 4a", "d a", "d b"})
		s.equal("later", s.revoked(at(60)), []string{"d 4a", "d b"})
		_, err = s.ProvisionedDevice(ctx, "J")
		s.wantErr(err, fleet.ErrNotFound)
		s.wantErr(s.PutCertificate(ctx, certificate("d", 13, at(120)), at(2)), fleet.ErrNotFound)
		for _, id := range []string{"d", "f"} {
			_, err = s.Enroll(ctx, fleet.Device{ID: id, KeyFingerprint: "key of d"}, secret(1), at(3))
			s.wantErr(err, fleet.ErrDenied)
			_, err = s.Provision(ctx, fleet.Device{ID: id, KeyFingerprint: "key of d"}, bound("other"), "t", at(3))
			s.wantErr(err, fleet.ErrDenied)
		}
		_, err = s.Enroll(ctx, fleet.Device{ID: "d", KeyFingerprint: "new"}, secret(1), at(3))
		s.must(err)
		s.equal("with a new device", s.revoked(at(4)), []string{"d 4a", "d a", "d b"})
		_, err = s.Enroll(ctx, fleet.Device{ID: "f", KeyFingerprint: "key of d"}, secret(1), at(24*60))
		s.must(err)
		s.must(s.RevokeDevice(ctx, "e", at(4)))
		s.forgets("e", at(5))
		list, err := s.RevokedCertificates(ctx, at(6))
		s.must(err)
		s.equal("revoked at", list[3].RevokedAt, keptAt(4))
	}},
	{"what a deleted device has to do ends, what it did stays and counts", func(s *suite) {
		s.enrolled("a", "b", "c")
		r := s.open(s.rollout("r", 3), epoch, queued(0, 1, "a", "b", "c")...)
		s.open(s.rollout("q", 3), epoch, queued(0, 1, "a", "b")...)
		s.report("r", "a", ota.Failed, at(1))
		s.report("q", "a", ota.InProgress, at(1))
		s.report("r", "c", ota.Succeeded, at(1))
		err := s.DeleteDevice(ctx, fleet.Deletion{DeviceID: "a"}, at(2))
		s.wantErr(err, fleet.ErrConflict)
		if !strings.Contains(err.Error(), "--force") || !strings.Contains(err.Error(), "rollout q") {
			s.Errorf("%v: it names neither what it does nor the remedy", err)
		}
		s.must(s.DeleteDevice(ctx, fleet.Deletion{DeviceID: "a", Force: true}, at(2)))
		s.forgets("b", at(2))
		s.forgets("c", at(2))
		for _, at := range [][2]string{{"q", "a"}, {"q", "b"}, {"r", "b"}} {
			e := s.execution(at[0], at[1])
			s.equal(fmt.Sprint(at), []any{e.Status, e.Reason()}, []any{ota.Removed, ota.DeletedReason})
		}
		p, err := s.Progress(ctx, r, at(3))
		s.must(err)
		s.equal("counts", p.Stages[0].Finished, map[ota.Class]int{ota.ClassFailed: 1, ota.ClassSucceeded: 1, ota.ClassNone: 1})
		busy, err := s.Busy(ctx, "", 9)
		s.must(err)
		s.equal("busy", len(busy), 0)

		repeat := fleet.Advance{Rollout: s.rolled("r"), Now: at(4), Repeat: new(int)}
		s.must(s.Advance(ctx, repeat))
		s.equal("again", len(s.executions(fleet.ExecutionFilter{RolloutID: "r", RetryDue: at(9)})), 0)
		s.open(s.rolled("r"), at(5), queued(0, 2, "a")...)
		s.equal("no attempt of one that is gone", len(s.executions(fleet.ExecutionFilter{RolloutID: "r"})), 3)
		s.enrolled("a")
		s.open(s.rolled("r"), at(6), queued(0, 2, "a")...)
		s.equal("of one that came anew", s.execution("r", "a").Attempt, 2)
	}},
	{"a deleted device loses its turn", func(s *suite) {
		s.enrolled("a", "b")
		r := newRollout("r", 2)
		r.Line = "l"
		s.must(s.createRollout(r))
		s.must(s.PutCandidates(ctx, "r", "l", 0, []ota.Candidate{{DeviceID: "a"}, {DeviceID: "b"}}))
		s.forgets("a", at(1))
		s.turns(s.rolled("r"), 2, at(2))
		s.equal("executions", s.next("b"), "r")
		s.equal("all", len(s.executions(fleet.ExecutionFilter{})), 1)
	}},
	{"a deleted device leaves continuous rollouts, and joins again when it comes anew", func(s *suite) {
		s.enrolled("a", "b")
		s.turns(s.follows("f", `tags.k = "x"`, "a", "b"), 1, at(1))
		s.forgets("a", at(2))
		s.forgets("b", at(2))
		s.equal("executions", s.execution("f", "a").Status, ota.Removed)
		s.turns(s.rolled("f"), 1, at(3))
		s.equal("b had no turn", len(s.executions(fleet.ExecutionFilter{})), 1)
		s.enrolled("b", "a")
		s.tag("a", "k", "x")
		s.tag("b", "k", "x")
		for _, id := range []string{"a", "b"} {
			s.equal("place of "+id, s.placed(id)[0].Left, true)
		}
		s.moves("f", ota.MoveJoin)
		s.equal("target", []int{s.rolled("f").Population, s.rolled("f").Stages[0].Target}, []int{2, 3})
		s.equal("a has its place", s.placed("a")[0].Left, false)
	}},
	{"no comparison waits for a deleted device", func(s *suite) {
		r := s.compared([]ota.Signal{{Name: ota.SignalCrash}}, 3, "a", "b", "c", "d", "e")
		pair := fleet.Pair{DeviceID: "a", Attempt: 1, PartnerID: "d", From: at(1), Until: at(11)}
		other := fleet.Pair{DeviceID: "b", Attempt: 1, PartnerID: "e", From: at(1), Until: at(11)}
		s.must(s.PutPairs(ctx, "r", []fleet.Pair{pair, other}))
		s.equal("before", s.health(r), ota.Seen{Signals: make([]ota.Compared, 1), Watched: 2, Unmatched: 1})
		for _, id := range []string{"d", "b", "c"} { // a partner, one of a pair, one that waits for a partner
			s.forgets(id, at(2))
		}
		s.equal("after", s.health(r), ota.Seen{Signals: make([]ota.Compared, 1), Alone: 3})
		due, err := s.DuePairs(ctx, r, at(20), 9)
		s.must(err)
		s.equal("due", len(due), 0)
		pair.Attempt, pair.PartnerID = 2, "d"
		s.must(s.PutPairs(ctx, "r", []fleet.Pair{pair}))
		s.equal("one that is gone is no partner", s.health(r).Watched, 0)
	}},
	{"what a deleted device uploaded goes with the next sweep", func(s *suite) {
		s.enrolled("d")
		s.command("r", ota.Command{Name: ota.CommandCollectLogs}, "d")
		s.report("r", "d", ota.InProgress, at(1))
		s.must(s.PutUpload(ctx, fleet.Upload{RolloutID: "r", DeviceID: "d", Attempt: 1, Bytes: 7, At: at(2)}))
		s.forgets("d", at(3)) // a command does not keep it
		s.equal("listed", s.uploads(fleet.UploadFilter{}, 9), []string{})
		old, err := s.OldUploads(ctx, at(0).Add(-time.Hour), fleet.MaxUploadsKept, 9)
		s.must(err)
		s.equal("old", len(old), 1)
		s.must(s.DropUpload(ctx, old[0]))
		old, err = s.OldUploads(ctx, at(9), 0, 9)
		s.must(err)
		s.equal("dropped", len(old), 0)
	}},
	{"evictions of deleted devices are kept for a while", func(s *suite) {
		s.enrolled("a", "b", "c")
		s.forgets("a", epoch)
		s.forgets("b", epoch.Add(fleet.DeletionMemory))
		s.equal("both", len(s.evictions(epoch)), 2)
		s.enrolled("d")
		s.must(s.RevokeDevice(ctx, "d", at(9)))
		s.forgets("d", at(8)) // by a clock that is behind
		s.equal("the later one", s.evictions(at(9)), []string{"b deleted 192h0m0s", "d deleted 9m0.000001s"})
		s.forgets("c", epoch.Add(fleet.DeletionMemory+time.Second))
		s.equal("the newer ones", s.evictions(epoch), []string{"b deleted 192h0m0s", "c deleted 192h0m1s", "d deleted 9m0.000001s"})
	}},
	{"devices are deleted while others write to them", func(s *suite) {
		ids := []string{"a", "b", "c", "d"}
		s.enrolled(ids...)
		s.group("dynamic", `shadow.reported.on = "yes"`)
		s.open(s.rollout("r", 4), epoch, queued(0, 1, ids...)...)
		var wg sync.WaitGroup
		for _, id := range ids {
			for range 3 {
				wg.Go(func() { _, _ = s.UpdateShadow(ctx, id, "", reported("on", "yes"), at(1)) })
				wg.Go(func() { _, _ = s.UpdateShadow(ctx, id, "n", reported("on", "yes"), at(1)) })
			}
			wg.Go(func() { _ = s.ChangeTags(ctx, id, map[string]string{"k": "v"}, nil) })
			wg.Go(func() { _, _ = s.StartNext(ctx, id, ota.Starting{}, at(1)) })
			wg.Go(func() { _ = s.SeenDevices(ctx, map[string]time.Time{id: at(1)}) })
			wg.Go(func() { _ = s.PutCertificate(ctx, certificate(id, int64(slices.Index(ids, id))+1, at(9)), at(1)) })
			wg.Go(func() { s.must(s.DeleteDevice(ctx, fleet.Deletion{DeviceID: id, Force: true}, at(2))) })
		}
		wg.Wait()
		s.equal("devices", s.devices(""), []string{})
		s.equal("members", s.members("dynamic"), []string{})
	}},
	{"a cancelled deletion deletes nothing", func(s *suite) {
		s.enrolled("d")
		gone, cancel := context.WithCancel(ctx)
		cancel()
		s.wantErr(s.DeleteDevice(gone, fleet.Deletion{DeviceID: "d"}, epoch), context.Canceled)
		s.equal("devices", s.devices(""), []string{"d"})
	}},
}
