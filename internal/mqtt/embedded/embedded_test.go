package embedded

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"testing"

	"go.uber.org/goleak"

	"github.com/otad/otad/internal/mqtt/brokertest"
	"github.com/otad/otad/internal/testserver"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// byCertificate is how otad knows devices: by the common name.
func byCertificate(certs []*x509.Certificate, _ string, _ []byte, _ net.Addr) (string, error) {
	if len(certs) == 0 {
		return "", errors.New("no certificate")
	}
	return certs[0].Subject.CommonName, nil
}

// open starts a broker; Close is the caller's.
func open(t *testing.T, pki *testserver.PKI, change func(*Config)) *Broker {
	t.Helper()
	c := Config{TLS: pki.ServerTLS(), TLSAddr: "127.0.0.1:0", Authenticate: byCertificate}
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
		b := open(t, pki, nil)
		return brokertest.Harness{
			Broker: b,
			Dial: func(_ *testing.T, cn string) (net.Conn, error) {
				return tls.Dial("tcp", b.Addr(), pki.ClientTLS(cn))
			},
			AcksForHandler: true,
		}
	})
}
