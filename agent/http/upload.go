package http

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/url"
)

// Upload puts a body at an address of the device's own server. Another host is
// refused: what is collected on a device goes to no one else. The body's length
// need not be known; it is sent as it comes, and an answer is waited for once it
// has ended.
func (s *Source) Upload(ctx context.Context, address string, body io.Reader) error {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" || u.User != nil || u.Host != s.base.Host {
		return fmt.Errorf("upload to %.80q: want an address at https://%s", address, s.base.Host)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, u.String(), body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/octet-stream")
	req.Header.Set("User-Agent", "otagent")
	resp, err := s.client.Do(req)
	if err != nil {
		return networkError(ctx, ctx, u, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		return statusError(resp, s.cfg.Now())
	}
	return nil
}
