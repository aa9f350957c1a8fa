package api_test

import (
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/otad/otad/internal/fleet"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

// request is one way to ask something of the operator plane.
type request struct{ method, path, content, body string }

// requests are all ways: every procedure in the words of every protocol, as the
// descriptors list them, and what is not a procedure.
func requests(t *testing.T) (all []request) {
	t.Helper()
	procedures := 0
	protoregistry.GlobalFiles.RangeFilesByPackage(otadv1.File_otad_v1_trust_proto.Package(), func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for j := range s.Methods().Len() {
				m := s.Methods().Get(j)
				procedures++
				path := "/" + string(s.FullName()) + "/" + string(m.Name())
				contents := []string{"application/json", "application/proto"}
				if m.IsStreamingServer() {
					contents = []string{"application/connect+json", "application/connect+proto"}
				}
				for _, c := range append(contents, "application/grpc", "application/grpc+json", "application/grpc-web", "text/plain", "") {
					all = append(all, request{"POST", path, c, "{}"})
				}
				all = append(all, request{"GET", path + "?encoding=json&message=%7B%7D", "", ""})
			}
		}
		return true
	})
	if procedures < 20 {
		t.Fatalf("the descriptors list %d procedures", procedures)
	}
	return append(all,
		request{"PUT", "/v1/images/" + strings.Repeat("ab", 32), "application/octet-stream", "object"},
		request{"GET", "/metrics", "", ""},
		request{"GET", "/", "", ""},
		request{"POST", "/otad.v1.NoService/Nothing", "application/json", "{}"},
	)
}

// TestEverythingNeedsTheToken, in whatever protocol it is asked for.
func TestEverythingNeedsTheToken(t *testing.T) {
	p := newPlane(t)
	id, secret, _ := strings.Cut(strings.TrimPrefix(p.token, "otat_"), "_")
	plain := &http.Client{Transport: p.http.Transport.(bearer).Transport}
	for _, r := range requests(t) {
		for name, authorization := range map[string]string{
			"none": "", "wrong secret": "Bearer otat_" + id + "_" + base64.RawURLEncoding.EncodeToString(make([]byte, 32)),
			"no secret": "Bearer otat_" + id + "_", "unknown id": "Bearer otat_0000000000000000_" + secret, "empty": "Bearer ",
			"no Bearer": p.token, "Basic": "Basic " + base64.StdEncoding.EncodeToString([]byte("admin:"+p.token)),
		} {
			req, err := http.NewRequestWithContext(t.Context(), r.method, p.url+r.path, strings.NewReader(r.body))
			p.ok(err)
			if r.content != "" {
				req.Header.Set("Content-Type", r.content)
			}
			if authorization != "" {
				req.Header.Set("Authorization", authorization)
			}
			res, err := plain.Do(req)
			p.ok(err)
			body, err := io.ReadAll(res.Body)
			_ = res.Body.Close()
			p.ok(err)
			// gRPC and streams say it in their own words, under status 200.
			inside := strings.Contains(string(body), `"code":"unauthenticated"`) || strings.Contains(string(body), "grpc-status: 16") ||
				res.Header.Get("Grpc-Status") == "16" || res.Trailer.Get("Grpc-Status") == "16"
			if res.StatusCode != http.StatusUnauthorized && !inside {
				t.Errorf("%s %s (%s), token %s: %d %v %q", r.method, r.path, r.content, name, res.StatusCode, res.Header, body)
			}
		}
	}
	if releases, err := p.fleet.Releases(t.Context(), ""); err != nil || len(releases) > 0 {
		t.Errorf("%v, %v", releases, err)
	}
	if _, err := p.fleet.Blobs.Stat(t.Context(), "images/"+strings.Repeat("ab", 32)); err == nil {
		t.Error("an upload without a token was stored")
	}
	if res, err := p.http.Get(p.url + "/metrics"); err != nil || res.StatusCode != http.StatusOK {
		t.Errorf("with the token: %v, %v", res, err)
	} else {
		_ = res.Body.Close()
	}
}

// TestABrokenStoreIsNotABadToken: a client must not throw its token away. It hears
// that the database is away, and nothing else of what ails it.
func TestABrokenStoreIsNotABadToken(t *testing.T) {
	away := fmt.Errorf("%w: %w", fleet.ErrUnavailable, errDisk)
	for fault, want := range map[error]struct {
		status int
		text   string
	}{
		errDisk: {http.StatusInternalServerError, "the server's log has the cause"},
		away:    {http.StatusServiceUnavailable, fleet.ErrUnavailable.Error()},
	} {
		p := newPlane(t)
		answers := func(method, path string) {
			t.Helper()
			r, err := http.NewRequestWithContext(t.Context(), method, p.url+path, strings.NewReader("{}"))
			p.ok(err)
			r.Header.Set("Content-Type", "application/json")
			res, err := p.http.Do(r)
			p.ok(err)
			defer res.Body.Close()
			body, err := io.ReadAll(res.Body)
			p.ok(err)
			if res.StatusCode != want.status || strings.Contains(string(body), errDisk.Error()) || !strings.Contains(string(body), want.text) {
				t.Errorf("%v: %s: %d %s", fault, path, res.StatusCode, body)
			}
		}
		p.store.releases.Store(&fault)
		answers(http.MethodPost, "/otad.v1.FirmwareService/ListReleases")
		p.store.tokens.Store(&fault)
		answers(http.MethodGet, "/metrics")
		answers(http.MethodGet, "/v1/images/x")
		answers(http.MethodPost, "/otad.v1.TrustService/GetTrust")
	}
}
