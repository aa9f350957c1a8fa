package fleet

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"
)

// presence holds who is connected here and what was heard of devices since it
// was last written to the store: once a minute, all together, not per message.
type presence struct {
	replica string
	started time.Time
	mu      sync.Mutex
	live    map[string]time.Time  // device -> when it connected to this replica
	seen    map[string]time.Time  // when each was last heard of
	heard   map[string]Connection // who came and went
	others  map[string]time.Time  // replicas and when they last beat
	beating map[string]bool       // those of them that were not silent at the last look
}

func newPresence(now time.Time) *presence {
	return &presence{
		replica: newID("r"), started: now, live: map[string]time.Time{}, seen: map[string]time.Time{},
		heard: map[string]Connection{}, others: map[string]time.Time{},
	}
}

// SeenInterval is how often presence is written to the store.
const SeenInterval = time.Minute

// ReasonRestarted is why a device went whose broker did.
const ReasonRestarted = "server restarted"

// BrokerStarts records that nobody is connected any more: the broker of this process
// is the only one there may be, and it has nobody yet.
func (s *Service) BrokerStarts(ctx context.Context) error {
	return s.Store.EndConnections(ctx, ReasonRestarted, s.Now())
}

// Presence records that a device connected or went, and why. It fits
// mqtt.PresenceHandler. The end of what a deleted device had says nothing of who has
// the id now.
func (s *Service) Presence(deviceID string, connected bool, reason string, at time.Time) {
	p := s.presence
	p.mu.Lock()
	defer p.mu.Unlock()
	if !connected && reason == EvictedDeleted {
		delete(p.live, deviceID)
		return
	}
	c := Connection{Connected: connected, Since: at, Replica: p.replica, Began: at}
	if connected {
		p.live[deviceID] = at
	} else {
		if began, ok := p.live[deviceID]; ok {
			c.Began = began
		}
		c.Reason = shortened(reason)
		delete(p.live, deviceID)
	}
	p.heard[deviceID] = c
	p.saw(deviceID, at)
	s.Log.Debug("device presence", "device", deviceID, "connected", connected, "reason", reason)
}

// shortened makes a reason, which may be a device's own words, fit to keep.
func shortened(reason string) string {
	reason = strings.ToValidUTF8(strings.Map(printable, reason), "?")
	if len(reason) > MaxReasonBytes {
		reason = strings.ToValidUTF8(reason[:MaxReasonBytes], "")
	}
	return reason
}

func printable(r rune) rune {
	if r < ' ' || r == 0x7f {
		return ' '
	}
	return r
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

// Reachability says what is known of a device as it was read, and since when.
//
// What this replica heard counts before what is stored. That a replica said a
// device is connected counts while that replica lives; after that a device is unknown
// until it is heard of, by a connection or by any message. With the embedded broker
// its connection is all that counts, and at a start nobody has one (BrokerStarts).
func (s *Service) Reachability(d Device) (Reachability, Connection) {
	p := s.presence
	p.mu.Lock()
	defer p.mu.Unlock()
	c := d.Connection
	if since, ok := p.live[d.ID]; ok && !since.Before(c.Began) {
		return Online, Connection{Connected: true, Since: since, Replica: p.replica, Began: since}
	}
	if here, ok := p.heard[d.ID]; ok && here.Overrides(c) {
		c = here
	}
	switch {
	case !c.Known():
		return Unknown, c
	case !c.Connected || c.Replica == p.replica: // by this replica, but it is not live
		return Offline, c
	case s.Now().Sub(p.others[c.Replica]) < ReplicaSilence:
		return Online, c
	case p.seen[d.ID].After(p.started), d.LastSeen.After(p.started): // whoever said so is gone, the device is not
		return Online, c
	}
	return Unknown, c
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

// RunPresence writes what was heard until ctx ends, and once more then.
func (s *Service) RunPresence(ctx context.Context) error {
	tick := time.NewTicker(SeenInterval)
	defer tick.Stop()
	for {
		if err := s.flushPresence(ctx); err != nil && ctx.Err() == nil {
			s.Log.Warn("presence was not written, trying again in a minute", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			return s.flushPresence(last)
		}
	}
}

func (s *Service) flushPresence(ctx context.Context) error {
	p := s.presence
	beat := s.Store.Beat(ctx, p.replica, s.Now())
	others, err := s.Store.Replicas(ctx)
	p.mu.Lock()
	gone := err == nil && p.meet(others, s.Now())
	seen, heard := p.seen, p.heard
	p.seen, p.heard = map[string]time.Time{}, map[string]Connection{}
	p.mu.Unlock()
	if gone { // whom it was about to tell of their jobs nobody knows
		s.notifier.add(telling{what: tellAnew, everyone: true})
	}
	return errors.Join(beat, err, s.flushSeen(ctx, seen), s.flushHeard(ctx, heard))
}

// meet takes in when the replicas last beat, and reports whether one has fallen
// silent; mu is held.
func (p *presence) meet(replicas map[string]time.Time, now time.Time) (gone bool) {
	beating := map[string]bool{}
	for name, at := range replicas {
		beating[name] = now.Sub(at) < ReplicaSilence
	}
	for name, was := range p.beating {
		gone = gone || was && !beating[name] && name != p.replica
	}
	p.others, p.beating = replicas, beating
	return gone
}

// flushSeen writes the times, or keeps them for the next try unless something
// newer came.
func (s *Service) flushSeen(ctx context.Context, seen map[string]time.Time) error {
	if len(seen) == 0 {
		return nil
	}
	err := s.Store.SeenDevices(ctx, seen)
	if err != nil {
		s.presence.mu.Lock()
		defer s.presence.mu.Unlock()
		for id, t := range seen {
			s.presence.saw(id, t)
		}
	}
	return err
}

func (s *Service) flushHeard(ctx context.Context, heard map[string]Connection) error {
	if len(heard) == 0 {
		return nil
	}
	err := s.Store.SaveConnections(ctx, heard)
	if err != nil {
		s.presence.mu.Lock()
		defer s.presence.mu.Unlock()
		for id, c := range heard {
			if _, newer := s.presence.heard[id]; !newer {
				s.presence.heard[id] = c
			}
		}
	}
	return err
}

// OnlineCount is the number of devices connected, as far as this replica knows.
func (s *Service) OnlineCount() int {
	s.presence.mu.Lock()
	defer s.presence.mu.Unlock()
	return len(s.presence.live)
}
