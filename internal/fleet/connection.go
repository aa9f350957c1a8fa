package fleet

import "time"

// Connection is what was last heard about whether a device is connected. The
// zero value: nothing was.
type Connection struct {
	Connected bool
	Since     time.Time // when it came or went
	Reason    string    // why it went; empty while it is connected
	// Replica is the otad that heard it, by a name that each start makes anew.
	Replica string
	// Began is when the connection began that this is about: Since while it lasts,
	// and where nobody knows.
	Began time.Time
}

// Known reports whether anything was heard.
func (c Connection) Known() bool { return !c.Since.IsZero() }

// Overrides reports whether c replaces what is stored. A device that moves from
// one replica to another is told of by both, in any order: the newest connection
// counts, whenever the older one was found to have ended.
func (c Connection) Overrides(stored Connection) bool { return !c.Began.Before(stored.Began) }

// Limits of presence.
const (
	MaxReasonBytes = 200
	// ReplicaSilence is how long a replica may say nothing before what it said
	// about devices counts as unknown: it beats every SeenInterval.
	ReplicaSilence = 3 * SeenInterval
	// ReplicaMemory is how long a replica is remembered.
	ReplicaMemory = 24 * time.Hour
)

// Reachability is whether a device can be reached, in one word.
type Reachability string

// A device is online, offline or, when it was never heard of or whoever knew has
// gone, unknown until it is heard of.
const (
	Online  Reachability = "online"
	Offline Reachability = "offline"
	Unknown Reachability = "unknown"
)
