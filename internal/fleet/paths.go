package fleet

import (
	"context"
	"strings"

	"github.com/otad/otad/pkg/ota"
)

// ways is how devices come to the release of a rollout: some may have to pass
// through others first. Nil: all take it at once.
type ways struct {
	paths  *ota.Paths
	images map[ota.ReleaseID]string // digests of the images
}

// waysTo returns the ways to a release. ErrInvalid: releases need each other in a
// circle.
func (s *Service) waysTo(ctx context.Context, release ota.Release) (*ways, error) {
	if len(release.Needs()) == 0 {
		return nil, nil
	}
	releases, err := s.Store.Releases(ctx)
	if err != nil {
		return nil, err
	}
	w := &ways{images: map[ota.ReleaseID]string{}}
	for _, r := range releases {
		w.images[r.ID()] = r.ImageDigest
	}
	w.paths, err = ota.NewPaths(release, releases)
	return w, err
}

// all are the ways of an Opening.
func (w *ways) all() []ota.Way {
	if w == nil {
		return nil
	}
	return append([]ota.Way{}, w.paths.Ways()...) // not nil: who has no way has no turn
}

// from is the path of a device.
func (w *ways) from(hardware, digest string) ota.Path {
	if w == nil {
		return ota.Path{}
	}
	return w.paths.From(ota.Position{Hardware: hardware, Digest: digest})
}

// passed are the digests of the images that devices may have to pass through.
func (w *ways) passed() map[string]bool {
	digests := map[string]bool{}
	for _, way := range w.all() {
		for _, id := range way.Via {
			digests[w.images[id]] = true
		}
	}
	return digests
}

// following returns the attempts that follow those that are due. A device that has
// drifted to where no path begins is given the release at once: the device refuses it
// and says why.
func (s *Service) following(ctx context.Context, r ota.Rollout, due []ota.Execution) ([]ota.Execution, error) {
	var w *ways
	var list []ota.Execution
	for _, e := range due {
		var anew ota.Path
		if e.Class == ota.ClassDrifted && r.RevertOf == "" {
			if w == nil {
				release, err := s.Store.Release(ctx, r.Release)
				if err == nil {
					w, err = s.waysTo(ctx, release)
				}
				if err != nil {
					return nil, err
				}
			}
			if w != nil {
				d, err := s.Store.Device(ctx, e.DeviceID)
				if err != nil {
					return nil, err
				}
				anew = w.from(d.Hardware, e.Runs)
			}
		}
		list = append(list, queued(r, ota.Follow(e, anew)))
	}
	return list, nil
}

// routes gives the paths of devices numbers, in the order in which they turn up.
type routes struct {
	numbers map[string]uint32
	via     [][]ota.ReleaseID
}

func (t *routes) number(via []ota.ReleaseID) uint32 {
	names := make([]string, len(via))
	for i, id := range via {
		names[i] = id.String()
	}
	key := strings.Join(names, " ")
	n, ok := t.numbers[key]
	if !ok {
		if t.numbers == nil {
			t.numbers = map[string]uint32{}
		}
		n = uint32(len(t.via))
		t.numbers[key], t.via = n, append(t.via, via)
	}
	return n
}
