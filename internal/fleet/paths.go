package fleet

import (
	"context"
	"errors"
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
	return newWays(release, releases)
}

// newWays is waysTo among these releases.
func newWays(release ota.Release, releases []ota.Release) (*ways, error) {
	if len(release.Needs()) == 0 {
		return nil, nil
	}
	w := &ways{images: map[ota.ReleaseID]string{}}
	for _, r := range releases {
		w.images[r.ID()] = r.ImageDigest
	}
	var err error
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
// drifted, whose path leads over a release that is not signed any more, or that had no
// way, goes another way from what it runs. One for which there is none is offered
// nothing, see ota.Strand.
func (s *Service) following(ctx context.Context, r ota.Rollout, due []ota.Execution) ([]ota.Execution, error) {
	d := detours{service: s, rollout: r}
	var list []ota.Execution
	for _, e := range due {
		next, err := d.follow(ctx, e)
		if err != nil {
			return nil, err
		}
		next.RolloutID = r.ID
		list = append(list, next)
	}
	return list, nil
}

// detours finds other paths for devices of a rollout. What it takes is read once, when
// a device needs one.
type detours struct {
	service *Service
	rollout ota.Rollout
	known   bool
	ways    *ways
	signed  map[ota.ReleaseID]bool
}

func (d *detours) follow(ctx context.Context, e ota.Execution) (ota.Execution, error) {
	off := e.Class == ota.ClassDrifted || e.Stranded() // it stands where its path did not lead
	if d.rollout.RevertOf != "" || !off && len(e.Via) == 0 {
		return queued(ota.Follow(e, ota.Path{})), nil
	}
	if err := d.read(ctx); err != nil {
		return e, err
	}
	over, blocked := ota.ReleaseID{}, false
	if !off {
		over, blocked = ota.Blocked(e, func(id ota.ReleaseID) bool { return d.signed[id] })
	}
	if !blocked && (!off || d.ways == nil) {
		return queued(ota.Follow(e, ota.Path{})), nil
	}
	device, err := d.service.Store.Device(ctx, e.DeviceID)
	if err != nil {
		return e, err
	}
	digest, err := d.runs(ctx, e)
	if err != nil {
		return e, err
	}
	path := d.ways.from(device.Hardware, digest)
	switch {
	case path.Stay != "":
		return ota.Strand(e, path.Stay, over), nil
	case e.Class == ota.ClassDrifted:
		return queued(ota.Follow(e, path)), nil
	}
	return queued(ota.Detour(e, path)), nil
}

func queued(e ota.Execution) ota.Execution {
	e.Status = ota.Queued
	return e
}

func (d *detours) read(ctx context.Context) error {
	if d.known {
		return nil
	}
	releases, err := d.service.Store.Releases(ctx)
	if err != nil {
		return err
	}
	d.signed = map[ota.ReleaseID]bool{}
	for _, r := range releases {
		d.signed[r.ID()] = r.State == ota.ReleaseSigned
		if r.ID() == d.rollout.Release {
			d.ways, err = newWays(r, releases)
		}
	}
	d.known = err == nil
	return err
}

// runs is the digest of what the device of an attempt runs after it.
func (d *detours) runs(ctx context.Context, e ota.Execution) (string, error) {
	switch e.Class {
	case ota.ClassDrifted:
		return e.Runs, nil
	case ota.ClassUnderway:
		r, err := d.service.Store.Release(ctx, e.Release)
		return r.ImageDigest, err
	}
	doc, err := d.service.Store.Shadow(ctx, e.DeviceID, "")
	if errors.Is(err, ErrNoShadow) {
		return "", nil
	}
	return ReportedDigest(doc), err
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
