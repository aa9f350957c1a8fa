package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/otad/otad/internal/mqtt"
	"github.com/otad/otad/internal/testserver"
)

// resumed dials with what the client kept of its last connection.
func resumed(t *testing.T, b *Broker, c *tls.Config, want bool) *wire {
	t.Helper()
	nc, err := tls.Dial("tcp", b.Addr(), c)
	if err != nil {
		t.Fatal(err)
	}
	if got := nc.ConnectionState().DidResume; got != want {
		t.Fatalf("resumed: %v, want %v", got, want)
	}
	return newWire(t, nc)
}

// A TLS session that is resumed saves the signatures and nothing else: who comes by it
// is asked for anew, by the certificate of the first handshake, and for how long that
// is good (ADR 0027).
func TestResumedTLSSession(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			pki := testserver.NewPKI(t)
			var revoked atomic.Bool
			var later atomic.Int64
			one := open(t, pki, func(c *Config) {
				c.TLS.Time = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
				c.Authenticate = func(ctx context.Context, creds Credentials) (mqtt.Identity, error) {
					if revoked.Load() {
						return mqtt.Identity{}, errors.New("the device is revoked")
					}
					return byCertificate(ctx, creds)
				}
			})
			defer func() { _ = one.Close() }()
			client := pki.ClientTLS("dev")
			client.MinVersion, client.MaxVersion, client.ClientSessionCache = version, version, tls.NewLRUClientSessionCache(1)

			first := resumed(t, one, client, false)
			first.mustConnect("dev")
			first.drop()
			again := resumed(t, one, client, true)
			again.mustConnect("dev") // byCertificate read the name in it
			again.drop()
			if code, _ := resumed(t, one, client, true).connect(hello{id: "other"}); code == 0 {
				t.Error("by a resumed session a device is another one")
			}
			revoked.Store(true)
			if code, _ := resumed(t, one, client, true).connect(hello{id: "dev"}); code == 0 {
				t.Error("a revoked device came in by a resumed session")
			}
			revoked.Store(false)

			two := open(t, pki, nil) // another replica has keys of its own
			defer func() { _ = two.Close() }()
			resumed(t, two, client, false).mustConnect("dev")

			later.Store(int64(time.Until(client.Certificates[0].Leaf.NotAfter) + time.Hour))
			nc, err := tls.Dial("tcp", one.Addr(), client)
			if err != nil {
				return // refused in the handshake
			}
			defer nc.Close()
			_ = nc.SetDeadline(time.Now().Add(patience))
			if _, err := nc.Read(make([]byte, 1)); err == nil || nc.ConnectionState().DidResume {
				t.Errorf("a certificate that has ended came in by a resumed session: %v", err)
			}
		})
	}
}
