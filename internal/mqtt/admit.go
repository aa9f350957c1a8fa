package mqtt

import (
	"context"
	"errors"
	"log/slog"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// Admitted wraps an external broker, which knows certificates but not who was
// revoked since: messages of unknown and revoked devices are taken and dropped.
// Our own broker checks at the connection and needs no wrapping.
func Admitted(b Broker, f *fleet.Service, log *slog.Logger) Broker {
	return admitted{Broker: b, fleet: f, log: log}
}

type admitted struct {
	Broker
	fleet *fleet.Service
	log   *slog.Logger
}

// Evict ends the session of a revoked or deleted device. The other reasons are about
// credentials that such a broker does not know.
func (a admitted) Evict(e Eviction) {
	if e.Reason == fleet.EvictedRevoked || e.Reason == fleet.EvictedDeleted {
		a.Broker.Evict(e)
	}
}

func (a admitted) Subscribe(ctx context.Context, filters []string, h Handler) error {
	return a.Broker.Subscribe(ctx, filters, func(ctx context.Context, m Message) error {
		r, ok := parseTopic(m.Topic)
		if !ok || ota.ValidateDeviceID(r.device) != nil {
			return h(ctx, m) // the handler has its own word for it
		}
		switch err := a.fleet.Known(ctx, r.device); {
		case errors.Is(err, fleet.ErrDenied):
			a.log.Warn("message dropped", "topic", m.Topic, "error", err)
			return nil
		case err != nil:
			return err
		}
		return h(ctx, m)
	})
}
