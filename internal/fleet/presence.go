package fleet

import (
	"context"
	"sync"
	"time"
)

// presence holds who is connected and when each device was last heard of. The
// times are written to the store once a minute, not per message.
type presence struct {
	mu     sync.Mutex
	online map[string]bool
	seen   map[string]time.Time
}

func newPresence() *presence {
	return &presence{online: map[string]bool{}, seen: map[string]time.Time{}}
}

// SeenInterval is how often last-seen times are written to the store.
const SeenInterval = time.Minute

// Presence records that a device connected or went. It fits
// mqtt.PresenceHandler.
func (s *Service) Presence(deviceID string, connected bool, reason string, at time.Time) {
	s.presence.mu.Lock()
	defer s.presence.mu.Unlock()
	if connected {
		s.presence.online[deviceID] = true
	} else {
		delete(s.presence.online, deviceID)
	}
	s.presence.saw(deviceID, at)
	s.Log.Debug("device presence", "device", deviceID, "connected", connected, "reason", reason)
}

// Seen records that a message of the device came.
func (s *Service) Seen(deviceID string, at time.Time) {
	s.presence.mu.Lock()
	defer s.presence.mu.Unlock()
	s.presence.saw(deviceID, at)
}

// saw raises the time; mu is held.
func (p *presence) saw(deviceID string, at time.Time) {
	if at.After(p.seen[deviceID]) {
		p.seen[deviceID] = at
	}
}

// Online reports whether the device is connected, as far as this replica knows.
func (s *Service) Online(deviceID string) bool {
	s.presence.mu.Lock()
	defer s.presence.mu.Unlock()
	return s.presence.online[deviceID]
}

// lastSeen returns the newer of the stored time and what was heard since.
func (s *Service) lastSeen(d Device) time.Time {
	s.presence.mu.Lock()
	defer s.presence.mu.Unlock()
	if t := s.presence.seen[d.ID]; t.After(d.LastSeen) {
		return t
	}
	return d.LastSeen
}

// RunPresence writes last-seen times until ctx ends, and once more then.
func (s *Service) RunPresence(ctx context.Context) error {
	tick := time.NewTicker(SeenInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := s.flushSeen(ctx); err != nil {
				s.Log.Warn("last-seen times were not written, trying again in a minute", "error", err)
			}
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			return s.flushSeen(last)
		}
	}
}

func (s *Service) flushSeen(ctx context.Context) error {
	s.presence.mu.Lock()
	seen := s.presence.seen
	s.presence.seen = map[string]time.Time{}
	s.presence.mu.Unlock()
	if len(seen) == 0 {
		return nil
	}
	err := s.Store.SeenDevices(ctx, seen)
	if err != nil { // keep them for the next try, unless something newer came
		s.presence.mu.Lock()
		defer s.presence.mu.Unlock()
		for id, t := range seen {
			s.presence.saw(id, t)
		}
	}
	return err
}

// OnlineCount is the number of devices connected, as far as this replica knows.
func (s *Service) OnlineCount() int {
	s.presence.mu.Lock()
	defer s.presence.mu.Unlock()
	return len(s.presence.online)
}
