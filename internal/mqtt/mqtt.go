// Package mqtt is otad's side of MQTT: one small port to a broker, with the
// adapters broker (embedded) and external (both pass brokertest), and Endpoint, which
// turns the device topics into calls of fleet and its answers into publishes.
//
// The broker is not a queue for us: the database is. A message that is lost is
// repaired when the device asks again.
package mqtt

import (
	"context"
	"time"
)

// Message is one publish, in or out.
type Message struct {
	Topic   string
	Payload []byte
	QoS     byte // 0 or 1
	// Sender is who the broker knows the message to be from, as its credentials
	// say: a device id, or an enrollment token's id of a device that is yet to be
	// provisioned. Empty where the broker does not tell, and on the way out.
	Sender string
	// Origin is the broker's own, for Reply. In an answer that is published it is that
	// of the request: with a broker that knows it, who asked has to have room.
	Origin any
	// ResponseTopic and CorrelationData are those of MQTT 5, empty for 3.1.1.
	ResponseTopic   string
	CorrelationData []byte
	Expiry          time.Duration // 0: none
	// Hint: whoever is away will ask when it is back, so that it is not worth a place
	// in a store, where the broker is told. Only on the way out.
	Hint bool
	// Trace is the request's id for logs, the user property TraceProperty of MQTT
	// 5. Empty: none, or not one that may stand in a log.
	Trace string
}

// TraceProperty is the user property of a request's trace id.
const TraceProperty = "trace-id"

// Handler takes one message. A nil error is what makes the PUBACK of a QoS 1
// message: acknowledged means done. On an error the message stays
// unacknowledged, so the client sends it again. Messages of one topic are
// handed over in order, one after the other; messages of different devices
// come concurrently.
type Handler func(ctx context.Context, m Message) error

// PresenceHandler hears that a device came or went. reason is empty on connect.
type PresenceHandler func(deviceID string, connected bool, reason string, at time.Time)

// Identity is who a connection belongs to, as its credentials say.
type Identity struct {
	// Name is a device id or, for a device that is yet to be provisioned, an
	// enrollment token's id. Messages carry it as Sender.
	Name string
	// Device: Name is a device id, the client id must be the same, and presence is
	// told. Otherwise any client id goes, in a space of its own; so it is with a
	// device's companions (CompanionIDs).
	Device bool
	// Passing: it has no session beyond its connection, whatever it asks for. So it
	// is with a device that is yet to be provisioned, whose credentials many share.
	Passing bool
	Access  Access
	// Until is when its JWT is over, and Voucher by what that was believed, if not by
	// a key of the device itself: the connection ends with either, and no other one of
	// the device does. Zero: it came with another credential.
	Until   time.Time
	Voucher string
}

// Access says which topics one connection may use; everything else is denied.
// Its methods are pure and quick, as they are asked for every message.
type Access interface {
	MayPublish(topic string) bool    // wills and retained messages included
	MaySubscribe(filter string) bool // of a shared subscription: the filter behind $share/NAME/
	// MayReceive is asked of the topic before a message goes out because of a
	// subscription, live, queued or retained. A filter with wildcards that was
	// accepted may reach further than the connection may hear: such a message is
	// passed over as if it did not match. Not asked for Reply.
	MayReceive(topic string) bool
}

// Sessions is what a Broker knows of its clients. It is a part of Broker, not
// something that one may be besides: what is wrapped around a broker, for metrics or
// admission, would lose it without a word.
type Sessions interface {
	// Listening reports whether a message on topic has anybody to go to: a
	// session, connected or kept for one that comes back, with a filter that
	// matches. A subscription that is acknowledged is seen. It is asked for every
	// message, so it is quick. True of a broker that can not tell.
	Listening(topic string) bool
	// Evict ends the connections that e is about and tells an MQTT 5 client the
	// reason. They may come back; to keep them out, refuse them first. It does not
	// wait.
	Evict(e Eviction)
}

// Eviction says that the connections of a device and its companions have to end, or
// those that came by a Voucher.
type Eviction struct {
	DeviceID string
	Voucher  string // of Identity; DeviceID is empty then
	Reason   string
	At       time.Time // those that began later stay, where the broker can tell
	Forget   bool      // sessions end too, with what waits in them, connected or not
}

// Broker is the port.
type Broker interface {
	// Subscribe hands every message that matches one of the filters to h until
	// ctx ends or the broker is closed. It returns once the subscription is
	// active. A message that matches several filters is handed over once.
	// Replicas of otad share the messages. Called once per Broker.
	Subscribe(ctx context.Context, filters []string, h Handler) error
	// Publish sends m; for QoS 1 it returns after the broker took it over. That some
	// of those who are subscribed have no room for it is no error, as long as m answers
	// none of them.
	// Publishing is allowed from within a Handler.
	Publish(ctx context.Context, m Message) error
	// Reply sends answer to whoever sent request, and to nobody else where the
	// broker can do that, even without a subscription; otherwise it is Publish.
	// request is a Message as the Handler got it. Nobody there any more is not
	// an error: the answer has no other taker.
	Reply(ctx context.Context, request, answer Message) error
	Sessions
	// Close ends the connections and waits for running handlers. Idempotent.
	Close() error
}
