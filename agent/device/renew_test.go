package device

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	agenthttp "github.com/otad/otad/agent/http"
)

// registry is an authority that renews after some failures.
type registry struct {
	key      ed25519.PrivateKey
	failures []error
	life     time.Duration
	asked    []time.Time
}

func (r *registry) chain() []byte {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: deviceID},
		NotBefore: time.Now(), NotAfter: time.Now().Add(r.life),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, r.key.Public(), r.key)
	if err != nil {
		panic(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func (r *registry) Renew(context.Context, crypto.Signer, string) ([]byte, error) {
	r.asked = append(r.asked, time.Now())
	if len(r.failures) > 0 {
		err := r.failures[0]
		r.failures = r.failures[1:]
		return nil, err
	}
	return r.chain(), nil
}

// renewing runs a renewer for a time and returns what it asked and holds then.
func renewing(t *testing.T, r *registry, during time.Duration) (*tls.Certificate, dir) {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	must(t, err)
	r.key = key
	d := dir(t.TempDir())
	must(t, d.write(certName, r.chain()))
	cert, err := d.certificate(key)
	must(t, err)
	var current atomic.Pointer[tls.Certificate]
	current.Store(cert)
	ctx, cancel := context.WithTimeout(t.Context(), during)
	defer cancel()
	n := renewer{dir: d, id: deviceID, key: key, source: r, current: &current, now: time.Now, log: slog.New(slog.DiscardHandler)}
	n.run(ctx)
	return current.Load(), d
}

const day = 24 * time.Hour

func TestRenewAtTwoThirds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		r := &registry{life: 90 * day}
		cert, d := renewing(t, r, 100*day)
		if len(r.asked) != 1 || r.asked[0].Sub(start) < 60*day || r.asked[0].Sub(start) > 68*day {
			t.Fatalf("asked at %v", r.asked)
		}
		stored, err := d.certificate(r.key)
		if err != nil || !stored.Leaf.Equal(cert.Leaf) || !cert.Leaf.NotAfter.After(start.Add(140*day)) {
			t.Errorf("%v, until %s", err, cert.Leaf.NotAfter)
		}
	})
}

// A server that is away for three weeks costs no device its identity, and is not
// run down when it comes back.
func TestRenewKeepsTrying(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &registry{life: 90 * day}
		for range 40 {
			r.failures = append(r.failures, errors.New("away"))
		}
		renewing(t, r, 80*day)
		if len(r.asked) != 41 {
			t.Fatalf("asked %d times", len(r.asked))
		}
		for i := 1; i < len(r.asked); i++ {
			if wait := r.asked[i].Sub(r.asked[i-1]); wait < renewRetryFirst/2 || wait > renewRetryMost {
				t.Errorf("attempt %d after %s", i, wait)
			}
		}
	})
}

func TestRenewWaitsAsAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &registry{life: 90 * day, failures: []error{&agenthttp.RetryError{After: time.Hour}}}
		renewing(t, r, 80*day)
		if len(r.asked) != 2 || r.asked[1].Sub(r.asked[0]) < time.Hour {
			t.Errorf("asked at %v", r.asked)
		}
	})
}
