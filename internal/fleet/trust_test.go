package fleet_test

import (
	"context"
	"errors"
	"testing"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// beforeReleases is a store in which something happens just before the releases are
// read.
type beforeReleases struct {
	fleet.Store
	happens func()
}

func (s beforeReleases) Releases(ctx context.Context) ([]ota.Release, error) {
	s.happens()
	return s.Store.Releases(ctx)
}

// TestSigningAtTheSameTime: whoever signs while others do is told to sign again, and
// not that the release of the others is missing.
func TestSigningAtTheSameTime(t *testing.T) {
	w := newWorld(t)
	mine, index, err := w.draft("1.0", []byte("mine"))
	w.ok(err)
	theirs, theirIndex, err := w.draft("2.0", []byte("theirs"))
	w.ok(err)
	first, second := w.sign(mine, index), w.sign(theirs, theirIndex)
	store := w.s.Store
	w.s.Store = beforeReleases{store, func() {
		w.s.Store = store
		_, _, err := w.s.PublishTargets(w.ctx, second)
		w.ok(err)
	}}
	if _, _, err := w.s.PublishTargets(w.ctx, first); !errors.Is(err, fleet.ErrStale) {
		t.Errorf("%v, want ErrStale", err)
	}
	if _, _, err := w.s.PublishTargets(w.ctx, w.sign(mine, index)); err != nil {
		t.Error(err)
	}
}
