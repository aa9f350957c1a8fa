package main

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/mqtt/broker"
	"github.com/otad/otad/internal/store/memstore"
)

// A device is not turned away as unknown because the store does not answer.
func TestWithoutAStoreNobodyIsRefused(t *testing.T) {
	s := &server{fleet: fleet.New(fleet.Config{Store: memstore.New(), Now: time.Now, Log: slog.New(slog.DiscardHandler)})}
	wrong := broker.Credentials{ClientID: "gw-1", Username: "gw-1", Password: []byte("a wrong password")}
	away, cancel := context.WithCancel(t.Context())
	cancel()
	for _, c := range []struct {
		ctx         context.Context
		unavailable bool
	}{{t.Context(), false}, {away, true}} {
		_, err := s.authenticate(c.ctx, wrong)
		if errors.Is(err, broker.ErrUnavailable) != c.unavailable || errors.Is(err, fleet.ErrDenied) == c.unavailable {
			t.Errorf("away=%v: %v", c.unavailable, err)
		}
	}
}
