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

// previewPaths counts candidates by path, in the order in which the first of each
// gets its turn; none when every device takes the release at once.
func (j judge) previewPaths(list []ota.Candidate) []PathPreview {
	if j.ways == nil {
		return nil
	}
	var paths []PathPreview
	at := map[uint32]int{}
	for _, c := range list {
		i, ok := at[c.Path]
		if !ok {
			i = len(paths)
			at[c.Path], paths = i, append(paths, PathPreview{Via: j.routes.via[c.Path]})
		}
		paths[i].Devices++
		if len(paths[i].Sample) < previewSample {
			paths[i].Sample = append(paths[i].Sample, c.DeviceID)
		}
	}
	return paths
}

// load is how many bytes candidates download at the most, all together, and how many
// installs they make; a command is as many, and downloads nothing.
func (s *Service) load(ctx context.Context, j judge, list []ota.Candidate) (bytes int64, installs int, err error) {
	bytes, installs = int64(len(list))*(j.release.ObjectSize+j.release.IndexSize), len(list)
	for _, p := range j.previewPaths(list) {
		for _, id := range p.Via {
			r, err := s.Store.Release(ctx, id)
			if err != nil {
				return 0, 0, err
			}
			bytes += int64(p.Devices) * (r.ObjectSize + r.IndexSize)
			installs += p.Devices
		}
	}
	return bytes, installs, nil
}
