package http

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/otad/otad/agent"
)

// Errors beside those of package agent.
var (
	// ErrReply: the server answered with something that is not what was asked
	// for: a redirect, an error page, a wrong range, a compressed body.
	ErrReply = errors.New("unusable reply")
	// ErrTooLarge: the file is longer than the caller's limit.
	ErrTooLarge = errors.New("reply too large")
	// ErrDenied: the server does not accept the certificate or the token.
	ErrDenied = errors.New("denied by the server")
	// ErrConflict: the device id is taken by another key.
	ErrConflict = errors.New("conflict on the server")
)

// Limits of what an error reply may carry.
const (
	maxErrorBody    = 4 << 10
	maxErrorMessage = 300
	// MaxRetryAfter caps what a server may ask a device to wait.
	MaxRetryAfter = time.Hour
)

// RetryError says that the server asked for a pause; it is an
// agent.ErrUnreachable too.
type RetryError struct {
	After  time.Duration // 0 to MaxRetryAfter; 0 when the server gave no time
	Reason string
}

// Error returns the server's reason and how long it asked to wait.
func (e *RetryError) Error() string {
	return fmt.Sprintf("server asks to retry after %s: %s", e.After, e.Reason)
}

// Unwrap returns agent.ErrUnreachable.
func (e *RetryError) Unwrap() error { return agent.ErrUnreachable }

// statusError turns a reply that is not a success into an error. It reads a
// little of the body for the server's own words.
func statusError(resp *http.Response, now time.Time) error {
	reason := fmt.Sprintf("%s %s answered %d%s", resp.Request.Method, where(resp.Request.URL), resp.StatusCode, serverWords(resp))
	switch code := resp.StatusCode; {
	case code == http.StatusNotFound:
		return fmt.Errorf("%s: %w", reason, agent.ErrNoSuchFile)
	case code == http.StatusTooManyRequests, code == http.StatusServiceUnavailable:
		return &RetryError{After: retryAfter(resp.Header.Get("Retry-After"), now), Reason: reason}
	case code >= 500:
		return fmt.Errorf("%s: %w", reason, agent.ErrUnreachable)
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		return fmt.Errorf("%s: %w", reason, ErrDenied)
	case code == http.StatusConflict:
		return fmt.Errorf("%s: %w", reason, ErrConflict)
	case code >= 300 && code < 400:
		return fmt.Errorf("%s: %w: redirects are not followed here", reason, ErrReply)
	}
	return fmt.Errorf("%s: %w", reason, ErrReply)
}

// retryAfter reads both forms of the header (RFC 9110, 10.2.3).
func retryAfter(value string, now time.Time) time.Duration {
	after := time.Duration(0)
	if seconds, err := strconv.ParseUint(value, 10, 32); err == nil {
		after = time.Duration(seconds) * time.Second
	} else if at, err := http.ParseTime(value); err == nil {
		after = at.Sub(now)
	}
	return min(max(after, 0), MaxRetryAfter)
}

// serverWords returns ": message (code)" of an error body in the shape of the
// device protocol, and nothing for anything else. It reads a short body to its
// end, so that the connection can be used again.
func serverWords(resp *http.Response) string {
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorBody))
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil || kind != "application/json" {
		return ""
	}
	var body struct {
		Error struct{ Code, Message string }
	}
	if json.Unmarshal(raw, &body) != nil || body.Error.Message == "" {
		return ""
	}
	return fmt.Sprintf(": %s (%s)", printable(body.Error.Message), printable(body.Error.Code))
}

func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	return s[:min(len(s), maxErrorMessage)]
}

// where names an address without its query, which may hold a signature.
func where(u *url.URL) string {
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String()
}

// networkError classes what net/http returned. The caller's own context comes
// first, so that a cancelled call never looks like an outage.
func networkError(caller, request context.Context, u *url.URL, err error) error {
	if caller.Err() != nil {
		return fmt.Errorf("fetch %s: %w", where(u), context.Cause(caller))
	}
	if cause := context.Cause(request); cause != nil {
		return fmt.Errorf("fetch %s: %w", where(u), cause)
	}
	var inner *url.Error
	if errors.As(err, &inner) { // its text would show the whole address
		err = inner.Err
	}
	if errors.Is(err, ErrIdentity) { // it was reached, and it is somebody else
		return fmt.Errorf("fetch %s: %w", where(u), err)
	}
	return fmt.Errorf("fetch %s: %w: %w", where(u), agent.ErrUnreachable, err)
}
