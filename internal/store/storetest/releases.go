package storetest

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

var releaseTests = []test{
	{"the same content again returns what is stored", func(s *suite) {
		want := release("app", "1")
		want.Run, want.Health = []string{"-v", "<x>"}, json.RawMessage(`{"after":"5s"}`)
		given := want
		given.State, given.SignedAt, given.CreatedAt = ota.ReleaseSigned, epoch, epoch
		got, err := s.CreateRelease(ctx, given)
		s.must(err)
		s.equal("created as a draft", got, want)
		given.CreatedAt = epoch.Add(time.Hour)
		got, err = s.CreateRelease(ctx, given)
		s.must(err)
		s.equal("again", got, want)
		got, err = s.Release(ctx, want.ID())
		s.must(err)
		s.equal("stored", got, want)
	}},
	{"other content is a conflict", func(s *suite) {
		_, err := s.CreateRelease(ctx, release("app", "1"))
		s.must(err)
		other := release("app", "1")
		other.ImageSize++
		_, err = s.CreateRelease(ctx, other)
		s.wantErr(err, fleet.ErrConflict)
		other = release("app", "1")
		other.IndexDigest = "ef" + other.IndexDigest[2:]
		_, err = s.CreateRelease(ctx, other)
		s.wantErr(err, fleet.ErrConflict)
		got, err := s.Release(ctx, other.ID())
		s.must(err)
		s.equal("stored", got, release("app", "1"))
	}},
	{"of one id created at once, one content wins", func(s *suite) {
		errs := together(10, func(i int) error {
			r := release("app", "1")
			r.ImageSize = int64(i%2 + 1)
			_, err := s.CreateRelease(ctx, r)
			return err
		})
		s.equal("accepted", s.wins(errs, fleet.ErrConflict), 5)
	}},
	{"are listed newest first", func(s *suite) {
		for i, v := range []string{"1", "3", "2"} {
			r := release("app", v)
			r.CreatedAt = epoch.Add(time.Duration(i) * time.Second)
			_, err := s.CreateRelease(ctx, r)
			s.must(err)
		}
		list, err := s.Releases(ctx)
		s.must(err)
		var versions []string
		for _, r := range list {
			versions = append(versions, r.Version)
		}
		s.equal("versions", versions, []string{"2", "3", "1"})
		_, err = s.Release(ctx, ota.ReleaseID{Name: "app", Version: "9"})
		s.wantErr(err, fleet.ErrNotFound)
	}},
	{"metadata is kept byte for byte, by version", func(s *suite) {
		_, err := s.Metadata(ctx, fleet.RoleRoot, 0)
		s.wantErr(err, fleet.ErrNotFound)
		one := fleet.Metadata{Role: fleet.RoleRoot, Version: 1, Bytes: []byte("{ \"a\" : 1 }\x00\xff")}
		two := fleet.Metadata{Role: fleet.RoleRoot, Version: 2, Bytes: []byte("two")}
		s.must(s.PublishMetadata(ctx, []fleet.Metadata{one, two}, nil, epoch))
		for version, want := range map[int64]fleet.Metadata{0: two, 1: one, 2: two} {
			got, err := s.Metadata(ctx, fleet.RoleRoot, version)
			s.must(err)
			s.equal("metadata", got, want)
		}
		_, err = s.Metadata(ctx, fleet.RoleRoot, 3)
		s.wantErr(err, fleet.ErrNotFound)
		_, err = s.Metadata(ctx, fleet.RoleTargets, 0)
		s.wantErr(err, fleet.ErrNotFound)
	}},
	{"a stale version stores nothing of the whole", func(s *suite) {
		_, err := s.CreateRelease(ctx, release("app", "1"))
		s.must(err)
		id := release("app", "1").ID()
		for _, version := range []int64{0, 2} {
			err = s.PublishMetadata(ctx, []fleet.Metadata{
				{Role: fleet.RoleTargets, Version: 1, Bytes: []byte("t")},
				{Role: fleet.RoleSnapshot, Version: version, Bytes: []byte("s")},
			}, []ota.ReleaseID{id}, epoch)
			s.wantErr(err, fleet.ErrStale)
		}
		_, err = s.Metadata(ctx, fleet.RoleTargets, 0)
		s.wantErr(err, fleet.ErrNotFound)
		r, err := s.Release(ctx, id)
		s.must(err)
		s.equal("state", r.State, ota.ReleaseDraft)
	}},
	{"publishing marks the releases signed", func(s *suite) {
		_, err := s.CreateRelease(ctx, release("app", "1"))
		s.must(err)
		id := release("app", "1").ID()
		files := []fleet.Metadata{{Role: fleet.RoleTargets, Version: 1, Bytes: []byte("t")}}
		err = s.PublishMetadata(ctx, files, []ota.ReleaseID{id, {Name: "no", Version: "1"}}, epoch)
		s.wantErr(err, fleet.ErrNotFound)
		_, err = s.Metadata(ctx, fleet.RoleTargets, 0)
		s.wantErr(err, fleet.ErrNotFound)
		s.must(s.PublishMetadata(ctx, files, []ota.ReleaseID{id}, epoch))
		r, err := s.Release(ctx, id)
		s.must(err)
		s.equal("state", r.State, ota.ReleaseSigned)
		s.equal("signed at", r.SignedAt, kept)
	}},
	{"superseded snapshots and timestamps are dropped", func(s *suite) {
		roles := []fleet.Role{fleet.RoleRoot, fleet.RoleTargets, fleet.RoleSnapshot, fleet.RoleTimestamp}
		const last = fleet.KeptMetadata + 5
		for v := int64(1); v <= last; v++ {
			var files []fleet.Metadata
			for _, role := range roles {
				files = append(files, fleet.Metadata{Role: role, Version: v, Bytes: []byte(fmt.Sprint(role, v))})
			}
			s.must(s.PublishMetadata(ctx, files, nil, epoch))
		}
		for i, role := range roles {
			newest, err := s.Metadata(ctx, role, 0)
			s.must(err)
			s.equal("newest", newest.Version, int64(last))
			var kept []int64
			for v := int64(1); v <= last; v++ {
				if m, err := s.Metadata(ctx, role, v); err == nil {
					s.equal("bytes", string(m.Bytes), fmt.Sprint(role, v))
					kept = append(kept, v)
				} else {
					s.wantErr(err, fleet.ErrNotFound)
				}
			}
			s.equal("oldest "+string(role), kept[0], []int64{1, 1, 6, 6}[i])
			s.equal("kept "+string(role), len(kept), int(last-kept[0]+1))
		}
		err := s.PublishMetadata(ctx, []fleet.Metadata{{Role: fleet.RoleTimestamp, Version: 1}}, nil, epoch)
		s.wantErr(err, fleet.ErrStale)
	}},
	{"of many that publish one version, one wins", func(s *suite) {
		errs := together(10, func(i int) error {
			return s.PublishMetadata(ctx, []fleet.Metadata{{Role: fleet.RoleTimestamp, Version: 1, Bytes: []byte{byte(i)}}}, nil, epoch)
		})
		s.equal("winners", s.wins(errs, fleet.ErrStale), 1)
	}},
}
