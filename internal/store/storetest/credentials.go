package storetest

import (
	"fmt"
	"time"

	"github.com/otad/otad/internal/fleet"
)

func password(device, id string) fleet.Credential {
	return fleet.Credential{DeviceID: device, ID: id, Kind: fleet.CredentialPassword, Secret: "hash " + id, CreatedAt: kept}
}

func key(device, id string) fleet.Credential {
	return fleet.Credential{DeviceID: device, ID: id, Kind: fleet.CredentialKey, Secret: "pem " + id, KeyID: "kid", CreatedAt: kept}
}

func (s *suite) credentials(device string) []fleet.Credential {
	s.Helper()
	list, err := s.Credentials(ctx, device)
	s.must(err)
	return list
}

func (s *suite) evictions(since time.Time) (out []string) {
	s.Helper()
	list, err := s.Evictions(ctx, since)
	s.must(err)
	for _, e := range list {
		out = append(out, fmt.Sprintf("%s %s %s", e.DeviceID, e.Reason, e.At.Sub(kept)))
	}
	return out
}

var credentialTests = []test{
	{"are returned as they were put, oldest first", func(s *suite) {
		s.enrolled("d", "e")
		young, old := key("d", "young"), password("d", "old")
		young.CreatedAt = kept.Add(time.Second)
		s.must(s.PutCredential(ctx, young))
		s.must(s.PutCredential(ctx, old))
		s.must(s.PutCredential(ctx, password("e", "other")))
		s.equal("of d", s.credentials("d"), []fleet.Credential{old, young})
		s.equal("of nobody", s.credentials("nobody"), []fleet.Credential(nil))
		s.equal("evictions", s.evictions(epoch.Add(-time.Hour)), []string(nil))
	}},
	{"a password takes the place of the one before", func(s *suite) {
		s.enrolled("d")
		s.must(s.PutCredential(ctx, key("d", "key")))
		s.must(s.PutCredential(ctx, password("d", "one")))
		two := password("d", "two")
		two.CreatedAt = kept.Add(time.Minute)
		s.must(s.PutCredential(ctx, two))
		s.equal("credentials", s.credentials("d"), []fleet.Credential{key("d", "key"), two})
		s.equal("evictions", s.evictions(epoch), []string{"d " + fleet.EvictedCredential + " 1m0s"})
	}},
	{"conflicts and unknown devices store nothing", func(s *suite) {
		s.enrolled("d", "gone")
		s.must(s.RevokeDevice(ctx, "gone", epoch))
		s.must(s.PutCredential(ctx, key("d", "a")))
		again := key("d", "b")
		again.Secret = key("d", "a").Secret
		for _, c := range []struct {
			put  fleet.Credential
			want error
		}{
			{key("d", "a"), fleet.ErrConflict}, {again, fleet.ErrConflict},
			{key("nobody", "c"), fleet.ErrNotFound}, {key("gone", "c"), fleet.ErrNotFound},
		} {
			s.wantErr(s.PutCredential(ctx, c.put), c.want)
		}
		s.equal("of d", s.credentials("d"), []fleet.Credential{key("d", "a")})
		s.equal("of gone", s.credentials("gone"), []fleet.Credential(nil))
	}},
	{"a device has MaxCredentials", func(s *suite) {
		s.enrolled("d")
		s.must(s.PutCredential(ctx, password("d", "p")))
		errs := together(fleet.MaxCredentials+4, func(i int) error { return s.PutCredential(ctx, key("d", fmt.Sprintf("k%02d", i))) })
		s.equal("winners", s.wins(errs, fleet.ErrConflict), fleet.MaxCredentials-1)
		s.must(s.PutCredential(ctx, password("d", "q"))) // in place of p
		s.equal("number", len(s.credentials("d")), fleet.MaxCredentials)
	}},
	{"deleting evicts", func(s *suite) {
		s.enrolled("d", "e")
		s.must(s.PutCredential(ctx, key("d", "a")))
		s.wantErr(s.DeleteCredential(ctx, "e", "a", epoch), fleet.ErrNotFound)
		s.wantErr(s.DeleteCredential(ctx, "d", "b", epoch), fleet.ErrNotFound)
		s.must(s.DeleteCredential(ctx, "d", "a", epoch))
		s.wantErr(s.DeleteCredential(ctx, "d", "a", epoch), fleet.ErrNotFound)
		s.equal("left", s.credentials("d"), []fleet.Credential(nil))
		s.equal("evictions", s.evictions(kept), []string{"d " + fleet.EvictedCredential + " 0s"})
	}},
	{"evictions are the newest of each device, from a time on", func(s *suite) {
		s.enrolled("a", "b", "c")
		s.must(s.PutCredential(ctx, key("b", "k")))
		s.must(s.RevokeDevice(ctx, "b", epoch.Add(time.Minute)))
		s.must(s.DeleteCredential(ctx, "b", "k", epoch)) // older, so not the newest
		s.must(s.RevokeDevice(ctx, "a", epoch))
		s.must(s.RevokeDevice(ctx, "a", epoch.Add(time.Hour))) // again is not an eviction
		s.equal("all", s.evictions(kept), []string{"a revoked 0s", "b revoked 1m0s"})
		s.equal("from 1 microsecond on", s.evictions(kept.Add(time.Microsecond)), []string{"b revoked 1m0s"})
		s.equal("none", s.evictions(kept.Add(time.Hour)), []string(nil))
	}},
	{"issuers", func(s *suite) {
		b := fleet.Issuer{Name: "https://b", Keys: []fleet.IssuerKey{{KeyID: "1", PEM: "x"}, {PEM: "y"}}, DeviceGlob: "b-*", CreatedAt: kept}
		a := fleet.Issuer{Name: "a", Keys: []fleet.IssuerKey{{PEM: "z"}}, CreatedAt: kept}
		s.must(s.CreateIssuer(ctx, b))
		s.must(s.CreateIssuer(ctx, a))
		s.wantErr(s.CreateIssuer(ctx, fleet.Issuer{Name: "a"}), fleet.ErrConflict)
		list, err := s.Issuers(ctx)
		s.must(err)
		s.equal("issuers", list, []fleet.Issuer{a, b})
		s.must(s.DeleteIssuer(ctx, "a"))
		s.wantErr(s.DeleteIssuer(ctx, "a"), fleet.ErrNotFound)
		for i := range fleet.MaxIssuers - 1 {
			s.must(s.CreateIssuer(ctx, fleet.Issuer{Name: fmt.Sprintf("n%03d", i), CreatedAt: kept}))
		}
		s.wantErr(s.CreateIssuer(ctx, a), fleet.ErrConflict)
	}},
	{"a device that an operator creates has no key", func(s *suite) {
		d := fleet.Device{ID: "d", Hardware: "board-a", Tags: map[string]string{"k": "v"}, CreatedAt: kept}
		s.must(s.CreateDevice(ctx, d))
		got, err := s.Device(ctx, "d")
		s.must(err)
		s.equal("device", got, d)
		s.wantErr(s.CreateDevice(ctx, fleet.Device{ID: "d", CreatedAt: kept}), fleet.ErrConflict)
		s.token(fleet.EnrollmentToken{ID: "t", SecretHash: secret(1), Uses: 1})
		_, err = s.Enroll(ctx, fleet.Device{ID: "d", KeyFingerprint: "k"}, secret(1), epoch)
		s.wantErr(err, fleet.ErrConflict) // a token takes over nobody's id
	}},
}

var presenceTests = []test{
	{"the newest connection counts", func(s *suite) {
		s.enrolled("d")
		at := func(n int) time.Time { return kept.Add(time.Duration(n) * time.Second) }
		on := func(replica string, n int) fleet.Connection {
			return fleet.Connection{Connected: true, Since: at(n), Began: at(n), Replica: replica}
		}
		off := func(replica string, began, n int) fleet.Connection {
			return fleet.Connection{Since: at(n), Began: at(began), Replica: replica, Reason: "why"}
		}
		for _, step := range []struct {
			heard fleet.Connection
			wins  bool
		}{
			{on("r1", 10), true}, {off("r1", 10, 20), true}, {on("r1", 10), true}, {on("r2", 30), true},
			{off("r1", 10, 40), false}, // the connection before, found dead late
			{on("r1", 20), false}, {off("r3", 50, 50), true}, {on("r2", 30), false}, {off("r2", 60, 61), true},
		} {
			before, err := s.Device(ctx, "d")
			s.must(err)
			s.must(s.SaveConnections(ctx, map[string]fleet.Connection{"d": step.heard, "nobody": step.heard}))
			d, err := s.Device(ctx, "d")
			s.must(err)
			want := before.Connection
			if step.wins {
				want = step.heard
			}
			s.equal("connection", d.Connection, want)
		}
		views := 0
		s.must(s.Devices(ctx, "", func(v fleet.DeviceView) bool {
			views++
			s.equal("in a list", v.Connection, off("r2", 60, 61))
			return true
		}))
		s.equal("views", views, 1)
	}},
	{"seen and connected are apart", func(s *suite) {
		s.enrolled("a", "b")
		c := fleet.Connection{Connected: true, Since: kept, Began: kept, Replica: "r"}
		s.must(s.SaveConnections(ctx, map[string]fleet.Connection{"a": c}))
		s.must(s.SeenDevices(ctx, map[string]time.Time{"b": epoch}))
		a, err := s.Device(ctx, "a")
		s.must(err)
		b, err := s.Device(ctx, "b")
		s.must(err)
		s.equal("a", []any{a.Connection, a.LastSeen}, []any{c, time.Time{}})
		s.equal("b", []any{b.Connection, b.LastSeen}, []any{fleet.Connection{}, kept})
		s.must(s.SeenDevices(ctx, map[string]time.Time{"a": epoch}))
		s.must(s.SaveConnections(ctx, map[string]fleet.Connection{"b": c}))
		a, err = s.Device(ctx, "a")
		s.must(err)
		b, err = s.Device(ctx, "b")
		s.must(err)
		s.equal("a then", []any{a.Connection, a.LastSeen}, []any{c, kept})
		s.equal("b then", []any{b.Connection, b.LastSeen}, []any{c, kept})
	}},
	{"all connections end at once", func(s *suite) {
		s.enrolled("on", "off", "never")
		on := fleet.Connection{Connected: true, Since: kept, Began: kept, Replica: "r"}
		off := fleet.Connection{Since: kept, Began: kept, Replica: "r", Reason: "why"}
		s.must(s.SaveConnections(ctx, map[string]fleet.Connection{"on": on, "off": off}))
		s.must(s.EndConnections(ctx, "restarted", epoch.Add(time.Hour)))
		want := map[string]fleet.Connection{"on": {Since: kept.Add(time.Hour), Began: kept, Replica: "r", Reason: "restarted"}, "off": off}
		check := func() {
			s.must(s.Devices(ctx, "", func(v fleet.DeviceView) bool {
				s.equal(v.ID, v.Connection, want[v.ID])
				return true
			}))
		}
		check()
		on.Since, on.Began = kept.Add(time.Minute), kept.Add(time.Minute) // it came before, and was told of late
		want["on"] = on
		s.must(s.SaveConnections(ctx, map[string]fleet.Connection{"on": on}))
		check()
	}},
	{"replicas are known while they beat", func(s *suite) {
		s.must(s.Beat(ctx, "r1", epoch))
		s.must(s.Beat(ctx, "r2", epoch.Add(time.Hour)))
		s.must(s.Beat(ctx, "r1", epoch.Add(2*time.Hour)))
		all, err := s.Replicas(ctx)
		s.must(err)
		s.equal("both", all, map[string]time.Time{"r1": kept.Add(2 * time.Hour), "r2": kept.Add(time.Hour)})
		s.must(s.Beat(ctx, "r1", epoch.Add(time.Hour+fleet.ReplicaMemory+time.Second)))
		all, err = s.Replicas(ctx)
		s.must(err)
		s.equal("one", len(all), 1)
	}},
}
