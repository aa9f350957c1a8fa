package http

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/otad/otad/agent"
)

// Config is what a Source needs.
type Config struct {
	ServerURL   string                  // https://host[:port], as at enrollment
	CA          *x509.Certificate       // the pinned root CA of the server
	Certificate func() *tls.Certificate // the device's own; asked at each handshake

	Proxy func(*http.Request) (*url.URL, error) // nil: none, whatever the environment says
	Dial  DialFunc                              // nil: a net.Dialer
	Now   func() time.Time                      // nil: time.Now
}

// Source fetches metadata, targets and images from otad. It implements
// agent.Source; its methods are safe for concurrent use. Errors are
// agent.ErrNoSuchFile, agent.ErrUnreachable (a RetryError among them),
// agent.ErrSlow, ErrDenied, ErrReply, ErrTooLarge, or the context's.
type Source struct {
	cfg    Config
	base   *url.URL
	client *http.Client
	store  func() *http.Client // made at the first redirect

	mu    sync.Mutex
	moved moved // where the last image went
}

var _ agent.Source = (*Source)(nil)

// New returns a Source for one server.
func New(cfg Config) (*Source, error) {
	base, err := parseServerURL(cfg.ServerURL)
	if err != nil {
		return nil, err
	}
	if cfg.CA == nil || cfg.Certificate == nil {
		return nil, errors.New("a source needs the server's CA and the device's certificate")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	s := &Source{cfg: cfg, base: base}
	s.client = newClient(serverTLS(cfg.CA, cfg.Certificate, cfg.Now), cfg.Dial, cfg.Proxy)
	s.store = sync.OnceValue(func() *http.Client {
		return newClient(storeTLS(cfg.CA, cfg.Now), cfg.Dial, cfg.Proxy)
	})
	return s, nil
}

func parseServerURL(s string) (*url.URL, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, fmt.Errorf("server address %q: want https://host[:port]", s)
	}
	return u, nil
}

// Close drops idle connections. Bodies still open stay usable.
func (s *Source) Close() {
	s.client.CloseIdleConnections()
	s.store().CloseIdleConnections()
}

// Metadata fetches a metadata file, "timestamp.json" or "3.root.json".
func (s *Source) Metadata(ctx context.Context, name string, limit int64) ([]byte, error) {
	if !fs.ValidPath(name) || name == "." || strings.Contains(name, "/") {
		return nil, fmt.Errorf("metadata name %q: want one path element", name)
	}
	return s.small(ctx, s.base.JoinPath("metadata", name), limit)
}

// Target fetches a target file by its path and sha256, under the name that
// consistent snapshots give it.
func (s *Source) Target(ctx context.Context, target string, sha256 [32]byte, limit int64) ([]byte, error) {
	if !fs.ValidPath(target) || target == "." {
		return nil, fmt.Errorf("target path %q: want a relative path", target)
	}
	dir, file := path.Split(target)
	return s.small(ctx, s.base.JoinPath("targets", dir, hex.EncodeToString(sha256[:])+"."+file), limit)
}

// small fetches one file of at most limit bytes. The deadline grows with the
// limit, at the minimum rate.
func (s *Source) small(ctx context.Context, u *url.URL, limit int64) ([]byte, error) {
	deadline := requestTimeout + time.Duration(limit/MinRate)*time.Second
	limited, cancel := context.WithTimeoutCause(ctx, deadline, fmt.Errorf("%w: not done after %s", agent.ErrUnreachable, deadline))
	defer cancel()
	resp, err := send(limited, s.client, http.MethodGet, u, nil, nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, statusError(resp, s.cfg.Now())
	}
	return readSmall(resp, limit)
}

// send makes one request and returns once the reply's header has come. The
// reply's body is under the minimum rate and must be closed.
func send(caller context.Context, client *http.Client, method string, u *url.URL, header http.Header, content io.Reader) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(caller)
	late := time.AfterFunc(requestTimeout, func() {
		cancel(fmt.Errorf("%w: no answer within %s", agent.ErrUnreachable, requestTimeout))
	})
	defer late.Stop()
	req, err := http.NewRequestWithContext(ctx, method, u.String(), content)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	req.Header.Set("Accept-Encoding", "identity")
	req.Header.Set("User-Agent", "otagent")
	resp, err := client.Do(req)
	if err != nil {
		defer cancel(nil)
		return nil, networkError(caller, ctx, u, err)
	}
	resp.Body = newBody(caller, ctx, cancel, u, resp.Body)
	return resp, nil
}

// readSmall returns the content of a reply, never holding more than limit bytes
// of it.
func readSmall(resp *http.Response, limit int64) ([]byte, error) {
	if err := checkContent(resp); err != nil {
		return nil, err
	}
	tooLarge := fmt.Errorf("fetch %s: %w: more than %d bytes", where(resp.Request.URL), ErrTooLarge, limit)
	if resp.ContentLength > limit {
		return nil, tooLarge
	}
	buf := make([]byte, 0, min(limit, max(resp.ContentLength, 512)))
	for int64(len(buf)) < limit {
		if len(buf) == cap(buf) {
			bigger := make([]byte, len(buf), min(2*int64(cap(buf)), limit))
			copy(bigger, buf)
			buf = bigger
		}
		n, err := resp.Body.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if err == io.EOF {
			return buf, nil
		}
		if err != nil {
			return nil, err
		}
	}
	var one [1]byte
	if n, err := io.ReadFull(resp.Body, one[:]); n > 0 {
		return nil, tooLarge
	} else if err != io.EOF {
		return nil, err
	}
	return buf, nil
}

// checkContent refuses successes that can not be the content: pages for people,
// compressed bodies, and bodies whose end can not be told from a broken line.
func checkContent(resp *http.Response) error {
	// aws-chunked is how an object was uploaded; some S3 servers store the word
	// and repeat it with the plain body.
	if e := resp.Header.Get("Content-Encoding"); e != "" && e != "identity" && e != "aws-chunked" {
		return fmt.Errorf("fetch %s: %w: content encoding %q", where(resp.Request.URL), ErrReply, printable(e))
	}
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if kind == "text/html" || kind == "application/xhtml+xml" || strings.HasPrefix(kind, "multipart/") {
		return fmt.Errorf("fetch %s: %w: it is %s, perhaps the page of a proxy or a captive portal", where(resp.Request.URL), ErrReply, kind)
	}
	if resp.ContentLength < 0 && !slices.Contains(resp.TransferEncoding, "chunked") {
		return fmt.Errorf("fetch %s: %w: a body without a length", where(resp.Request.URL), ErrReply)
	}
	return nil
}
