package device

import (
	"context"
	"crypto"
	"crypto/tls"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	agenthttp "github.com/otad/otad/agent/http"
)

// How the device's certificate is renewed.
const (
	renewLook       = time.Hour // the wall clock is looked at this often: it may jump, and the machine may sleep
	renewRetryFirst = time.Minute
	renewRetryMost  = 4 * time.Hour
)

// authority gives new certificates; agent/http's Source is one.
type authority interface {
	Renew(ctx context.Context, key crypto.Signer, id string) (chainPEM []byte, err error)
}

// renewer keeps the certificate fresh: from two thirds of its life on it asks
// for a new one until it has it.
type renewer struct {
	dir     dir
	id      string
	key     crypto.Signer
	source  authority
	current *atomic.Pointer[tls.Certificate] // what new connections show
	now     func() time.Time
	log     *slog.Logger
}

func (r *renewer) run(ctx context.Context) {
	for failures := 0; ; {
		wait := min(agenthttp.RenewAt(r.current.Load().Leaf).Sub(r.now()), renewLook)
		if wait <= 0 {
			err := r.renew(ctx)
			if err == nil {
				failures = 0
				continue
			}
			if ctx.Err() != nil {
				return
			}
			wait = retryIn(failures, err)
			failures++
			r.log.Warn("certificate not renewed", "expires", r.current.Load().Leaf.NotAfter, "retry", wait, "err", err)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return
		}
	}
}

// retryIn is full jitter over a window that doubles, and no less than the
// server asked for.
func retryIn(failures int, err error) time.Duration {
	window := renewRetryFirst
	for range failures {
		if window = min(2*window, renewRetryMost); window == renewRetryMost {
			break
		}
	}
	wait := window/2 + rand.N(window/2)
	if asked := new(agenthttp.RetryError); errors.As(err, &asked) {
		wait += asked.After
	}
	return wait
}

// renew stores the new certificate before it is used.
func (r *renewer) renew(ctx context.Context) error {
	chain, err := r.source.Renew(ctx, r.key, r.id)
	if err != nil {
		return err
	}
	cert, err := tlsCertificate(chain, r.key)
	if err != nil {
		return err
	}
	if !agenthttp.RenewAt(cert.Leaf).After(r.now()) {
		return errors.New("the server's new certificate is as good as over; look at its clock")
	}
	if err := r.dir.write(certName, chain); err != nil {
		return err
	}
	r.current.Store(cert)
	r.log.Info("certificate renewed", "expires", cert.Leaf.NotAfter)
	return nil
}
