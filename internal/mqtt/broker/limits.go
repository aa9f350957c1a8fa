package broker

import (
	"cmp"
	"time"
)

// The limits of a client unless Limits says otherwise (design: trust).
const (
	DefaultPacketBytes       = 256 << 10
	DefaultTopicLevels       = 8 // $aws/things/{id}/shadow/name/{n}/update/accepted has as many
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

// Limits bounds what one client may ask for. Zero values mean the defaults.
type Limits struct {
	PacketBytes       int           // of one packet, in and out
	TopicLevels       int           // of a topic name or filter
	TopicBytes        int           // of a topic name or filter
	ClientIDBytes     int           // of a client id, at most 300
	ReceiveMaximum    uint16        // QoS 1 and 2 publishes in flight from a client
	TopicAliases      uint16        // that a client may define on a connection
	Inflight          int           // QoS 1 and 2 publishes in flight to a client that allows as many, at most 15,000
	Queued            int           // messages that wait for a client, at most 50,000
	QueuedBytes       int           // their size; one message always fits
	SessionExpiry     time.Duration // a session without connection lives no longer
	KeepAlive         time.Duration // a silent client of MQTT 5 is dropped after 1.5 of it, at most 12 h; for older ones see askByTCP
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

func (l Limits) withDefaults() Limits {
	return Limits{
		PacketBytes:       cmp.Or(l.PacketBytes, DefaultPacketBytes),
		TopicLevels:       cmp.Or(l.TopicLevels, DefaultTopicLevels),
		TopicBytes:        min(cmp.Or(l.TopicBytes, DefaultTopicBytes), DefaultTopicBytes),
		ClientIDBytes:     min(cmp.Or(l.ClientIDBytes, DefaultClientIDBytes), DefaultClientIDBytes),
		ReceiveMaximum:    cmp.Or(l.ReceiveMaximum, DefaultReceiveMaximum),
		TopicAliases:      cmp.Or(l.TopicAliases, DefaultTopicAliases),
		Inflight:          min(cmp.Or(l.Inflight, DefaultInflight), maxInflight),
		Queued:            min(cmp.Or(l.Queued, DefaultQueued), maxQueued),
		QueuedBytes:       cmp.Or(l.QueuedBytes, DefaultQueuedBytes),
		SessionExpiry:     cmp.Or(l.SessionExpiry, DefaultSessionExpiry),
		KeepAlive:         min(cmp.Or(l.KeepAlive, DefaultKeepAlive), maxKeepAlive),
		Connections:       cmp.Or(l.Connections, DefaultConnections),
		Sessions:          cmp.Or(l.Sessions, DefaultSessions),
		Subscriptions:     cmp.Or(l.Subscriptions, DefaultSubscriptions),
		Retained:          cmp.Or(l.Retained, DefaultRetained),
		RetainedPerClient: cmp.Or(l.RetainedPerClient, DefaultRetainedPerClient),
		PacketRate:        cmp.Or(l.PacketRate, DefaultPacketRate),
		ByteRate:          cmp.Or(l.ByteRate, DefaultByteRate),
		ConnectRate:       cmp.Or(l.ConnectRate, DefaultConnectRate),
		FailureRate:       cmp.Or(l.FailureRate, DefaultFailureRate),
		ConnectTimeout:    cmp.Or(l.ConnectTimeout, DefaultConnectTimeout),
		WriteTimeout:      cmp.Or(l.WriteTimeout, DefaultWriteTimeout),
		StallTimeout:      cmp.Or(l.StallTimeout, DefaultStallTimeout),
	}
}
