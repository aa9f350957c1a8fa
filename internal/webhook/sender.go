package webhook

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/otad/otad/internal/fleet"
)

// Limits of one attempt.
const (
	// Timeout is how long an attempt may take in all: a receiver gets 15 to 30 s
	// ("Request timeouts").
	Timeout     = 20 * time.Second
	dialTimeout = 5 * time.Second
	tlsTimeout  = 5 * time.Second
	idleTimeout = 30 * time.Second
	answerBytes = 64 << 10 // that are read of an answer, so that the connection can be used again
	headerBytes = 16 << 10 // of an answer
)

// Sender implements fleet.WebhookSender.
type Sender struct {
	allowed Allowed
	agent   string
	secure  *http.Client // for https
	plain   *http.Client // for http, to what is allowed by name
}

// New returns a Sender that may reach public addresses and what is allowed. agent
// is what it calls itself.
func New(allowed Allowed, agent string) *Sender {
	s := &Sender{allowed: allowed, agent: agent}
	s.secure = client(net.Dialer{}, allowed.check)
	s.plain = client(net.Dialer{}, s.allowedByName)
	return s
}

// client dials what check lets through. It takes no proxy from the environment,
// which would dial in its place.
func client(d net.Dialer, check func(netip.Addr) error) *http.Client {
	d.Timeout = dialTimeout
	d.ControlContext = func(_ context.Context, _, address string, _ syscall.RawConn) error {
		to, err := netip.ParseAddrPort(address)
		if err != nil {
			return fmt.Errorf("dial %s: %w", address, err)
		}
		return check(to.Addr())
	}
	return &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DialContext:         d.DialContext,
			TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12},
			TLSHandshakeTimeout: tlsTimeout, IdleConnTimeout: idleTimeout, MaxIdleConnsPerHost: 1,
			MaxResponseHeaderBytes: headerBytes, ForceAttemptHTTP2: true, DisableCompression: true,
		},
	}
}

// allowedByName is the check of plain http.
func (s *Sender) allowedByName(a netip.Addr) error {
	a = a.Unmap().WithZone("")
	if s.allowed.has(a) {
		return nil
	}
	return fmt.Errorf("%s over http, which everybody on the way can read: %w, unless otad runs with --webhook-allow %s", a, errAddress, netip.PrefixFrom(a, a.BitLen()))
}

// Admit implements fleet.WebhookSender. Names are looked up only when they are
// dialled; an address is refused at once.
func (s *Sender) Admit(u *url.URL) error {
	check := s.allowed.check
	if u.Scheme != "https" {
		check = s.allowedByName
		if len(s.allowed) == 0 {
			return fmt.Errorf("%w: webhooks need https; http is for what otad serve --webhook-allow NETWORK names", fleet.ErrInvalid)
		}
	}
	host := u.Hostname()
	addresses := []string{host}
	if strings.EqualFold(host, "localhost") {
		addresses = []string{"127.0.0.1", "::1"}
	}
	var refused error
	for _, text := range addresses {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return nil // a name
		}
		if err := check(a); err == nil {
			return nil
		} else if refused == nil {
			refused = err
		}
	}
	return fmt.Errorf("%w: %w", fleet.ErrInvalid, refused)
}

// Send implements fleet.WebhookSender.
func (s *Sender) Send(ctx context.Context, m fleet.WebhookMessage) (fleet.WebhookAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, Timeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, m.URL, bytes.NewReader(m.Body))
	if err != nil {
		return fleet.WebhookAnswer{}, bare(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User-Agent", s.agent)
	r.Header.Set(headerID, m.ID)
	r.Header.Set(headerTimestamp, strconv.FormatInt(m.At.Unix(), 10))
	r.Header.Set(headerSignature, signatures(m.Secrets, m.ID, m.At, m.Body))
	client := s.secure
	if r.URL.Scheme != "https" {
		client = s.plain
	}
	answer, err := client.Do(r)
	if err != nil {
		return fleet.WebhookAnswer{}, bare(err)
	}
	_, _ = io.CopyN(io.Discard, answer.Body, answerBytes) // the status is the answer
	_ = answer.Body.Close()
	return fleet.WebhookAnswer{Status: answer.StatusCode, RetryAfter: retryAfter(answer.Header.Get("Retry-After"), m.At)}, nil
}

// bare is an error without the URL, which may hold what is secret.
func bare(err error) error {
	if outer := new(url.Error); errors.As(err, &outer) {
		err = outer.Err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("no answer within %s: %w", Timeout, context.DeadlineExceeded)
	}
	return err
}

// retryAfter reads the header of that name (RFC 9110, 10.2.3): seconds or a date.
// What can not be read is 0, as is what lies in the past.
func retryAfter(text string, now time.Time) time.Duration {
	if n, err := strconv.ParseUint(text, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	at, err := http.ParseTime(text)
	if err != nil {
		return 0
	}
	return max(at.Sub(now), 0)
}
