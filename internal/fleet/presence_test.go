package fleet_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/store/memstore"
)

// process is an otad's presence, which starts and dies.
type process struct {
	*fleet.Service
	kill func()
}

func start(t *testing.T, store fleet.Store) process {
	s := fleet.New(fleet.Config{Store: store, Publisher: &notes{}, Now: time.Now, Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.RunPresence(ctx) }()
	synctest.Wait()
	return process{s, func() { cancel(); <-done }}
}

func (p process) want(t *testing.T, id string, want fleet.Reachability, reason string, age time.Duration) {
	t.Helper()
	synctest.Wait()
	d, err := p.Device(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if d.Reachability != want || d.Connection.Reason != reason || d.Connection.Known() && time.Since(d.Connection.Since).Round(time.Second) != age {
		t.Fatalf("%s is %s since %s ago, %q; want %s since %s ago, %q", id, d.Reachability, time.Since(d.Connection.Since), d.Connection.Reason, want, age, reason)
	}
}

func TestPresence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := memstore.New()
		a := start(t, store)
		for _, id := range []string{"never", "stays", "goes", "flaps"} {
			if _, err := a.CreateDevice(t.Context(), fleet.Device{ID: id, Hardware: "h"}); err != nil {
				t.Fatal(err)
			}
		}
		a.want(t, "never", fleet.Unknown, "", 0)
		a.Presence("stays", true, "", time.Now())
		a.Presence("goes", true, "", time.Now())
		time.Sleep(10 * time.Second)
		a.Presence("goes", false, "keep alive timeout\n\x00"+strings.Repeat("é", 200), time.Now())
		d, _ := a.Device(t.Context(), "goes")
		if r := d.Connection.Reason; len(r) > fleet.MaxReasonBytes || strings.ContainsAny(r, "\n\x00") || !strings.HasPrefix(r, "keep alive timeout") {
			t.Errorf("reason %q", r)
		}
		a.Presence("goes", true, "", time.Now())
		a.Presence("goes", false, "closed", time.Now())
		a.want(t, "stays", fleet.Online, "", 10*time.Second)
		a.want(t, "goes", fleet.Offline, "closed", 0)
		for expr, want := range map[string]int{"online = true": 1, "online = false": 1, "NOT online:*": 2} { // at once, not after a minute
			if n, err := a.CountDevices(t.Context(), expr); n != want || err != nil {
				t.Errorf("%s: %d devices, %v; want %d", expr, n, err, want)
			}
		}
		if a.OnlineCount() != 1 {
			t.Errorf("%d online", a.OnlineCount())
		}

		b := start(t, store) // another replica learns by the store
		time.Sleep(2 * fleet.SeenInterval)
		b.want(t, "stays", fleet.Online, "", 130*time.Second)
		b.want(t, "goes", fleet.Offline, "closed", 2*time.Minute)
		a.Presence("flaps", true, "", time.Now())
		b.Presence("flaps", true, "", time.Now().Add(time.Second)) // it moved
		time.Sleep(5 * time.Second)
		a.Presence("flaps", false, "taken over", time.Now())
		time.Sleep(2 * fleet.SeenInterval)
		a.want(t, "flaps", fleet.Online, "", 124*time.Second)
		b.want(t, "flaps", fleet.Online, "", 124*time.Second)

		a.kill()
		time.Sleep(2 * fleet.SeenInterval)
		b.want(t, "stays", fleet.Online, "", 375*time.Second) // a may still come back
		time.Sleep(2 * fleet.ReplicaSilence)
		b.want(t, "stays", fleet.Unknown, "", 735*time.Second)
		b.want(t, "goes", fleet.Offline, "closed", 725*time.Second)
		b.kill()

		c := start(t, store) // after a restart: who was here may be anywhere
		time.Sleep(2 * fleet.ReplicaSilence)
		c.want(t, "flaps", fleet.Unknown, "", 964*time.Second)
		c.Seen("flaps", time.Now())
		c.want(t, "flaps", fleet.Online, "", 964*time.Second)
		c.Seen("goes", time.Now())
		c.want(t, "goes", fleet.Offline, "closed", 1085*time.Second) // said good-bye, whatever was still on the way
		c.Presence("stays", true, "", time.Now())
		c.want(t, "stays", fleet.Online, "", 0)
		c.kill()
	})
}

// What this replica heard of an older connection does not win over what is stored of a
// newer one, which another replica has.
func TestTheNewerConnectionCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := memstore.New()
		a, b := start(t, store), start(t, store)
		for _, id := range []string{"lingers", "ended"} {
			if _, err := a.CreateDevice(t.Context(), fleet.Device{ID: id, Hardware: "h"}); err != nil {
				t.Fatal(err)
			}
			a.Presence(id, true, "", time.Now())
			b.Presence(id, true, "", time.Now().Add(time.Second))
		}
		b.Presence("lingers", false, "closed", time.Now().Add(2*time.Second))
		b.Presence("ended", false, "closed", time.Now().Add(2*time.Second))
		b.kill() // writes what it heard
		a.Presence("ended", false, "keep alive timeout", time.Now().Add(3*time.Second))
		a.want(t, "lingers", fleet.Offline, "closed", -2*time.Second)
		a.want(t, "ended", fleet.Offline, "closed", -2*time.Second)
		a.kill()
	})
}

// With the embedded broker a process that was killed can not have kept a device.
func TestBrokerStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := memstore.New()
		a := start(t, store)
		for _, id := range []string{"stays", "goes", "back"} {
			if _, err := a.CreateDevice(t.Context(), fleet.Device{ID: id, Hardware: "h"}); err != nil {
				t.Fatal(err)
			}
			a.Presence(id, true, "", time.Now())
		}
		a.Presence("goes", false, "closed", time.Now())
		time.Sleep(2 * fleet.SeenInterval)
		a.want(t, "stays", fleet.Online, "", 2*time.Minute)
		a.kill()
		b := start(t, store)
		if err := b.BrokerStarts(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		b.Seen("stays", time.Now()) // by a companion
		b.Presence("back", true, "", time.Now())
		b.want(t, "stays", fleet.Offline, fleet.ReasonRestarted, time.Second)
		b.want(t, "goes", fleet.Offline, "closed", 2*time.Minute+time.Second)
		b.want(t, "back", fleet.Online, "", 0)
		if n, err := b.CountDevices(t.Context(), "online = true"); n != 1 || err != nil {
			t.Errorf("%d devices online, %v", n, err)
		}
		b.kill()
	})
}

// Who gets the id of a device that was deleted while it was connected begins anew.
func TestDeletedWhileConnected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, memstore.New())
		create := func() {
			if _, err := a.CreateDevice(t.Context(), fleet.Device{ID: "d", Hardware: "h"}); err != nil {
				t.Fatal(err)
			}
		}
		create()
		a.Presence("d", true, "", time.Now())
		if err := a.DeleteDevice(t.Context(), fleet.Deletion{DeviceID: "d"}); err != nil {
			t.Fatal(err)
		}
		create()
		a.want(t, "d", fleet.Unknown, "", 0)
		if d, err := a.Device(t.Context(), "d"); err != nil || !d.LastSeen.IsZero() {
			t.Errorf("seen at %s, %v", d.LastSeen, err)
		}
		a.Presence("d", false, fleet.EvictedDeleted, time.Now()) // as its session ends
		a.want(t, "d", fleet.Unknown, "", 0)
		time.Sleep(2 * fleet.SeenInterval)
		a.want(t, "d", fleet.Unknown, "", 0)
		a.kill()
	})
}
