package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/otad/otad/proto/otad/v1/otadv1connect"
)

// Limits of speaking to the server.
const (
	dialTimeout    = 10 * time.Second
	requestTimeout = time.Minute
	// storeTimeout is for the requests in which the server reads a whole image.
	storeTimeout     = 30 * time.Minute
	maxResponseBytes = 64 << 20
)

// client is the operator API of one server.
type client struct {
	target
	http     *http.Client
	devices  otadv1connect.DeviceServiceClient
	firmware otadv1connect.FirmwareServiceClient
	rollouts otadv1connect.RolloutServiceClient
	shadows  otadv1connect.ShadowServiceClient
	groups   otadv1connect.GroupServiceClient
	commands otadv1connect.CommandServiceClient
	events   otadv1connect.EventServiceClient
	webhooks otadv1connect.WebhookServiceClient
	trust    otadv1connect.TrustServiceClient
}

// connect resolves the server and makes its client; nothing is sent yet.
func (a *app) connect() (*client, error) {
	t, err := a.resolve()
	if err != nil {
		return nil, err
	}
	return newClient(t)
}

func newClient(t target) (*client, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(t.ca) {
		return nil, hint(usage("no certificate in %s", t.caFrom), "pass the ca.pem of otad serve with --ca-file")
	}
	c := &client{target: t}
	c.http = &http.Client{
		Transport: bearer{token: t.token, next: &http.Transport{
			DialContext:           (&net.Dialer{Timeout: dialTimeout}).DialContext,
			TLSHandshakeTimeout:   dialTimeout,
			ForceAttemptHTTP2:     true,
			TLSClientConfig:       &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
			ExpectContinueTimeout: time.Second,
			// A server that vanished without a word ends a watch too.
			HTTP2: &http.HTTP2Config{SendPingTimeout: 15 * time.Second, PingTimeout: 15 * time.Second},
		}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	opts := connect.WithClientOptions(connect.WithReadMaxBytes(maxResponseBytes), connect.WithInterceptors(connect.UnaryInterceptorFunc(c.intercept)))
	c.devices = otadv1connect.NewDeviceServiceClient(c.http, t.server, opts)
	c.firmware = otadv1connect.NewFirmwareServiceClient(c.http, t.server, opts)
	c.rollouts = otadv1connect.NewRolloutServiceClient(c.http, t.server, opts)
	c.groups = otadv1connect.NewGroupServiceClient(c.http, t.server, opts)
	c.commands = otadv1connect.NewCommandServiceClient(c.http, t.server, opts)
	c.events = otadv1connect.NewEventServiceClient(c.http, t.server, opts)
	c.webhooks = otadv1connect.NewWebhookServiceClient(c.http, t.server, opts)
	c.shadows = otadv1connect.NewShadowServiceClient(c.http, t.server, opts)
	c.trust = otadv1connect.NewTrustServiceClient(c.http, t.server, opts)
	return c, nil
}

// intercept gives each request its deadline and each lost one its remedy.
func (c *client) intercept(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
		if _, ok := ctx.Deadline(); !ok {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, requestTimeout)
			defer cancel()
		}
		resp, err := next(ctx, req)
		return resp, c.lost(err)
	}
}

// lost explains an error of a server that did not answer; others stay as they are.
func (c *client) lost(err error) error { return unreachable(err, c.server, c.caFrom) }

// bearer adds the API token to every request.
type bearer struct {
	token string
	next  http.RoundTripper
}

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+b.token)
	return b.next.RoundTrip(r)
}

// call makes a request message and returns the answer's message.
func call[Q, S any](ctx context.Context, f func(context.Context, *connect.Request[Q]) (*connect.Response[S], error), msg *Q) (*S, error) {
	resp, err := f(ctx, connect.NewRequest(msg))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

// serverURL checks a server's address and drops a trailing slash. Only https:
// the token must not cross a wire in the clear.
func serverURL(s string) (string, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.User != nil {
		return "", hint(usage("server %q is not an https address", s), "write it as %s", defaultServer)
	}
	return strings.TrimRight(s, "/"), nil
}

// checkToken drops the line end of a token file and refuses what could not be
// a header.
func checkToken(raw, from string) (string, error) {
	token := strings.TrimSpace(raw)
	if token == "" || bytes.ContainsFunc([]byte(token), func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "", hint(usage("no API token in %s", from), "it is one line that starts with otat_")
	}
	return token, nil
}
