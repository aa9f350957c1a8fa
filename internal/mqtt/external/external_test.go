package external

import (
	"crypto/rand"
	"crypto/tls"
	"log/slog"
	"net"
	"testing"

	"go.uber.org/goleak"

	"github.com/otad/otad/internal/mqtt/brokertest"
	"github.com/otad/otad/internal/testserver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open connects to srv as one replica; Close is the caller's.
func open(t *testing.T, srv *testserver.Broker, change func(*Config)) *Broker {
	t.Helper()
	c := Config{
		URL: "mqtts://" + srv.ServerAddr, TLS: srv.ServerTLS(), ClientID: "otad-" + rand.Text(),
		Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	if change != nil {
		change(&c)
	}
	b, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestConformance(t *testing.T) {
	pki := testserver.NewPKI(t)
	brokertest.Run(t, func(t *testing.T) brokertest.Harness {
		srv := testserver.Mosquitto(t, pki)
		return brokertest.Harness{
			Broker: open(t, srv, nil),
			Dial: func(_ *testing.T, cn string) (net.Conn, error) {
				return tls.Dial("tcp", srv.DeviceAddr, pki.ClientTLS(cn))
			},
			Restart: func() { srv.Kill(); srv.Restart() },
		}
	})
}
