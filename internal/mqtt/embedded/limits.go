package embedded

import (
	"cmp"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
)

// The limits of a device unless Limits says otherwise.
const (
	DefaultPacketBytes    = 256 << 10
	DefaultReceiveMaximum = 20
	DefaultSessionExpiry  = 7 * 24 * time.Hour
	DefaultKeepAlive      = 20 * time.Minute
	DefaultConnections    = 50_000
	DefaultSubscriptions  = 50
	// MaxTopicLevels is the depth of $aws/things/{id}/shadow/name/{n}/update/accepted,
	// the deepest topic there is.
	MaxTopicLevels = 8
)

const (
	connectTimeout  = 10 * time.Second // TLS handshake and CONNECT together
	writeTimeout    = 10 * time.Second // a client that does not read for so long is gone
	farewellTimeout = time.Second      // for the DISCONNECT before a connection is dropped

	ioBufferSize     = 2 << 10
	pendingWrites    = 256 // packets to a client that is slow to read; more are dropped
	unacknowledged   = 256 // QoS 1 packets to a device that does not acknowledge
	messageExpiry    = 24 * time.Hour
	sysTopicInterval = 24 * 60 * 60 // seconds; nobody may subscribe to $SYS
)

// Limits bounds what one device may ask for. Zero values mean the defaults.
type Limits struct {
	PacketBytes    int           // of one packet, in and out
	ReceiveMaximum uint16        // QoS 1 publishes in flight from a client
	SessionExpiry  time.Duration // a session without connection lives no longer
	KeepAlive      time.Duration // a silent client is dropped after 1.5 of it, at most 12 h
	Connections    int           // of all devices; more are refused with "server busy"
	Subscriptions  int           // filters of one device
}

func (l Limits) withDefaults() Limits {
	return Limits{
		PacketBytes:    cmp.Or(l.PacketBytes, DefaultPacketBytes),
		ReceiveMaximum: cmp.Or(l.ReceiveMaximum, DefaultReceiveMaximum),
		SessionExpiry:  cmp.Or(l.SessionExpiry, DefaultSessionExpiry),
		KeepAlive:      min(cmp.Or(l.KeepAlive, DefaultKeepAlive), 12*time.Hour),
		Connections:    cmp.Or(l.Connections, DefaultConnections),
		Subscriptions:  cmp.Or(l.Subscriptions, DefaultSubscriptions),
	}
}

func (l Limits) capabilities() *mochi.Capabilities {
	c := mochi.NewDefaultServerCapabilities()
	c.MaximumClients = int64(l.Connections)
	c.MaximumMessageExpiryInterval = int64(messageExpiry / time.Second)
	c.MaximumClientWritesPending = pendingWrites
	c.MaximumSessionExpiryInterval = uint32(l.SessionExpiry / time.Second)
	c.MaximumPacketSize = uint32(l.PacketBytes)
	c.ReceiveMaximum = l.ReceiveMaximum
	c.MaximumInflight = unacknowledged
	c.TopicAliasMaximum = 0
	c.SharedSubAvailable = 0
	c.RetainAvailable = 0
	c.MaximumQos = 1
	c.MinimumProtocolVersion = 4
	c.Compatibilities.NoInheritedPropertiesOnAck = true
	return c
}
