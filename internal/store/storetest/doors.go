package storetest

import (
	"fmt"
	"time"

	"pgregory.net/rapid"

	"github.com/otad/otad/internal/fleet"
)

var provisionTests = []test{
	{"a certificate stands for its device from then on", func(s *suite) {
		s.token(fleet.EnrollmentToken{ID: "t", SecretHash: secret(1), Uses: 1, Hardware: "board-a"})
		_, err := s.ProvisionedDevice(ctx, "c1")
		s.wantErr(err, fleet.ErrNotFound)
		d, err := s.Provision(ctx, fleet.Device{ID: "d", KeyFingerprint: "k"}, bound("c1"), "t", epoch)
		s.must(err)
		s.equal("provisioned", d, fleet.Device{ID: "d", Hardware: "board-a", KeyFingerprint: "k", CreatedAt: kept})
		got, err := s.ProvisionedDevice(ctx, "c1")
		s.must(err)
		s.equal("looked up", got, d)
		again, err := s.Provision(ctx, fleet.Device{ID: "d", KeyFingerprint: "k"}, bound("c1"), "t", epoch.Add(time.Minute))
		s.must(err)
		s.equal("again", again, d)
		t, err := s.EnrollmentToken(ctx, "t")
		s.must(err)
		s.equal("uses left", t.Uses, 0)
	}},
	{"a certificate is good for one device", func(s *suite) {
		s.token(fleet.EnrollmentToken{ID: "t", SecretHash: secret(1), Uses: 9})
		_, err := s.Provision(ctx, fleet.Device{ID: "d", KeyFingerprint: "k"}, bound("c1"), "t", epoch)
		s.must(err)
		_, err = s.Provision(ctx, fleet.Device{ID: "e", KeyFingerprint: "k"}, bound("c1"), "t", epoch)
		s.wantErr(err, fleet.ErrDenied)
		_, err = s.Device(ctx, "e")
		s.wantErr(err, fleet.ErrNotFound)
		t, err := s.EnrollmentToken(ctx, "t")
		s.must(err)
		s.equal("uses left", t.Uses, 8)
		errs := together(8, func(i int) error {
			_, err := s.Provision(ctx, fleet.Device{ID: fmt.Sprint("f", i), KeyFingerprint: "k"}, bound("c2"), "t", epoch)
			return err
		})
		s.equal("winners", s.wins(errs, fleet.ErrDenied), 1)
	}},
	{"what the token does not let in is not provisioned", func(s *suite) {
		s.token(fleet.EnrollmentToken{ID: "t", SecretHash: secret(1), Uses: 2, DeviceGlob: "gw-*"})
		s.enrolled("gw-1")
		for id, want := range map[string]error{"d": fleet.ErrDenied, "gw-1": fleet.ErrConflict} {
			_, err := s.Provision(ctx, fleet.Device{ID: id, KeyFingerprint: "k"}, bound("c1"), "t", epoch)
			s.wantErr(err, want)
		}
		_, err := s.Provision(ctx, fleet.Device{ID: "gw-2", KeyFingerprint: "k"}, bound("c1"), "nobody's", epoch)
		s.wantErr(err, fleet.ErrNotFound)
		s.must(s.RevokeDevice(ctx, "gw-1", epoch))
		_, err = s.Provision(ctx, fleet.Device{ID: "gw-1", KeyFingerprint: "key of gw-1"}, bound("c1"), "t", epoch)
		s.wantErr(err, fleet.ErrDenied)
		_, err = s.ProvisionedDevice(ctx, "c1")
		s.wantErr(err, fleet.ErrNotFound)
		_, err = s.EnrollmentToken(ctx, "nobody's")
		s.wantErr(err, fleet.ErrNotFound)
	}},
	{"a new certificate replaces those of an hour ago", func(s *suite) {
		s.token(fleet.EnrollmentToken{ID: "t", SecretHash: secret(1), Uses: 9})
		d := fleet.Device{ID: "d", KeyFingerprint: "k"}
		for i, at := range []time.Duration{0, time.Minute, fleet.ProvisionLife} {
			_, err := s.Provision(ctx, d, bound(fmt.Sprint("c", i)), "t", epoch.Add(at))
			s.must(err)
		}
		_, err := s.ProvisionedDevice(ctx, "c0")
		s.wantErr(err, fleet.ErrNotFound)
		for _, id := range []string{"c1", "c2"} {
			_, err := s.ProvisionedDevice(ctx, id)
			s.must(err)
		}
	}},
}

// numbered are events from one number to another.
func numbered(from, to int64) []fleet.Event {
	var list []fleet.Event
	for seq := from; seq <= to; seq++ {
		list = append(list, fleet.Event{Seq: seq, At: epoch, Kind: "state", Data: fmt.Sprintf(`{"n": %d}`, seq), Trace: "t"})
	}
	return list
}

func (s *suite) appended(log string, from, to, want int64) {
	s.Helper()
	ack, err := s.AppendEvents(ctx, "d", log, numbered(from, to), epoch.Add(time.Second))
	s.must(err)
	s.equal("acknowledged", ack, want)
}

func (s *suite) events(before int64, limit int) (list []string) {
	s.Helper()
	page, err := s.Events(ctx, "d", before, limit)
	s.must(err)
	for _, e := range page {
		list = append(list, fmt.Sprintf("%d:%s%d", e.Position, e.Log, e.Seq))
	}
	return list
}

var eventTests = []test{
	{"events come back as they were, the newest first", func(s *suite) {
		s.enrolled("d", "e")
		s.appended("a", 1, 3, 3)
		page, err := s.Events(ctx, "d", 0, 1)
		s.must(err)
		s.equal("newest", page, []fleet.Event{{
			Position: 3, Log: "a", Seq: 3, At: kept, Received: kept.Add(time.Second), Kind: "state", Data: `{"n": 3}`, Trace: "t",
		}})
		s.equal("before", s.events(3, 9), []string{"2:a2", "1:a1"})
		_, err = s.AppendEvents(ctx, "d", "a", []fleet.Event{{Seq: 4, Kind: "boot", Data: "{}"}}, epoch)
		s.must(err)
		page, err = s.Events(ctx, "d", 0, 1)
		s.must(err)
		s.equal("without a clock", page[0].At, time.Time{})
		page, err = s.Events(ctx, "e", 0, 9)
		s.must(err)
		s.equal("of another device", page, []fleet.Event{})
	}},
	{"what is sent again is stored once", func(s *suite) {
		s.enrolled("d")
		s.appended("a", 1, 3, 3)
		s.appended("a", 1, 3, 3)
		s.appended("a", 2, 5, 5)
		s.appended("a", 1, 1, 5)
		s.appended("a", 9, 9, 9) // the device dropped some
		s.equal("stored", s.events(0, 99), []string{"6:a9", "5:a5", "4:a4", "3:a3", "2:a2", "1:a1"})
	}},
	{"a device made anew begins a log anew", func(s *suite) {
		s.enrolled("d")
		s.appended("a", 1, 2, 2)
		s.appended("b", 1, 1, 1)
		s.appended("b", 1, 2, 2)
		s.equal("stored", s.events(0, 99), []string{"4:b2", "3:b1", "2:a2", "1:a1"})
	}},
	{"the newest are kept", func(s *suite) {
		s.enrolled("d")
		const all = fleet.MaxEventsKept + 70
		for from := int64(1); from <= all; from += fleet.MaxEvents {
			to := min(from+fleet.MaxEvents-1, all)
			s.appended("a", from, to, to)
		}
		got := s.events(0, all)
		s.equal("kept", len(got), fleet.MaxEventsKept)
		s.equal("oldest", got[len(got)-1], "71:a71")
	}},
	{"one sender at once and again stores each once", func(s *suite) {
		s.enrolled("d")
		errs := together(8, func(int) error {
			_, err := s.AppendEvents(ctx, "d", "a", numbered(1, 5), epoch)
			return err
		})
		s.equal("winners", s.wins(errs, nil), 8)
		s.equal("stored", len(s.events(0, 99)), 5)
	}},
	{"nobody's events are not stored", func(s *suite) {
		_, err := s.AppendEvents(ctx, "d", "a", numbered(1, 1), epoch)
		s.wantErr(err, fleet.ErrNotFound)
		s.equal("stored", len(s.events(0, 99)), 0)
	}},
}

func (w *walk) provision(t *rapid.T) {
	id, key := devices.Draw(t, "device"), rapid.SampledFrom([]string{"k", "k", "l"}).Draw(t, "key")
	certificate := rapid.SampledFrom([]string{"c", "e", "f"}).Draw(t, "certificate")
	now := w.time(t)
	w.same("provision", func(s fleet.Store) (any, error) {
		return s.Provision(ctx, fleet.Device{ID: id, Hardware: "h", KeyFingerprint: key}, bound(certificate), "t", now)
	})
}

func (w *walk) happen(t *rapid.T) {
	id, log := devices.Draw(t, "device"), rapid.SampledFrom([]string{"m", "m", "n"}).Draw(t, "log")
	from := rapid.Int64Range(1, 6).Draw(t, "from")
	events, now := numbered(from, from+rapid.Int64Range(0, 3).Draw(t, "more")), w.time(t)
	w.same("events", func(s fleet.Store) (any, error) { return s.AppendEvents(ctx, id, log, events, now) })
}
