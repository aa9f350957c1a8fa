package postgres_test

import (
	"errors"
	"testing"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/testserver"
	"github.com/otad/otad/pkg/shadow"
)

// TestADatabaseThatIsAwayIsNamed: whoever asks while the database is down hears that
// it is, and that nothing was stored; when it is back, all goes on.
func TestADatabaseThatIsAwayIsNamed(t *testing.T) {
	var own testserver.Postgres
	t.Cleanup(own.Stop)
	s, ctx := open(t, own.Database(t)), t.Context()
	must(t, s.CreateDevice(ctx, fleet.Device{ID: "a", CreatedAt: time.Now()}))
	update := func() error {
		_, err := s.UpdateShadow(ctx, "a", "", shadow.NewUpdate(nil, map[string]any{"n": 1}), time.Now())
		return err
	}
	must(t, update())
	calls := map[string]func() error{
		"write": update,
		"row":   func() error { _, err := s.Device(ctx, "a"); return err },
		"rows":  func() error { _, err := s.Groups(ctx); return err },
		"survey": func() error {
			return s.Survey(ctx, fleet.DeviceQuery{}, nil, func(fleet.Surveyed) bool { return true })
		},
		"list": func() error { return s.Devices(ctx, "", func(fleet.DeviceView) bool { return true }) },
	}
	own.Kill()
	for name, call := range calls {
		if err := call(); !errors.Is(err, fleet.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	own.Restart(t)
	for name, call := range calls {
		if err := call(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
