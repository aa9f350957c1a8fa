// Package mqtt is otad's side of MQTT: one small port to a broker, with the
// adapters embedded and external (both pass brokertest), and Endpoint, which
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
	// ResponseTopic and CorrelationData are those of MQTT 5, empty for 3.1.1.
	ResponseTopic   string
	CorrelationData []byte
	Expiry          time.Duration // 0: none
}

// Handler takes one message. A nil error is what makes the PUBACK of a QoS 1
// message: acknowledged means done. On an error the message stays
// unacknowledged, so the client sends it again. Messages of one topic are
// handed over in order, one after the other; messages of different devices
// come concurrently.
type Handler func(ctx context.Context, m Message) error

// PresenceHandler hears that a device came or went. reason is empty on connect.
type PresenceHandler func(deviceID string, connected bool, reason string, at time.Time)

// Broker is the port.
type Broker interface {
	// Subscribe hands every message that matches one of the filters to h until
	// ctx ends or the broker is closed. It returns once the subscription is
	// active. A message that matches several filters is handed over once.
	// Replicas of otad share the messages. Called once per Broker.
	Subscribe(ctx context.Context, filters []string, h Handler) error
	// Publish sends m; for QoS 1 it returns after the broker took it over.
	// Publishing is allowed from within a Handler.
	Publish(ctx context.Context, m Message) error
	// Close ends the connections and waits for running handlers. Idempotent.
	Close() error
}
