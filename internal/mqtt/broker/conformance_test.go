package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"testing"

	"go.uber.org/goleak"

	"github.com/otad/otad/internal/mqtt"
	"github.com/otad/otad/internal/mqtt/brokertest"
	"github.com/otad/otad/internal/testserver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// byCertificate is how otad knows devices: by the common name.
func byCertificate(_ context.Context, c Credentials) (mqtt.Identity, error) {
	if len(c.Certificates) == 0 {
		return mqtt.Identity{}, errors.New("no certificate")
	}
	return device(c.Certificates[0].Subject.CommonName), nil
}

func device(id string) mqtt.Identity {
	return mqtt.Identity{Name: id, Device: true, Access: mqtt.DeviceAccess(id, nil)}
}

// unpaced are limits for tests that are in a hurry.
func unpaced() Limits {
	const any = 1 << 30
	return Limits{PacketRate: any, ByteRate: any, ConnectRate: any, FailureRate: any}
}

// open starts a broker; Close is the caller's.
func open(t *testing.T, pki *testserver.PKI, change func(*Config)) *Broker {
	t.Helper()
	c := Config{TLS: pki.ServerTLS(), TLSAddr: "127.0.0.1:0", Authenticate: byCertificate, Limits: unpaced()}
	if change != nil {
		change(&c)
	}
	b, err := New(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestConformance(t *testing.T) {
	pki := testserver.NewPKI(t)
	brokertest.Run(t, func(t *testing.T) brokertest.Harness {
		b := open(t, pki, nil)
		return brokertest.Harness{
			Broker: b,
			Dial: func(_ *testing.T, cn string) (net.Conn, error) {
				return tls.Dial("tcp", b.Addr(), pki.ClientTLS(cn))
			},
			AcksForHandler: true,
			Retains:        true,
		}
	})
}
