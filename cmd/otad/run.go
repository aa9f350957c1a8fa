package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/otad/otad/internal/api"
	"github.com/otad/otad/internal/deviceapi"
	"github.com/otad/otad/internal/identity"
	"github.com/otad/otad/internal/observability"
)

// ShutdownTimeout is how long a graceful stop waits for requests in flight.
const ShutdownTimeout = 15 * time.Second

// run serves until ctx ends, then stops from the outside in: no new requests,
// handlers finish, the engine and the writers stop. out is told when devices can come.
func (s *server) run(ctx context.Context, apiListener, deviceListener net.Listener, out io.Writer) error {
	background, stopBackground := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBackground()
	work, background := errgroup.WithContext(background)
	work.Go(func() error { return s.open(background, out) })
	work.Go(func() error { return s.fleet.RunEngine(background) })
	work.Go(func() error { return s.fleet.RunNotifier(background) })
	work.Go(func() error { return s.fleet.RunTimeouts(background) })
	work.Go(func() error { return s.fleet.RunUploads(background) })
	work.Go(func() error { return s.fleet.RunLooks(background) })
	work.Go(func() error { return s.fleet.RunFeed(background) })
	work.Go(func() error { return s.fleet.RunWebhooks(background) })
	work.Go(func() error { return s.fleet.RunTrust(background) })
	work.Go(func() error { return s.fleet.RunPresence(background) })
	work.Go(func() error { return s.fleet.RunEvictions(background) })
	work.Go(func() error { return s.fleet.RunGroups(background) })
	if s.config.CRLFile != "" {
		work.Go(func() error { return s.fleet.RunRevocationLists(background, s.saveLists) })
	}
	if s.claim != nil {
		work.Go(func() error { return s.claim.Keep(background) })
	}

	// Streams of the API end with their requests' context, which Shutdown alone
	// would wait for.
	requests, endRequests := context.WithCancel(background)
	defer endRequests()
	base := func(net.Listener) context.Context { return requests }
	servers := []*http.Server{
		s.httpServer("api", s.operatorPlane(), s.tlsConfig(tls.NoClientCert), base),
		s.httpServer("device", s.devicePlane(), s.tlsConfig(tls.VerifyClientCertIfGiven), base),
	}
	failed := make(chan error, len(servers))
	for i, l := range []net.Listener{apiListener, deviceListener} {
		go func() { failed <- servers[i].ServeTLS(l, "", "") }()
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	case <-background.Done():
		err = errors.New("a background task ended")
	}
	s.log.Info("stopping")
	endRequests()
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), ShutdownTimeout)
	defer cancel()
	for _, server := range servers {
		if late := server.Shutdown(stop); late != nil {
			// Whoever is left must not meet a closed store.
			err = errors.Join(err, fmt.Errorf("requests were cut off: %w", late), server.Close())
		}
	}
	stopBackground()
	return errors.Join(err, work.Wait())
}

// saveLists writes what the broker reads, who is another user: the lists are
// public, and the directory says who gets at them.
func (s *server) saveLists(lists []byte) error {
	return identity.WritePublicFile(s.config.CRLFile, lists)
}

func (s *server) operatorPlane() http.Handler {
	mux := http.NewServeMux()
	checks := map[string]func(context.Context) error{"store": s.store.Ping}
	if s.away != nil {
		checks["broker"] = func(context.Context) error { return s.away() }
	}
	observability.Health(mux, checks)
	guarded := http.NewServeMux()
	guarded.Handle("GET /metrics", s.metrics.Handler())
	mux.Handle("/", api.New(s.fleet, s.log, guarded))
	return mux
}

// devicePlane has the embedded broker's WebSocket beside it.
func (s *server) devicePlane() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", deviceapi.New(deviceapi.Config{Fleet: s.fleet, Blobs: s.blobs, Log: s.log, Now: time.Now, EnrollBurst: s.config.EnrollLimit}))
	if s.webSocket != nil {
		mux.Handle("GET /mqtt", s.webSocket)
	}
	return mux
}

func (s *server) httpServer(plane string, h http.Handler, t *tls.Config, base func(net.Listener) context.Context) *http.Server {
	return &http.Server{
		Handler: s.metrics.HTTP(plane, h), TLSConfig: t, BaseContext: base,
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: log.New(httpLog{s.log}, "", 0),
	}
}

// httpLog takes what net/http has to say by itself. Handshakes that fail are the
// clients' news, a panic is ours.
type httpLog struct{ log *slog.Logger }

func (l httpLog) Write(p []byte) (int, error) {
	level := slog.LevelDebug
	if bytes.Contains(p, []byte("panic serving")) {
		level = slog.LevelError
	}
	l.log.Log(context.Background(), level, "http: "+strings.TrimSpace(string(p)))
	return len(p), nil
}
