package broker

import (
	"context"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/otad/otad/internal/mqtt"
	"github.com/otad/otad/internal/mqtt/brokertest"
)

// openToAll lets everybody in, as the plain listener without credentials does.
func openToAll(context.Context, Credentials) (mqtt.Identity, error) {
	return mqtt.Identity{Name: "open", Access: mqtt.OpenAccess()}, nil
}

func TestProbes(t *testing.T) {
	brokertest.RunProbes(t, func(t *testing.T) brokertest.ProbeTarget {
		b, err := New(t.Context(), Config{PlainAddr: "127.0.0.1:0", Authenticate: openToAll, Limits: unpaced()})
		if err != nil {
			t.Fatal(err)
		}
		web := httptest.NewServer(b)
		t.Cleanup(func() {
			_ = b.Close()
			web.Close()
		})
		return brokertest.ProbeTarget{
			Addr: b.PlainAddr(), WebSocket: "ws" + strings.TrimPrefix(web.URL, "http") + "/mqtt",
			PacketLimit: DefaultPacketBytes, TellsWhy: true, Denied: "ota/x/y", ServerKeepAlive: uint16(DefaultKeepAlive.Seconds()),
		}
	})
}
