package http

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	serverHost = "otad.example"
	storeHost  = "store.example"
	deviceID   = "gw-1"
)

// issuer is a CA of the tests.
type issuer struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func newCA(t *testing.T, name string) issuer {
	t.Helper()
	return newCert(t, nil, &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}, nil)
}

// newCert signs a template; by nil is self-signed, key nil makes a new one.
func newCert(t *testing.T, by *issuer, template *x509.Certificate, key crypto.Signer) issuer {
	t.Helper()
	if key == nil {
		var err error
		if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			t.Fatal(err)
		}
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	if template.NotBefore.IsZero() {
		template.NotBefore = time.Now().Add(-time.Hour)
	}
	if template.NotAfter.IsZero() {
		template.NotAfter = template.NotBefore.Add(90 * 24 * time.Hour)
	}
	parent := issuer{cert: template, key: key}
	if by != nil {
		parent = *by
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent.cert, key.Public(), parent.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return issuer{cert: cert, key: key}
}

func (ca issuer) server(t *testing.T, host string) tls.Certificate {
	t.Helper()
	leaf := newCert(t, &ca, &x509.Certificate{
		Subject:     pkix.Name{CommonName: host},
		DNSNames:    []string{host},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, nil)
	return tls.Certificate{Certificate: [][]byte{leaf.cert.Raw, ca.cert.Raw}, PrivateKey: leaf.key}
}

func (ca issuer) device(t *testing.T, id string, key crypto.Signer) issuer {
	t.Helper()
	return newCert(t, &ca, &x509.Certificate{
		Subject:     pkix.Name{CommonName: id},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, key)
}

func (ca issuer) pin() [32]byte { return sha256.Sum256(ca.cert.Raw) }

func certPEM(certs ...*x509.Certificate) string {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return string(out)
}

func newKey(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// pipes is a network of named hosts: in memory, so that tests may run in a
// synctest bubble, or over loopback where both ends may speak at once.
type pipes struct {
	loopback bool
	mu       sync.Mutex
	hosts    map[string]net.Listener // by host:port
}

func newPipes() *pipes    { return &pipes{hosts: map[string]net.Listener{}} }
func newLoopback() *pipes { return &pipes{loopback: true, hosts: map[string]net.Listener{}} }

func (p *pipes) listen(t *testing.T, address string) net.Listener {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.loopback {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		p.hosts[address] = l
		return l
	}
	l := &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
	p.hosts[address] = l
	return l
}

func (p *pipes) dial(ctx context.Context, _, address string) (net.Conn, error) {
	p.mu.Lock()
	l := p.hosts[address]
	p.mu.Unlock()
	if l == nil {
		return nil, errors.New("connection refused")
	}
	if p.loopback {
		return new(net.Dialer).DialContext(ctx, "tcp", l.Addr().String())
	}
	return l.(*pipeListener).dial(ctx)
}

func (l *pipeListener) dial(ctx context.Context) (net.Conn, error) {
	a, b := net.Pipe()
	ours, theirs := briefFarewell{a}, briefFarewell{b}
	select {
	case l.conns <- theirs:
		return ours, nil
	case <-l.done:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// briefFarewell is a pipe's end on which TLS does not wait long for a peer that
// has gone without reading its goodbye, the only write with a deadline.
type briefFarewell struct{ net.Conn }

func (c briefFarewell) SetWriteDeadline(at time.Time) error {
	if at.IsZero() {
		return c.Conn.SetWriteDeadline(at)
	}
	return c.Conn.SetWriteDeadline(time.Now().Add(5 * time.Millisecond))
}

type pipeListener struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}
func (l *pipeListener) Close() error   { l.once.Do(func() { close(l.done) }); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }

// serve runs a handler at address; config nil is plain HTTP.
func (p *pipes) serve(t *testing.T, address string, config *tls.Config, h http.Handler) {
	t.Helper()
	l := p.listen(t, address)
	if config != nil {
		config.SessionTicketsDisabled = true // a pipe holds nothing back
		config.NextProtos = []string{"http/1.1"}
		l = tls.NewListener(l, config)
	}
	srv := &http.Server{Handler: h, ErrorLog: log.New(io.Discard, "", 0)}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close(); <-ended })
}

// world is otad at otad.example:443 with an enrolled device's Source.
type world struct {
	ca     issuer
	net    *pipes
	source *Source
}

func newWorld(t *testing.T, h http.HandlerFunc) *world {
	t.Helper()
	w := &world{ca: newCA(t, "otad root"), net: newPipes()}
	clients := x509.NewCertPool()
	clients.AddCert(w.ca.cert)
	w.net.serve(t, serverHost+":443", &tls.Config{
		Certificates: []tls.Certificate{w.ca.server(t, serverHost)},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    clients,
		MinVersion:   tls.VersionTLS13,
	}, h)
	dev := w.ca.device(t, deviceID, newKey(t))
	cert := &tls.Certificate{Certificate: [][]byte{dev.cert.Raw}, PrivateKey: dev.key}
	s, err := New(Config{
		ServerURL:   "https://" + serverHost,
		CA:          w.ca.cert,
		Certificate: func() *tls.Certificate { return cert },
		Dial:        w.net.dial,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	w.source = s
	return w
}
