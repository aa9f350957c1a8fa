package storetest

import (
	"errors"
	"fmt"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/shadow"
)

func reported(key, value string) shadow.Update {
	return shadow.NewUpdate(nil, map[string]any{key: value})
}

func (s *suite) update(device, name, key, value string) shadow.Result {
	s.Helper()
	r, err := s.UpdateShadow(ctx, device, name, reported(key, value), epoch)
	s.must(err)
	return r
}

// same compares documents by what is stored of them.
func (s *suite) same(what string, got, want shadow.Document) {
	s.Helper()
	s.equal(what, documentText(got), documentText(want))
}

var shadowTests = []test{
	{"concurrent updates never lose one", func(s *suite) {
		s.enrolled("a", "b")
		const n = 200
		errs := together(n, func(i int) error {
			_, err := s.UpdateShadow(ctx, []string{"a", "b"}[i%2], "", reported(fmt.Sprintf("k%d", i), "v"), epoch)
			return err
		})
		s.equal("accepted", s.wins(errs, nil), n)
		for _, device := range []string{"a", "b"} {
			doc, err := s.Shadow(ctx, device, "")
			s.must(err)
			s.equal("version", doc.Version, int64(n/2))
			s.equal("keys", len(doc.Reported), n/2)
		}
	}},
	{"every accepted update has a version of its own", func(s *suite) {
		s.enrolled("a")
		versions := make([]int64, 50)
		errs := together(len(versions), func(i int) error {
			r, err := s.UpdateShadow(ctx, "a", "n", reported("k", "v"), epoch)
			versions[i] = r.Document.Version
			return err
		})
		s.equal("accepted", s.wins(errs, nil), len(versions))
		seen := map[int64]bool{}
		for _, v := range versions {
			seen[v] = true
		}
		s.equal("versions", len(seen), len(versions))
	}},
	{"of many that expect one version, one wins", func(s *suite) {
		s.enrolled("a")
		s.update("a", "", "k", "v")
		one := int64(1)
		errs := together(20, func(i int) error {
			u := reported("k", fmt.Sprint(i))
			u.Version = &one
			_, err := s.UpdateShadow(ctx, "a", "", u, epoch)
			return err
		})
		s.equal("winners", s.wins(errs, shadow.ErrVersionConflict), 1)
		doc, err := s.Shadow(ctx, "a", "")
		s.must(err)
		s.equal("version", doc.Version, int64(2))
	}},
	{"an update returns what is stored", func(s *suite) {
		s.enrolled("a")
		u := shadow.NewUpdate(map[string]any{"mode": "on", "deep": map[string]any{"x": "<&>"}}, map[string]any{"mode": "off"})
		r, err := s.UpdateShadow(ctx, "a", "", u, epoch)
		s.must(err)
		if r.AcceptedPayload() == nil || r.DeltaPayload() == nil {
			s.Fatalf("result without payloads: %+v", r)
		}
		doc, err := s.Shadow(ctx, "a", "")
		s.must(err)
		s.same("document", doc, r.Document)
	}},
	{"a rejected update comes back unwrapped and stores nothing", func(s *suite) {
		s.enrolled("a")
		first := s.update("a", "", "k", "v")
		seven := int64(7)
		u := reported("k", "w")
		u.Version = &seven
		_, err := s.UpdateShadow(ctx, "a", "", u, epoch)
		if _, ok := err.(*shadow.Error); !ok { //nolint:errorlint // unwrapped by contract
			s.Fatalf("got %T %v, want a *shadow.Error itself", err, err)
		}
		s.wantErr(err, shadow.ErrVersionConflict)
		huge := make([]byte, shadow.MaxStateBytes)
		for i := range huge {
			huge[i] = 'x'
		}
		_, err = s.UpdateShadow(ctx, "a", "", reported("k", string(huge)), epoch)
		s.wantErr(err, shadow.ErrTooLarge)
		_, err = s.UpdateShadow(ctx, "a", "fresh", reported("k", string(huge)), epoch)
		s.wantErr(err, shadow.ErrTooLarge)
		_, err = s.Shadow(ctx, "a", "fresh")
		s.wantErr(err, fleet.ErrNotFound)
		doc, err := s.Shadow(ctx, "a", "")
		s.must(err)
		s.same("document", doc, first.Document)
	}},
	{"the version survives a delete", func(s *suite) {
		s.enrolled("a")
		s.update("a", "", "k", "1")
		last := s.update("a", "", "k", "2")
		deleted, err := s.DeleteShadow(ctx, "a", "", epoch)
		s.must(err)
		s.same("deleted", deleted, last.Document)
		_, err = s.Shadow(ctx, "a", "")
		s.wantErr(err, fleet.ErrNotFound)
		_, err = s.DeleteShadow(ctx, "a", "", epoch)
		s.wantErr(err, fleet.ErrNotFound)
		fresh := s.update("a", "", "other", "3")
		s.equal("version", fresh.Document.Version, int64(3))
		s.equal("reported", fresh.Document.Reported.Plain(), map[string]any{"other": "3"})
	}},
	{"names are apart", func(s *suite) {
		s.enrolled("a", "b")
		s.update("a", "", "k", "classic")
		s.update("a", "n", "k", "named")
		for name, want := range map[string]string{"": "classic", "n": "named"} {
			doc, err := s.Shadow(ctx, "a", name)
			s.must(err)
			s.equal("reported", doc.Reported.Plain(), map[string]any{"k": want})
		}
		for name, want := range map[string]string{"": "device b has no shadow yet", "n": "device b has no shadow named n yet"} {
			_, err := s.Shadow(ctx, "b", name)
			s.wantErr(err, fleet.ErrNotFound)
			s.equal("text", err.Error(), want)
			_, err = s.DeleteShadow(ctx, "b", name, epoch)
			s.wantErr(err, fleet.ErrNotFound)
			s.equal("text", err.Error(), want)
		}
	}},
	{"of unknown devices are not found", func(s *suite) {
		_, err := s.Shadow(ctx, "nobody", "")
		s.wantErr(err, fleet.ErrNotFound)
		s.equal("text", err.Error(), "device nobody: not found")
		_, err = s.UpdateShadow(ctx, "nobody", "", reported("k", "v"), epoch)
		s.wantErr(err, fleet.ErrNotFound)
		_, err = s.DeleteShadow(ctx, "nobody", "", epoch)
		s.wantErr(err, fleet.ErrNotFound)
	}},
	{"updates and deletes at once keep the version rising", func(s *suite) {
		s.enrolled("a")
		errs := together(60, func(i int) error {
			if i%3 > 0 {
				_, err := s.UpdateShadow(ctx, "a", "", reported("k", fmt.Sprint(i)), epoch)
				return err
			}
			_, err := s.DeleteShadow(ctx, "a", "", epoch.Add(time.Second))
			if errors.Is(err, fleet.ErrNotFound) {
				return nil
			}
			return err
		})
		s.equal("done", s.wins(errs, nil), 60)
		s.equal("version", s.update("a", "", "k", "last").Document.Version, int64(41))
	}},
}
