package memstore

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"github.com/otad/otad/internal/fleet"
)

// attempt names one attempt of a rollout on a device.
type attempt struct {
	rollout, device string
	number          int
}

func attemptOf(u fleet.Upload) attempt { return attempt{u.RolloutID, u.DeviceID, u.Attempt} }

// PutUpload implements fleet.UploadStore.
func (s *Store) PutUpload(ctx context.Context, u fleet.Upload) error {
	return s.locked(ctx, func() error {
		if n := len(s.executions[u.RolloutID][u.DeviceID]); u.Attempt < 1 || u.Attempt > n {
			return notFound("attempt %d of rollout %s on device %s", u.Attempt, u.RolloutID, u.DeviceID)
		}
		u.At = stored(u.At)
		s.uploads[attemptOf(u)] = u
		return nil
	})
}

// Uploads implements fleet.UploadStore.
func (s *Store) Uploads(ctx context.Context, f fleet.UploadFilter, limit int) (list []fleet.Upload, err error) {
	err = s.locked(ctx, func() error {
		for u := range maps.Values(s.uploads) {
			if u.Bytes != fleet.UploadBegun && (f.RolloutID == "" || u.RolloutID == f.RolloutID) &&
				(f.DeviceID == "" || u.DeviceID == f.DeviceID) && byPlace(u, f.After) > 0 {
				list = append(list, u)
			}
		}
		slices.SortFunc(list, byPlace)
		list = list[:min(limit, len(list))]
		return nil
	})
	return list, err
}

func byPlace(a, b fleet.Upload) int {
	return cmp.Or(cmp.Compare(a.RolloutID, b.RolloutID), cmp.Compare(a.DeviceID, b.DeviceID), cmp.Compare(a.Attempt, b.Attempt))
}

// OldUploads implements fleet.UploadStore.
func (s *Store) OldUploads(ctx context.Context, before time.Time, kept, limit int) (old []fleet.Upload, err error) {
	err = s.locked(ctx, func() error {
		all := slices.SortedFunc(maps.Values(s.uploads), func(a, b fleet.Upload) int {
			return cmp.Or(b.At.Compare(a.At), byPlace(b, a)) // the newest first
		})
		seen := map[string]int{}
		for _, u := range all {
			if seen[u.DeviceID]++; !u.At.After(stored(before)) || seen[u.DeviceID] > kept {
				old = append(old, u)
			}
		}
		slices.SortFunc(old, func(a, b fleet.Upload) int { return cmp.Or(a.At.Compare(b.At), byPlace(a, b)) })
		old = old[:min(limit, len(old))]
		return nil
	})
	return old, err
}

// DropUpload implements fleet.UploadStore.
func (s *Store) DropUpload(ctx context.Context, u fleet.Upload) error {
	return s.locked(ctx, func() error {
		if kept, ok := s.uploads[attemptOf(u)]; ok && kept.At.Equal(stored(u.At)) {
			delete(s.uploads, attemptOf(u))
		}
		return nil
	})
}

func (s *Store) checkUploads(say func(string, ...any)) {
	for a := range s.uploads {
		if n := len(s.executions[a.rollout][a.device]); a.number < 1 || a.number > n {
			say("upload of attempt %d of %d of rollout %s on device %s", a.number, n, a.rollout, a.device)
		}
	}
}
