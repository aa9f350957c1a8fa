package broker

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/otad/otad/internal/mqtt"
)

// The limits of a client unless Limits says otherwise (design: trust).
const (
	DefaultPacketBytes       = 256 << 10
	DefaultTopicLevels       = mqtt.MaxTopicLevels // $aws/things/{id}/shadow/name/{n}/update/accepted has as many
	DefaultTopicBytes        = 480
	DefaultClientIDBytes     = 256
	DefaultReceiveMaximum    = 20
	DefaultTopicAliases      = 16
	DefaultInflight          = 64
	DefaultQueued            = 1000
	DefaultQueuedBytes       = 4 << 20
	DefaultSessionExpiry     = 7 * 24 * time.Hour
	DefaultKeepAlive         = 20 * time.Minute
	DefaultConnections       = 50_000
	DefaultSessions          = 100
	DefaultSubscriptions     = 50
	DefaultRetained          = 100_000
	DefaultRetainedPerClient = 50
	DefaultPacketRate        = 500
	DefaultByteRate          = 1 << 20
	DefaultConnectRate       = 5
	DefaultFailureRate       = 5
	DefaultConnectTimeout    = 10 * time.Second
	DefaultWriteTimeout      = 10 * time.Second
	DefaultStallTimeout      = 10 * time.Second
)

// packetIDs is how many packet identifiers there are (2.2.1). What waits for a
// client and what is in flight to it have one each; together the two bounds leave
// some free.
const (
	packetIDs   = 65_535
	maxQueued   = 50_000
	maxInflight = 15_000
)

// maxKeepAlive keeps 1.5 of it within a day.
const maxKeepAlive = 12 * time.Hour

// farewellTimeout is for the DISCONNECT before a connection is dropped.
const farewellTimeout = time.Second

// Limits bounds what one client may ask for. Zero values mean the defaults; what is
// above the most of its Setting means the most.
type Limits struct {
	PacketBytes       int           // of one packet, in and out
	TopicLevels       int           // of a topic name or filter
	TopicBytes        int           // of a topic name or filter
	ClientIDBytes     int           // of a client id
	ReceiveMaximum    uint16        // QoS 1 and 2 publishes in flight from a client
	TopicAliases      uint16        // that a client may define on a connection
	Inflight          int           // QoS 1 and 2 publishes in flight to a client that allows as many
	Queued            int           // messages that wait for a client
	QueuedBytes       int           // their size; one message always fits
	SessionExpiry     time.Duration // a session without connection lives no longer
	KeepAlive         time.Duration // a silent client of MQTT 5 is dropped after 1.5 of it; for older ones see askByTCP
	Connections       int           // of all clients; more are refused with "server busy"
	Sessions          int           // with an expiry, of one name that is no device
	Subscriptions     int           // filters of one session
	Retained          int           // retained messages of all
	RetainedPerClient int           // retained messages of one name
	PacketRate        int           // packets a second from a client, acknowledgements of its messages excepted; 2 s of it at once
	ByteRate          int           // bytes a second from a client; 2 s of it at once
	ConnectRate       int           // connections a second of one client, 20 times that of one name that is no device; 10 s of it at once
	FailureRate       int           // connections a second of an address that come to nothing; 10 s of it at once
	ConnectTimeout    time.Duration // TLS handshake and CONNECT together
	WriteTimeout      time.Duration // a client that does not read for so long is gone
	StallTimeout      time.Duration // a client whose queue stays full for so long is dropped
}

// Setting is one of Limits as an operator sets it: --mqtt-limit NAME=VALUE.
type Setting struct {
	Name    string
	Field   any   // *int, *uint16 or *time.Duration
	Default int64 // nanoseconds of a time
	Most    int64
}

// Settings are all limits of l.
func (l *Limits) Settings() []Setting {
	const any, ever = math.MaxInt32, math.MaxInt64
	return []Setting{
		{"packet-bytes", &l.PacketBytes, DefaultPacketBytes, any},
		{"topic-levels", &l.TopicLevels, DefaultTopicLevels, mqtt.MaxTopicLevels},
		{"topic-bytes", &l.TopicBytes, DefaultTopicBytes, DefaultTopicBytes},
		{"client-id-bytes", &l.ClientIDBytes, DefaultClientIDBytes, DefaultClientIDBytes},
		{"receive-maximum", &l.ReceiveMaximum, DefaultReceiveMaximum, math.MaxUint16},
		{"topic-aliases", &l.TopicAliases, DefaultTopicAliases, math.MaxUint16},
		{"inflight", &l.Inflight, DefaultInflight, maxInflight},
		{"queued", &l.Queued, DefaultQueued, maxQueued},
		{"queued-bytes", &l.QueuedBytes, DefaultQueuedBytes, any},
		{"session-expiry", &l.SessionExpiry, int64(DefaultSessionExpiry), ever},
		{"keep-alive", &l.KeepAlive, int64(DefaultKeepAlive), int64(maxKeepAlive)},
		{"connections", &l.Connections, DefaultConnections, any},
		{"sessions", &l.Sessions, DefaultSessions, any},
		{"subscriptions", &l.Subscriptions, DefaultSubscriptions, any},
		{"retained", &l.Retained, DefaultRetained, any},
		{"retained-per-client", &l.RetainedPerClient, DefaultRetainedPerClient, any},
		{"packet-rate", &l.PacketRate, DefaultPacketRate, any},
		{"byte-rate", &l.ByteRate, DefaultByteRate, any},
		{"connect-rate", &l.ConnectRate, DefaultConnectRate, any},
		{"failure-rate", &l.FailureRate, DefaultFailureRate, any},
		{"connect-timeout", &l.ConnectTimeout, int64(DefaultConnectTimeout), ever},
		{"write-timeout", &l.WriteTimeout, int64(DefaultWriteTimeout), ever},
		{"stall-timeout", &l.StallTimeout, int64(DefaultStallTimeout), ever},
	}
}

func (l Limits) withDefaults() Limits {
	for _, s := range l.Settings() {
		switch f := s.Field.(type) {
		case *int:
			complete(f, s)
		case *uint16:
			complete(f, s)
		case *time.Duration:
			complete(f, s)
		}
	}
	return l
}

func complete[T int | uint16 | time.Duration](f *T, s Setting) {
	*f = min(cmp.Or(*f, T(s.Default)), T(s.Most))
}

// raise ends the text about limits that somebody went beyond: what else helps, as
// far as they can be raised.
func (l *Limits) raise(names ...string) string {
	var can []string
	for _, s := range l.Settings() {
		if slices.Contains(names, s.Name) && s.value() < s.Most {
			can = append(can, s.Name+"=N")
		}
	}
	if can == nil {
		return ""
	}
	return ", or raise it (--mqtt-limit " + strings.Join(can, ",") + ")"
}

func (s Setting) value() int64 {
	switch f := s.Field.(type) {
	case *int:
		return int64(*f)
	case *uint16:
		return int64(*f)
	case *time.Duration:
		return int64(*f)
	}
	return 0
}
