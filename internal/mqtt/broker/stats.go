package broker

import "sync/atomic"

type counters struct {
	received, sent, dropped, missed, refused, slowed, bytesOut atomic.Uint64
}

// Stats are figures of the broker, as other brokers publish them below $SYS.
type Stats struct {
	Connections   int    // now
	Sessions      int    // with and without connection
	Subscriptions int    // of all sessions
	Queued        int    // messages that wait or are in flight
	Retained      int    // messages
	Received      uint64 // packets
	Sent          uint64 // publishes
	Dropped       uint64 // publishes of QoS 0 for which there was no room
	Missed        uint64 // messages of otad itself for which a client had no room
	Refused       uint64 // connections
	Slowed        uint64 // times that a client was ahead of its rates and had to wait
	BytesSent     uint64
}

// Stats reads the figures. It looks at every session.
func (b *Broker) Stats() Stats {
	s := Stats{
		Retained: b.retained.size(), Received: b.stats.received.Load(), Sent: b.stats.sent.Load(),
		Dropped: b.stats.dropped.Load(), Missed: b.stats.missed.Load(),
		Refused: b.stats.refused.Load(), Slowed: b.stats.slowed.Load(), BytesSent: b.stats.bytesOut.Load(),
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	s.Sessions = len(b.sessions)
	for _, x := range b.sessions {
		x.mu.Lock()
		if x.conn != nil {
			s.Connections++
		}
		s.Subscriptions += len(x.subs)
		s.Queued += len(x.queue) - x.head + len(x.inflight)
		x.mu.Unlock()
	}
	return s
}
