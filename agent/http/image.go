package http

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"time"

	"github.com/otad/otad/agent"
	"github.com/otad/otad/pkg/ota"
)

// Limits of the way to an image.
const (
	maxRedirects = 3
	maxLocation  = 8 << 10
	// movedFor is how long a redirect is used again; presigned addresses live 15
	// minutes.
	movedFor = 10 * time.Minute
)

// moved remembers where otad sent us for an image.
type moved struct {
	digest string
	to     *url.URL
	at     time.Time
}

// span is the part of an object that a caller asked for.
type span struct{ offset, length int64 }

// whole reports whether no Range header is needed.
func (w span) whole() bool { return w.offset == 0 && w.length < 0 }

func (w span) header() http.Header {
	if w.whole() {
		return nil
	}
	end := ""
	if w.length > 0 {
		end = strconv.FormatInt(w.offset+w.length-1, 10)
	}
	return http.Header{"Range": {fmt.Sprintf("bytes=%d-%s", w.offset, end)}}
}

// Image opens the object of an image, from otad or from where otad redirects
// to. Exactly the bytes asked for come out, or an error: a reader that ends with
// io.EOF has given them all.
func (s *Source) Image(ctx context.Context, digest string, offset, length int64) (io.ReadCloser, error) {
	if err := ota.ValidateDigest(digest); err != nil {
		return nil, err
	}
	if offset < 0 || (length > 0 && offset+length < 0) {
		return nil, fmt.Errorf("image range from %d, %d bytes: out of range", offset, length)
	}
	if length == 0 {
		return http.NoBody, nil
	}
	want := span{offset, max(length, -1)}
	if to := s.remembered(digest); to != nil {
		r, err := s.fetch(ctx, s.store(), to, want)
		if err == nil || ctx.Err() != nil {
			return r, err
		}
		s.remember(moved{}) // expired, most likely: ask otad again
	}
	return s.follow(ctx, digest, want)
}

// follow asks otad and goes where it points, at most maxRedirects times.
func (s *Source) follow(ctx context.Context, digest string, want span) (io.ReadCloser, error) {
	client, u := s.client, s.base.JoinPath("images", digest)
	for hop := 0; ; hop++ {
		r, err := s.fetch(ctx, client, u, want)
		var away *redirect
		if !errors.As(err, &away) {
			if err == nil && hop > 0 {
				s.remember(moved{digest: digest, to: u, at: s.cfg.Now()})
			}
			return r, err
		}
		if hop == maxRedirects {
			return nil, fmt.Errorf("fetch image %s: %w: more than %d redirects", digest, ErrReply, maxRedirects)
		}
		client, u = s.store(), away.to
	}
}

// redirect is fetch's way to say where to go on.
type redirect struct{ to *url.URL }

func (r *redirect) Error() string { return "redirected to " + where(r.to) }

// fetch sends one image request and checks the reply's header.
func (s *Source) fetch(ctx context.Context, client *http.Client, u *url.URL, want span) (io.ReadCloser, error) {
	resp, err := send(ctx, client, http.MethodGet, u, want.header(), nil)
	if err != nil {
		return nil, err
	}
	r, err := s.judge(resp, want)
	if err != nil {
		resp.Body.Close()
		return nil, err
	}
	return r, nil
}

func (s *Source) judge(resp *http.Response, want span) (io.ReadCloser, error) {
	switch resp.StatusCode {
	case http.StatusOK, http.StatusPartialContent:
	case http.StatusMovedPermanently, http.StatusFound, http.StatusSeeOther, http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		return nil, location(resp)
	default:
		return nil, statusError(resp, s.cfg.Now())
	}
	if err := checkContent(resp); err != nil {
		return nil, err
	}
	n, err := contentSpan(resp, want)
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w: %w", where(resp.Request.URL), ErrReply, err)
	}
	return &exact{ReadCloser: resp.Body, left: n, url: resp.Request.URL}, nil
}

// location returns a redirect, or why it is not followed.
func location(resp *http.Response) error {
	raw := resp.Header.Get("Location")
	to, err := resp.Request.URL.Parse(raw)
	if raw == "" || len(raw) > maxLocation || err != nil || (to.Scheme != "http" && to.Scheme != "https") || to.Host == "" || to.User != nil {
		return fmt.Errorf("fetch %s: %w: a redirect to no usable address", where(resp.Request.URL), ErrReply)
	}
	return &redirect{to: to}
}

// contentSpan returns how many bytes of the body are the answer to want.
func contentSpan(resp *http.Response, want span) (int64, error) {
	size := resp.ContentLength
	if size < 0 {
		return 0, errors.New("no content length")
	}
	if resp.StatusCode == http.StatusOK {
		switch {
		case want.offset > 0:
			return 0, errors.New("the whole object in answer to a range: the server or a proxy ignores ranges")
		case want.length > size:
			return 0, fmt.Errorf("object of %d bytes, asked for %d", size, want.length)
		case want.length > 0:
			return want.length, nil
		}
		return size, nil
	}
	if want.whole() {
		return 0, errors.New("a part in answer to a request for the whole")
	}
	first, last, total, err := parseContentRange(resp.Header.Get("Content-Range"))
	if err != nil {
		return 0, err
	}
	wantLast := want.offset + want.length - 1
	if want.length < 0 {
		if total < 0 {
			return 0, errors.New("content range without the object's size")
		}
		wantLast = total - 1
	}
	if first != want.offset || last != wantLast || size != last-first+1 {
		return 0, fmt.Errorf("range %d-%d in %d bytes, asked for %d-%d", first, last, size, want.offset, wantLast)
	}
	return size, nil
}

var contentRange = regexp.MustCompile(`^bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)$`)

// parseContentRange reads the header (RFC 9110, 14.4); total is -1 for "*".
func parseContentRange(s string) (first, last, total int64, err error) {
	m := contentRange.FindStringSubmatch(s)
	if m == nil {
		return 0, 0, 0, fmt.Errorf("content range %q", printable(s))
	}
	total = -1
	for i, to := range []*int64{&first, &last, &total} {
		if m[i+1] == "*" {
			continue
		}
		if *to, err = strconv.ParseInt(m[i+1], 10, 64); err != nil {
			return 0, 0, 0, err
		}
	}
	if first > last || (total >= 0 && last >= total) {
		return 0, 0, 0, fmt.Errorf("content range %q is empty or outside the object", printable(s))
	}
	return first, last, total, nil
}

// exact gives the bytes that were asked for and no more; fewer is an error.
type exact struct {
	io.ReadCloser
	left int64
	url  *url.URL
}

func (e *exact) Read(p []byte) (int, error) {
	if e.left == 0 {
		return 0, io.EOF
	}
	n, err := e.ReadCloser.Read(p[:min(int64(len(p)), e.left)])
	e.left -= int64(n)
	if err == io.EOF {
		if e.left > 0 {
			return n, fmt.Errorf("fetch %s: %w: %w", where(e.url), agent.ErrUnreachable, io.ErrUnexpectedEOF)
		}
	}
	return n, err
}

func (s *Source) remembered(digest string) *url.URL {
	s.mu.Lock()
	defer s.mu.Unlock()
	age := s.cfg.Now().Sub(s.moved.at)
	if s.moved.digest != digest || age < 0 || age > movedFor {
		return nil
	}
	return s.moved.to
}

func (s *Source) remember(m moved) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.moved = m
}
