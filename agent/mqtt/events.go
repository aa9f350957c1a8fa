package mqtt

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/otad/otad/agent"
)

// eventBatch is what goes to ota/{id}/events.
type eventBatch struct {
	Log    string        `json:"log"`
	Events []agent.Event `json:"events"`
}

// SendEvents implements agent.Transport.
func (t *Transport) SendEvents(ctx context.Context, log string, events []agent.Event) (int64, error) {
	payload, err := json.Marshal(eventBatch{log, events})
	if err != nil {
		return 0, fmt.Errorf("%w: %w", agent.ErrEvents, err)
	}
	a, err := t.exchange(ctx, t.topics.events(), t.topics.eventsAck(), func(string) ([]byte, error) { return payload, nil })
	if err != nil {
		return 0, err
	}
	var reply struct {
		Ack     int64  `json:"ack"`
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	if err := json.Unmarshal(a.payload, &reply); err != nil {
		return 0, fmt.Errorf("%s: %w: %w", t.topics.events(), ErrReply, err)
	}
	switch reply.Code {
	case "":
		return reply.Ack, nil
	case codeInvalid:
		return 0, fmt.Errorf("%w: %.300q", agent.ErrEvents, reply.Message)
	}
	return 0, &RejectedError{Topic: t.topics.events(), Code: reply.Code, Message: fmt.Sprintf("%.300q", reply.Message)}
}
