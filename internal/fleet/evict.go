package fleet

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"
)

// EvictionPoll is how often a replica looks for devices whose sessions have to
// end: revoked or with a credential less, by whichever replica, or with a JWT
// that has expired. With the time to drop a session it stays under 5 s.
const EvictionPoll = 2 * time.Second

// evictionLookback is how far back it looks each time: further than the clocks
// of replicas are apart and a commit takes.
const evictionLookback = 5 * time.Minute

// Reasons that a device's session is ended with.
const (
	EvictedRevoked    = "revoked"
	EvictedDeleted    = "deleted"
	EvictedCredential = "its credentials changed"
	EvictedExpired    = "its JWT has expired"
	EvictedIssuer     = "its JWT's issuer is not trusted any more"
)

// Eviction says that sessions of the device that began at At or before have to end.
type Eviction struct {
	DeviceID string
	Reason   string
	At       time.Time
}

// evictions are those that this process had carried out as soon as they were
// stored, by device, with the moment after that as At. A login that was under way at
// Eviction.At may have seen what was there before, so it is this moment that a
// session has to begin after.
type evictions struct {
	mu sync.Mutex
	of map[string]Eviction
}

func newEvictions() *evictions { return &evictions{of: map[string]Eviction{}} }

func (v *evictions) note(e Eviction) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.of[e.DeviceID] = e
}

// moment returns when the sessions that e ends have begun at the latest.
func (v *evictions) moment(e Eviction) time.Time {
	v.mu.Lock()
	defer v.mu.Unlock()
	if here := v.of[e.DeviceID]; here.Reason == e.Reason && here.At.After(e.At) {
		return here.At
	}
	return e.At
}

func (v *evictions) dropBefore(t time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	maps.DeleteFunc(v.of, func(_ string, e Eviction) bool { return e.At.Before(t) })
}

// evictNow ends the device's sessions as of now, which is after what ends them was
// stored.
func (s *Service) evictNow(deviceID, reason string) {
	e := Eviction{DeviceID: deviceID, Reason: reason, At: s.Now()}
	s.evictions.note(e)
	s.Publisher.Evict(e)
}

// bearers are the devices whose sessions began with a JWT.
type bearers struct {
	mu sync.Mutex
	of map[string]bearer
}

func newBearers() *bearers { return &bearers{of: map[string]bearer{}} }

// note keeps what the device came with last.
func (b *bearers) note(deviceID string, with bearer) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if with.until.IsZero() {
		delete(b.of, deviceID)
	} else {
		b.of[deviceID] = with
	}
}

func (b *bearers) empty() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.of) == 0
}

// over forgets and returns the devices whose time is over.
func (b *bearers) over(now time.Time, trusted map[string]bool) (out []Eviction) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, with := range b.of {
		switch {
		case !now.Before(with.until.Add(JWTLeeway)):
			out = append(out, Eviction{DeviceID: id, Reason: EvictedExpired, At: now})
		case with.issuer != "" && !trusted[with.issuer]:
			out = append(out, Eviction{DeviceID: id, Reason: EvictedIssuer, At: now})
		default:
			continue
		}
		delete(b.of, id)
	}
	return out
}

// RunEvictions ends sessions until ctx ends.
func (s *Service) RunEvictions(ctx context.Context) error {
	tick := time.NewTicker(EvictionPoll)
	defer tick.Stop()
	done := map[string]time.Time{} // device -> At of the eviction that was carried out
	if err := s.forgetDeleted(ctx, done); err != nil && ctx.Err() == nil {
		s.Log.Warn("sessions of devices deleted meanwhile were not ended", "error", err)
	}
	for {
		if err := s.evict(ctx, done); err != nil && ctx.Err() == nil {
			s.Log.Warn("evictions were not read, trying again in a moment", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// forgetDeleted ends the sessions of devices that were deleted while nobody here
// could. One that has come anew since keeps its own: when a session began that
// outlived a restart, nobody knows.
func (s *Service) forgetDeleted(ctx context.Context, done map[string]time.Time) error {
	list, err := s.Store.Evictions(ctx, s.Now().Add(-DeletionMemory))
	if err != nil {
		return err
	}
	for _, e := range list {
		if e.Reason != EvictedDeleted {
			continue
		}
		if _, err := s.Store.Device(ctx, e.DeviceID); errors.Is(err, ErrNotFound) {
			s.Publisher.Evict(e)
		} else if err != nil {
			return err
		}
		done[e.DeviceID] = e.At
	}
	return nil
}

func (s *Service) evict(ctx context.Context, done map[string]time.Time) error {
	since := s.Now().Add(-evictionLookback)
	list, err := s.Store.Evictions(ctx, since)
	if err != nil {
		return err
	}
	for _, e := range list {
		if done[e.DeviceID].Equal(e.At) {
			continue
		}
		done[e.DeviceID] = e.At
		e.At = s.evictions.moment(e)
		s.Publisher.Evict(e)
	}
	s.evictions.dropBefore(since)
	for id, at := range done {
		if at.Before(since) {
			delete(done, id)
		}
	}
	return s.expireBearers(ctx)
}

// expireBearers ends the sessions of JWTs that are good no more.
func (s *Service) expireBearers(ctx context.Context) error {
	if s.bearers.empty() {
		return nil
	}
	issuers, err := s.Store.Issuers(ctx)
	if err != nil {
		return err
	}
	trusted := map[string]bool{}
	for _, i := range issuers {
		trusted[i.Name] = true
	}
	for _, e := range s.bearers.over(s.Now(), trusted) {
		s.Publisher.Evict(e)
	}
	return nil
}
