package http

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/otad/otad/agent"
)

func TestUpload(t *testing.T) {
	var got []byte
	answer := http.StatusNoContent
	w := newWorld(t, func(rw http.ResponseWriter, r *http.Request) {
		if cn := r.TLS.PeerCertificates[0].Subject.CommonName; cn != deviceID || r.Method != http.MethodPut || r.URL.Path != "/uploads/1" {
			t.Errorf("%s %s by %s", r.Method, r.URL, cn)
		}
		if answer == http.StatusNoContent {
			got, _ = io.ReadAll(r.Body)
		}
		rw.WriteHeader(answer)
	})
	address := w.source.base.JoinPath("uploads", "1").String()
	if err := w.source.Upload(t.Context(), address, bytes.NewReader(content)); err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	for code, want := range map[int]error{403: ErrDenied, 404: agent.ErrNoSuchFile, 413: ErrReply, 503: agent.ErrUnreachable, 307: ErrReply} {
		answer = code
		if err := w.source.Upload(t.Context(), address, strings.NewReader("x")); !errors.Is(err, want) {
			t.Errorf("%d: %v", code, err)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if err := w.source.Upload(ctx, address, strings.NewReader("x")); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestUploadStaysAtHome: whatever a command says, nothing goes to another host.
func TestUploadStaysAtHome(t *testing.T) {
	w := newWorld(t, func(_ http.ResponseWriter, r *http.Request) { t.Errorf("asked for %s", r.URL) })
	host := w.source.base.Host
	for _, address := range []string{"", "https://evil.example/x", "http://" + host + "/x", "https://u:p@" + host + "/x", "https://" + host + ".evil.example/x", "//" + host, "\x00"} {
		if err := w.source.Upload(t.Context(), address, strings.NewReader("x")); err == nil {
			t.Errorf("uploaded to %q", address)
		}
	}
}
