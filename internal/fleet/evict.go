package fleet

import (
	"context"
	"errors"
	"maps"
	"sync"
	"time"
)

// EvictionPoll is how often a replica looks for devices whose sessions have to
// end: revoked or with a credential less, by whichever replica, or with a JWT of an
// issuer that is gone. With the time to drop a session it stays under 5 s. That a JWT
// has expired the broker sees by itself, see Admission.Until.
const EvictionPoll = 2 * time.Second

// evictionLookback is how far back it looks each time: further than the clocks
// of replicas are apart and a commit takes.
const evictionLookback = 5 * time.Minute

// Reasons that a device's session is ended with.
const (
	EvictedRevoked    = "revoked"
	EvictedDeleted    = "deleted"
	EvictedCredential = "its credentials changed"
	EvictedIssuer     = "its JWT's issuer is not trusted any more"
)

// Eviction says that sessions of the device, or those that a voucher let in, have to
// end if they began at At or before.
type Eviction struct {
	DeviceID string
	Voucher  string // see Admission; DeviceID is empty then
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

// vouchers are those that let somebody in here, and when the last one was.
type vouchers struct {
	mu sync.Mutex
	of map[string]time.Time
}

func newVouchers() *vouchers { return &vouchers{of: map[string]time.Time{}} }

func (v *vouchers) note(voucher string, now time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.of[voucher] = now
}

func (v *vouchers) empty() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return len(v.of) == 0
}

// loginTime is longer than a login takes that was under way when its issuer went.
const loginTime = time.Minute

// gone returns those that are not trusted any more, again and again until nobody can
// come in by a login that was under way.
func (v *vouchers) gone(now time.Time, trusted map[string]bool) (out []Eviction) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for voucher, last := range v.of {
		if trusted[voucher] {
			continue
		}
		out = append(out, Eviction{Voucher: voucher, Reason: EvictedIssuer, At: now})
		if now.Sub(last) > loginTime {
			delete(v.of, voucher)
		}
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
	return s.evictVouched(ctx)
}

// evictVouched ends the sessions of issuers that are trusted no more, or not as they
// were then.
func (s *Service) evictVouched(ctx context.Context) error {
	if s.vouchers.empty() {
		return nil
	}
	issuers, err := s.Store.Issuers(ctx)
	if err != nil {
		return err
	}
	trusted := map[string]bool{}
	for _, i := range issuers {
		trusted[i.voucher()] = true
	}
	for _, e := range s.vouchers.gone(s.Now(), trusted) {
		s.Publisher.Evict(e)
	}
	return nil
}
