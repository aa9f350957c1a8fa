package deviceapi_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/otad/otad/internal/deviceapi"
	"github.com/otad/otad/internal/fleet"
)

func TestEnroll(t *testing.T) {
	p := newPlane(t)
	key := newKey(t)
	body := p.enrollBody(p.token(fleet.EnrollmentToken{Hardware: "rpi4"}), "gw-1", "", csr(t, "gw-1", key))
	if r := p.do(p.client(), "POST", "/enroll", body); r.status != http.StatusConflict || !strings.Contains(string(r.body), "key init") {
		t.Fatalf("before there is a root: %d %s", r.status, r.body)
	}
	p.initTrust()
	r := p.do(p.client(), "POST", "/enroll", body)
	var got map[string]string
	p.ok(json.Unmarshal(r.body, &got))
	root, err := p.fleet.MetadataFile(t.Context(), fleet.RoleRoot, 1)
	p.ok(err)
	if r.status != http.StatusOK || got["deviceId"] != "gw-1" || got["hardware"] != "rpi4" || got["ca"] != string(p.ca.RootPEM()) ||
		got["root"] != base64.StdEncoding.EncodeToString(root) || got["mqttUrl"] != "mqtts://broker:8883" || len(got) != 6 {
		t.Fatalf("%d %v", r.status, got)
	}
	c := p.client(pair(t, got["certificate"], key))
	if r := p.do(c, "GET", "/metadata/1.root.json", ""); r.status != http.StatusOK {
		t.Fatalf("with the certificate: %d %s", r.status, r.body)
	}
	if r := p.do(p.client(), "POST", "/enroll", body); r.status != http.StatusOK {
		t.Errorf("the same again: %d %s", r.status, r.body)
	}
	other := p.enrollBody(p.token(fleet.EnrollmentToken{}), "gw-1", "", csr(t, "gw-1", newKey(t)))
	if r := p.do(p.client(), "POST", "/enroll", other); r.status != http.StatusConflict || r.code(t) != "conflict" {
		t.Errorf("another key: %d %s", r.status, r.body)
	}
}

// TestEnrollRefusals: each refusal has its code and leaves no device and no use
// of the token behind.
func TestEnrollRefusals(t *testing.T) {
	p := newPlane(t)
	p.initTrust()
	token := p.token(fleet.EnrollmentToken{Uses: 3, DeviceGlob: "gw-*", Hardware: "rpi4"})
	good := csr(t, "gw-1", newKey(t))
	old := p.token(fleet.EnrollmentToken{})
	tokens, err := p.fleet.Store.EnrollmentTokens(t.Context())
	p.ok(err)
	for _, have := range tokens {
		if have.DeviceGlob == "" {
			p.ok(p.fleet.Store.RevokeEnrollmentToken(t.Context(), have.ID, time.Now()))
		}
	}
	for name, c := range map[string]struct {
		body   string
		status int
		code   string
	}{
		"over 64 KiB":      {p.enrollBody(token, "gw-1", "rpi4", good+strings.Repeat(" ", deviceapi.MaxRequestBytes)), 413, "too_large"},
		"empty":            {"", 400, "invalid"},
		"not JSON":         {"{", 400, "invalid"},
		"another type":     {`{"token":7}`, 400, "invalid"},
		"an array":         {`[]`, 400, "invalid"},
		"deep":             {strings.Repeat(`{"token":`, 7_000), 400, "invalid"},
		"no token":         {p.enrollBody("", "gw-1", "rpi4", good), 400, "invalid"},
		"short token":      {p.enrollBody(token[:20], "gw-1", "rpi4", good), 400, "invalid"},
		"padded token":     {p.enrollBody(token+"=", "gw-1", "rpi4", good), 400, "invalid"},
		"unknown token":    {p.enrollBody(base64.RawURLEncoding.EncodeToString(make([]byte, 32)), "gw-1", "rpi4", good), 403, "denied"},
		"revoked token":    {p.enrollBody(old, "gw-1", "rpi4", good), 403, "denied"},
		"token for others": {p.enrollBody(token, "cam-1", "rpi4", csr(t, "cam-1", newKey(t))), 403, "denied"},
		"other hardware":   {p.enrollBody(token, "gw-1", "rpi5", good), 403, "denied"},
		"bad hardware":     {p.enrollBody(token, "gw-1", "rpi 4\n", good), 400, "invalid"},
		"bad id":           {p.enrollBody(token, "gw-1/..", "rpi4", csr(t, "gw-1/..", newKey(t))), 400, "invalid"},
		"reserved id":      {p.enrollBody(token, "otad-2", "rpi4", csr(t, "otad-2", newKey(t))), 400, "invalid"},
		"other CN":         {p.enrollBody(token, "gw-1", "rpi4", csr(t, "gw-2", newKey(t))), 400, "invalid"},
		"other curve":      {p.enrollBody(token, "gw-1", "rpi4", csr(t, "gw-1", p384(t))), 400, "invalid"},
		"no CSR":           {p.enrollBody(token, "gw-1", "rpi4", ""), 400, "invalid"},
		"broken CSR":       {p.enrollBody(token, "gw-1", "rpi4", strings.Replace(good, "M", "N", 1)), 400, "invalid"},
		"large CSR":        {p.enrollBody(token, "gw-1", "rpi4", good+strings.Repeat("\n", fleet.MaxCSRBytes)), 400, "invalid"},
	} {
		if r := p.do(p.client(), "POST", "/enroll", c.body); r.status != c.status || r.code(t) != c.code {
			t.Errorf("%s: %d %s, want %d %s", name, r.status, r.body, c.status, c.code)
		}
	}
	if ids := p.devices(); len(ids) > 0 {
		t.Errorf("refused, and stored: %v", ids)
	}
	tokens, err = p.fleet.Store.EnrollmentTokens(t.Context())
	p.ok(err)
	for _, have := range tokens {
		if have.DeviceGlob != "" && have.Uses != 3 {
			t.Errorf("refusals used the token: %d of 3 left", have.Uses)
		}
	}
	if s := p.logs.String(); strings.Contains(s, "level=ERROR") {
		t.Errorf("a refusal is no fault of the server:\n%s", s)
	}
}

func TestEnrollmentsAreLimited(t *testing.T) {
	p := newPlane(t)
	p.initTrust()
	c := p.client()
	token := p.token(fleet.EnrollmentToken{})
	body := p.enrollBody(token, "gw-1", "rpi4", csr(t, "gw-1", newKey(t)))
	for i := range deviceapi.EnrollBurst {
		if r := p.do(c, "POST", "/enroll", "{"); r.status != http.StatusBadRequest {
			t.Fatalf("try %d: %d", i+1, r.status)
		}
	}
	for range 2 {
		r := p.do(c, "POST", "/enroll", body)
		if r.status != http.StatusTooManyRequests || r.code(t) != "throttled" || r.header.Get("Retry-After") != fmt.Sprint(int(deviceapi.EnrollWindow.Seconds())) {
			t.Fatalf("%d %s, Retry-After %q", r.status, r.body, r.header.Get("Retry-After"))
		}
	}
	if ids := p.devices(); len(ids) > 0 {
		t.Fatalf("throttled, and stored: %v", ids)
	}
	p.clock.advance(deviceapi.EnrollWindow)
	if r := p.do(c, "POST", "/enroll", body); r.status != http.StatusOK {
		t.Fatalf("a minute later: %d %s", r.status, r.body)
	}
}

func TestEnrollmentsMayBeMore(t *testing.T) {
	p := newPlane(t)
	url := p.serve(deviceapi.New(deviceapi.Config{Fleet: p.fleet, Blobs: p.fleet.Blobs, Log: p.fleet.Log, Now: p.clock.now, EnrollBurst: 2 * deviceapi.EnrollBurst}))
	p.url = url
	c := p.client()
	for i := range 2 * deviceapi.EnrollBurst {
		if r := p.do(c, "POST", "/enroll", "{"); r.status != http.StatusBadRequest {
			t.Fatalf("try %d: %d", i+1, r.status)
		}
	}
	if r := p.do(c, "POST", "/enroll", "{"); r.status != http.StatusTooManyRequests {
		t.Fatalf("one more: %d", r.status)
	}
}

func TestRenew(t *testing.T) {
	p := newPlane(t)
	p.initTrust()
	c, key := p.enrolled("gw-1")
	renew := func(csr string) reply {
		b, err := json.Marshal(map[string]string{"csr": csr})
		p.ok(err)
		return p.do(c, "POST", "/renew", string(b))
	}
	r := renew(csr(t, "gw-1", key))
	var got map[string]string
	p.ok(json.Unmarshal(r.body, &got))
	if r.status != http.StatusOK || len(got) != 1 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	if r := p.do(p.client(pair(t, got["certificate"], key)), "GET", "/metadata/1.root.json", ""); r.status != http.StatusOK {
		t.Fatalf("with the new certificate: %d", r.status)
	}
	p.enrolled("gw-2")
	for name, c := range map[string]struct {
		csr    string
		status int
	}{
		"another key": {csr(t, "gw-1", newKey(t)), 403}, "another name": {csr(t, "gw-2", key), 400}, "none": {"", 400},
		"too large": {strings.Repeat("x", deviceapi.MaxRequestBytes), 413},
	} {
		if r := renew(c.csr); r.status != c.status {
			t.Errorf("%s: %d %s", name, r.status, r.body)
		}
	}
}
