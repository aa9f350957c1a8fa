package storetest

import (
	"fmt"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/shadow"
)

var deviceTests = []test{
	{"a one-use token lets in exactly one of many", func(s *suite) {
		s.token(fleet.EnrollmentToken{ID: "t", SecretHash: secret(1), Uses: 1})
		errs := together(16, func(i int) error {
			_, err := s.Enroll(ctx, fleet.Device{ID: fmt.Sprintf("d%d", i), KeyFingerprint: "k"}, secret(1), epoch)
			return err
		})
		s.equal("winners", s.wins(errs, fleet.ErrDenied), 1)
		s.equal("devices", len(s.devices("")), 1)
		tokens, err := s.EnrollmentTokens(ctx)
		s.must(err)
		s.equal("uses left", tokens[0].Uses, 0)
	}},
	{"one device enrolling at once uses one", func(s *suite) {
		s.token(fleet.EnrollmentToken{ID: "t", SecretHash: secret(1), Uses: 2})
		errs := together(8, func(int) error {
			_, err := s.Enroll(ctx, fleet.Device{ID: "d", KeyFingerprint: "k"}, secret(1), epoch)
			return err
		})
		s.equal("winners", s.wins(errs, nil), 8)
		tokens, err := s.EnrollmentTokens(ctx)
		s.must(err)
		s.equal("uses left", tokens[0].Uses, 1)
	}},
	{"a device gets the token's hardware and tags", func(s *suite) {
		tags := map[string]string{"site": "north", "ä\"": "<&>"}
		s.token(fleet.EnrollmentToken{ID: "t", SecretHash: secret(1), Uses: 9, Hardware: "board-a", Tags: tags})
		s.token(fleet.EnrollmentToken{ID: "u", SecretHash: secret(2), Uses: 9})
		mine := fleet.Device{ID: "d", Tags: map[string]string{"admin": "yes"}, KeyFingerprint: "k", LastSeen: epoch, RevokedAt: epoch}
		got, err := s.Enroll(ctx, mine, secret(1), epoch)
		s.must(err)
		want := fleet.Device{ID: "d", Hardware: "board-a", Tags: tags, KeyFingerprint: "k", CreatedAt: kept}
		s.equal("enrolled", got, want)
		got.Tags["site"] = "changed by the caller"
		stored, err := s.Device(ctx, "d")
		s.must(err)
		s.equal("stored", stored, want)
		got, err = s.Enroll(ctx, fleet.Device{ID: "e", Hardware: "mine"}, secret(2), epoch)
		s.must(err)
		s.equal("hardware of its own", got.Hardware, "mine")
	}},
	{"enrolling again with the same key returns what is stored", func(s *suite) {
		s.token(fleet.EnrollmentToken{ID: "t", SecretHash: secret(1), Uses: 1, Hardware: "board-a"})
		first, err := s.Enroll(ctx, fleet.Device{ID: "d", KeyFingerprint: "k"}, secret(1), epoch)
		s.must(err)
		again, err := s.Enroll(ctx, fleet.Device{ID: "d", KeyFingerprint: "k"}, secret(1), epoch.Add(time.Hour))
		s.must(err)
		s.equal("again", again, first)
		_, err = s.Enroll(ctx, fleet.Device{ID: "d", KeyFingerprint: "other"}, secret(1), epoch)
		s.wantErr(err, fleet.ErrConflict)
		s.must(s.RevokeDevice(ctx, "d", epoch))
		_, err = s.Enroll(ctx, fleet.Device{ID: "d", KeyFingerprint: "k"}, secret(1), epoch)
		s.wantErr(err, fleet.ErrDenied)
	}},
	{"a token that does not fit is denied and not used", func(s *suite) {
		s.token(fleet.EnrollmentToken{ID: "expired", SecretHash: secret(1), Uses: 1, ExpiresAt: epoch})
		s.token(fleet.EnrollmentToken{ID: "revoked", SecretHash: secret(2), Uses: 1})
		s.must(s.RevokeEnrollmentToken(ctx, "revoked", epoch))
		s.token(fleet.EnrollmentToken{ID: "glob", SecretHash: secret(3), Uses: 1, DeviceGlob: "pump-*"})
		s.token(fleet.EnrollmentToken{ID: "used", SecretHash: secret(4), Uses: 0})
		s.token(fleet.EnrollmentToken{ID: "board", SecretHash: secret(5), Uses: 1, Hardware: "board-a"})
		for n, id := range []string{0: "pump-0", 1: "pump-1", 2: "pump-2", 3: "fan-3", 4: "pump-4", 5: "pump-5"} {
			_, err := s.Enroll(ctx, fleet.Device{ID: id, Hardware: "board-b"}, secret(n), epoch)
			s.wantErr(err, fleet.ErrDenied)
			_, err = s.Device(ctx, id)
			s.wantErr(err, fleet.ErrNotFound)
		}
		_, err := s.Enroll(ctx, fleet.Device{ID: "pump-3"}, secret(3), epoch)
		s.must(err)
		_, err = s.Enroll(ctx, fleet.Device{ID: "pump-1"}, secret(1), epoch.Add(-time.Microsecond))
		s.must(err)
		_, err = s.Enroll(ctx, fleet.Device{ID: "pump-5", Hardware: "board-a"}, secret(5), epoch)
		s.must(err)
	}},
	{"without a token nobody learns which ids are taken", func(s *suite) {
		s.enrolled("here", "gone")
		s.must(s.RevokeDevice(ctx, "gone", epoch))
		_, nobody := s.Enroll(ctx, fleet.Device{ID: "nobody", KeyFingerprint: "k"}, secret(9), epoch)
		s.wantErr(nobody, fleet.ErrDenied)
		for _, id := range []string{"here", "gone"} {
			_, err := s.Enroll(ctx, fleet.Device{ID: id, KeyFingerprint: "k"}, secret(9), epoch)
			s.wantErr(err, fleet.ErrDenied)
			s.equal("text for "+id, err.Error(), nobody.Error())
		}
	}},
	{"iteration is in order, after an id, and can stop", func(s *suite) {
		s.enrolled("b", "B", "a", "a-1", "a:1", "c")
		s.equal("all", s.devices(""), []string{"B", "a", "a-1", "a:1", "b", "c"})
		s.equal("after", s.devices("a-1"), []string{"a:1", "b", "c"})
		s.equal("after one that is not there", s.devices("a-0"), []string{"a-1", "a:1", "b", "c"})
		s.equal("after the last", s.devices("c"), []string(nil))
		var seen []string
		s.must(s.Devices(ctx, "", func(v fleet.DeviceView) bool {
			seen = append(seen, v.ID)
			return len(seen) < 2
		}))
		s.equal("stopped", seen, []string{"B", "a"})
	}},
	{"iteration carries the classic shadow, unless deleted", func(s *suite) {
		s.enrolled("a", "b", "c")
		for _, id := range []string{"a", "b"} {
			s.update(id, "", "x", id)
			s.update(id, "other", "x", "not this one")
		}
		_, err := s.DeleteShadow(ctx, "b", "", epoch)
		s.must(err)
		s.must(s.SeenDevices(ctx, map[string]time.Time{"a": epoch}))
		views := map[string]fleet.DeviceView{}
		s.must(s.Devices(ctx, "", func(v fleet.DeviceView) bool {
			views[v.ID] = v
			return true
		}))
		s.equal("reported of a", views["a"].Shadow.Reported.Plain(), map[string]any{"x": "a"})
		s.equal("last seen of a", views["a"].LastSeen, kept)
		s.equal("deleted", views["b"].Shadow, shadow.Document{})
		s.equal("none", views["c"].Shadow, shadow.Document{})
	}},
	{"more devices than one page", func(s *suite) {
		const n = 2001
		s.token(fleet.EnrollmentToken{ID: "t", SecretHash: secret(1), Uses: n})
		errs := together(n, func(i int) error {
			_, err := s.Enroll(ctx, fleet.Device{ID: fmt.Sprintf("d%04d", i), KeyFingerprint: "k"}, secret(1), epoch)
			return err
		})
		s.equal("enrolled", s.wins(errs, nil), n)
		for i, id := range s.devices("") {
			s.equal("id", id, fmt.Sprintf("d%04d", i))
		}
		s.equal("number", len(s.devices("")), n)
	}},
	{"revoking again changes nothing", func(s *suite) {
		s.enrolled("d")
		s.must(s.RevokeDevice(ctx, "d", epoch))
		s.must(s.RevokeDevice(ctx, "d", epoch.Add(time.Hour)))
		d, err := s.Device(ctx, "d")
		s.must(err)
		s.equal("revoked at", d.RevokedAt, kept)
		s.wantErr(s.RevokeDevice(ctx, "nobody", epoch), fleet.ErrNotFound)
		_, err = s.Device(ctx, "nobody")
		s.wantErr(err, fleet.ErrNotFound)
	}},
	{"last seen is only raised", func(s *suite) {
		s.enrolled("a", "b")
		s.must(s.SeenDevices(ctx, map[string]time.Time{"a": epoch, "nobody": epoch}))
		s.must(s.SeenDevices(ctx, map[string]time.Time{"a": epoch.Add(-time.Hour), "b": epoch.Add(time.Second)}))
		a, err := s.Device(ctx, "a")
		s.must(err)
		b, err := s.Device(ctx, "b")
		s.must(err)
		s.equal("a", a.LastSeen, kept)
		s.equal("b", b.LastSeen, kept.Add(time.Second))
	}},
}

var tokenTests = []test{
	{"are returned newest first, as created", func(s *suite) {
		old := fleet.EnrollmentToken{ID: "old", SecretHash: secret(1), Uses: 3, DeviceGlob: "a*", Hardware: "board-a",
			Tags: map[string]string{"k": "v"}, CreatedAt: kept, ExpiresAt: kept.Add(time.Hour)}
		young := fleet.EnrollmentToken{ID: "young", SecretHash: secret(2), Uses: 1, CreatedAt: kept.Add(time.Second)}
		s.token(old)
		s.token(young)
		list, err := s.EnrollmentTokens(ctx)
		s.must(err)
		s.equal("tokens", list, []fleet.EnrollmentToken{young, old})
	}},
	{"conflict by id", func(s *suite) {
		s.token(fleet.EnrollmentToken{ID: "t", SecretHash: secret(1), Uses: 1})
		s.wantErr(s.CreateEnrollmentToken(ctx, fleet.EnrollmentToken{ID: "t", SecretHash: secret(2)}), fleet.ErrConflict)
		s.wantErr(s.CreateEnrollmentToken(ctx, fleet.EnrollmentToken{ID: "n", SecretHash: secret(3), Uses: -1}), fleet.ErrInvalid)
		s.must(s.CreateAPIToken(ctx, fleet.APIToken{ID: "t", SecretHash: secret(1)}))
		s.wantErr(s.CreateAPIToken(ctx, fleet.APIToken{ID: "t", SecretHash: secret(2)}), fleet.ErrConflict)
	}},
	{"revoking again keeps the first time", func(s *suite) {
		s.token(fleet.EnrollmentToken{ID: "t", SecretHash: secret(1), Uses: 1})
		s.must(s.RevokeEnrollmentToken(ctx, "t", epoch))
		s.must(s.RevokeEnrollmentToken(ctx, "t", epoch.Add(time.Hour)))
		list, err := s.EnrollmentTokens(ctx)
		s.must(err)
		s.equal("revoked at", list[0].RevokedAt, kept)
		s.wantErr(s.RevokeEnrollmentToken(ctx, "nobody", epoch), fleet.ErrNotFound)
	}},
	{"API tokens", func(s *suite) {
		forever := fleet.APIToken{ID: "a", Name: "ci", SecretHash: secret(1), CreatedAt: kept}
		brief := fleet.APIToken{ID: "b", Name: "me", SecretHash: secret(2), CreatedAt: kept, ExpiresAt: kept.Add(time.Hour)}
		for _, want := range []fleet.APIToken{forever, brief} {
			s.must(s.CreateAPIToken(ctx, want))
			got, err := s.APIToken(ctx, want.ID)
			s.must(err)
			s.equal("token", got, want)
		}
		_, err := s.APIToken(ctx, "nobody")
		s.wantErr(err, fleet.ErrNotFound)
	}},
}

func (s *suite) devices(after string) (ids []string) {
	s.Helper()
	s.must(s.Devices(ctx, after, func(v fleet.DeviceView) bool {
		ids = append(ids, v.ID)
		return true
	}))
	return ids
}
