package http

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/url"
	"time"
)

// Timeouts of one request before its body flows.
const (
	dialTimeout    = 15 * time.Second
	requestTimeout = 30 * time.Second // from the dial to the reply's header
	idleTimeout    = 90 * time.Second
	maxHeader      = 64 << 10
)

// DialFunc opens a network connection, as net.Dialer.DialContext does.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// newClient returns a client that follows no redirects, decompresses nothing,
// speaks HTTP/1.1 (whose flow control is the kernel's, so a slow disk costs no
// memory) and uses no proxy unless told.
func newClient(tlsConfig *tls.Config, dial DialFunc, proxy func(*http.Request) (*url.URL, error)) *http.Client {
	if dial == nil {
		dial = (&net.Dialer{Timeout: dialTimeout}).DialContext
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	return &http.Client{
		Transport: &http.Transport{
			Protocols:              protocols,
			Proxy:                  proxy,
			DialContext:            dial,
			TLSClientConfig:        tlsConfig,
			TLSHandshakeTimeout:    dialTimeout,
			DisableCompression:     true,
			MaxIdleConnsPerHost:    1,
			IdleConnTimeout:        idleTimeout,
			MaxResponseHeaderBytes: maxHeader,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// serverTLS trusts the pinned CA alone and shows the client certificate.
func serverTLS(ca *x509.Certificate, certificate func() *tls.Certificate, now func() time.Time) *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		RootCAs:    roots,
		Time:       now,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return certificate(), nil
		},
	}
}

// storeTLS is for object stores: the system's roots and the pinned CA, no
// client certificate. The bytes are verified by chunk whatever it says.
func storeTLS(ca *x509.Certificate, now func() time.Time) *tls.Config {
	roots, err := x509.SystemCertPool()
	if err != nil { // a device may have none
		roots = x509.NewCertPool()
	}
	roots.AddCert(ca)
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots, Time: now}
}
