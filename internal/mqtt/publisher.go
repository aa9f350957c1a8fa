package mqtt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/shadow"
)

// Publisher sends what the server has to say by itself. It is fleet.Publisher.
// Broker and Document are set before anything runs that publishes.
type Publisher struct {
	Broker Broker
	Now    func() time.Time
	// Document makes the document of a job; nil: ota.JobOf alone.
	Document func(context.Context, ota.Execution) (ota.OpenDocument, error)
}

// NotifyNext publishes jobs/notify-next. A lost one is repaired when the device
// asks, so it goes without acknowledgement.
func (p *Publisher) NotifyNext(ctx context.Context, deviceID string, next *ota.Execution) error {
	topic := jobsPrefix(deviceID) + "notify-next"
	if !p.Broker.Listening(topic) {
		return nil
	}
	now := p.Now()
	note := notifyNext{Timestamp: now.Unix()}
	if next != nil {
		d, err := p.document(ctx, *next)
		if err != nil {
			return err
		}
		e := encodeExecution(*next, &d, now)
		note.Execution = &e
	}
	b, err := json.Marshal(note)
	if err != nil {
		return fmt.Errorf("encode notify-next: %w", err)
	}
	return p.Broker.Publish(ctx, Message{Topic: topic, Payload: b, QoS: 1, Expiry: notifyExpiry, Hint: true})
}

// NotifyJobs publishes jobs/notify, by status, in the order given.
func (p *Publisher) NotifyJobs(ctx context.Context, deviceID string, pending []ota.Execution) error {
	topic := jobsPrefix(deviceID) + "notify"
	if !p.Broker.Listening(topic) {
		return nil
	}
	note := notifyJobs{Timestamp: p.Now().Unix(), Jobs: map[ota.Status][]execution{}}
	for _, e := range pending[:min(len(pending), fleet.MaxNotified)] {
		note.Jobs[e.Status] = append(note.Jobs[e.Status], summary(e))
	}
	b, err := json.Marshal(note)
	if err != nil {
		return fmt.Errorf("encode notify: %w", err)
	}
	return p.Broker.Publish(ctx, Message{Topic: topic, Payload: b, QoS: 1, Expiry: notifyExpiry, Hint: true})
}

func (p *Publisher) document(ctx context.Context, e ota.Execution) (ota.OpenDocument, error) {
	if p.Document != nil {
		return p.Document(ctx, e)
	}
	return ota.OpenDocument{JobDocument: ota.JobOf(e)}, nil
}

// notifyExpiry is how long a broker keeps a notification for a device that is
// away; longer is pointless, since the device asks when it is back.
const notifyExpiry = time.Hour

// ShadowUpdated publishes update/accepted, then documents, then delta if there
// is one, each whatever becomes of the others. Nothing is made of what nobody listens
// to. Accepted carries the correlation data of the request. A broker that is away does
// not keep whoever made the update waiting for longer than answerTimeout.
func (p *Publisher) ShadowUpdated(ctx context.Context, deviceID, name string, r shadow.Result) error {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	prefix := shadowPrefix(deviceID, name) + "update/"
	var failed error
	for _, part := range []struct {
		topic       string
		payload     func(shadow.Result) []byte // nil: there is none
		correlation []byte
	}{
		{prefix + "accepted", shadow.Result.AcceptedPayload, r.Correlation()},
		{prefix + "documents", shadow.Result.DocumentsPayload, nil},
		{prefix + "delta", shadow.Result.DeltaPayload, nil},
	} {
		if !p.Broker.Listening(part.topic) {
			continue
		}
		b := part.payload(r)
		if b == nil {
			continue
		}
		err := p.Broker.Publish(ctx, Message{Topic: part.topic, Payload: b, QoS: 1, CorrelationData: part.correlation})
		failed = errors.Join(failed, err)
	}
	return failed
}

// Evict implements fleet.Publisher.
func (p *Publisher) Evict(e fleet.Eviction) {
	p.Broker.Evict(Eviction{DeviceID: e.DeviceID, Voucher: e.Voucher, Reason: e.Reason, At: e.At, Forget: e.Reason == fleet.EvictedDeleted})
}
