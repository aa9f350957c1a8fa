package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// hardware is the model of every device here.
const hardware = "bench"

// site is one server with its operator, in a directory of its own.
type site struct {
	r      *runner
	dir    string
	server *process
	at     struct{ API, Device, MQTT string }
	token  string // of enrollment
	api    *http.Client
	admin  string
}

// newSite starts a server with extra flags. stop ends it.
func (r *runner) newSite(name string, flags ...string) (*site, error) {
	return r.newSiteIn(name, nil, flags...)
}

// newSiteIn is newSite with more in the server's environment.
func (r *runner) newSiteIn(name string, env []string, flags ...string) (_ *site, err error) {
	dir, err := os.MkdirTemp(r.dir, name+"-") // several sections have sites of one name
	if err != nil {
		return nil, err
	}
	s := &site{r: r, dir: dir}
	argv := append([]string{
		filepath.Join(r.bin, "otad"), "serve", "--data", s.path("server"),
		"--hosts", "localhost,127.0.0.1", "--log-format", "text", "--log-level", "warn",
		"--api-listen", "127.0.0.1:0", "--device-listen", "127.0.0.1:0", "--mqtt-listen", "127.0.0.1:0",
	}, flags...)
	s.server, err = startIn(s.path("otad.log"), env, argv...)
	if err != nil {
		return nil, err
	}
	err = r.until("otad to listen", 20*time.Millisecond, func() (bool, error) {
		raw, err := os.ReadFile(s.path("server", "addresses.json"))
		return err == nil && json.Unmarshal(raw, &s.at) == nil, s.server.ended()
	})
	if err != nil {
		s.server.stop()
		return nil, err
	}
	return s, nil
}

// newOperatedSite starts a server and makes its operator's keys.
func (r *runner) newOperatedSite(name string, flags ...string) (*site, error) {
	return r.newOperatedSiteIn(name, nil, flags...)
}

func (r *runner) newOperatedSiteIn(name string, env []string, flags ...string) (*site, error) {
	s, err := r.newSiteIn(name, env, flags...)
	if err != nil {
		return nil, err
	}
	if err := s.operate(); err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

func (s *site) operate() error {
	if _, err := s.ctl("key", "init"); err != nil {
		return err
	}
	token, err := s.ctl("token", "create", "--uses", "20000", "--hardware", hardware, "-q")
	if err != nil {
		return err
	}
	s.token = strings.TrimSpace(token)
	admin, err := os.ReadFile(s.path("server", "admin.token"))
	if err != nil {
		return err
	}
	ca, err := os.ReadFile(s.path("server", "ca.pem"))
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	s.admin = strings.TrimSpace(string(admin))
	s.api = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}}}
	return nil
}

func (s *site) stop() {
	if s.api != nil {
		s.api.CloseIdleConnections()
	}
	s.server.stop()
}

func (s *site) path(name ...string) string {
	return filepath.Join(append([]string{s.dir}, name...)...)
}

// ctl runs otactl and returns what it wrote.
func (s *site) ctl(args ...string) (string, error) {
	cmd := exec.CommandContext(s.r.ctx, filepath.Join(s.r.bin, "otactl"), args...)
	cmd.Env = append(os.Environ(), "OTACTL_SERVER="+s.at.API, "OTACTL_CA_FILE="+s.path("server", "ca.pem"),
		"OTACTL_TOKEN_FILE="+s.path("server", "admin.token"), "OTACTL_CONFIG_DIR="+s.path("operator"), "OTACTL_PASSPHRASE=correct horse")
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("otactl %s: %w: %s", strings.Join(args, " "), err, exit.Stderr)
	}
	return string(out), err
}

// enroll makes an agent's directory; the agent is not started.
func (s *site) enroll(id string) error {
	cmd := exec.CommandContext(s.r.ctx, filepath.Join(s.r.bin, "otagent"), "enroll", "--server", s.at.Device, "--id", id, "--hardware", hardware, "--dir", s.path(id))
	cmd.Env = append(os.Environ(), "OTAGENT_TOKEN="+s.token)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("enroll %s: %w: %s", id, err, out)
	}
	return nil
}

// put sends an image object to the operator API.
func (s *site) put(digest string, object io.Reader) error {
	return s.request(http.MethodPut, "/v1/images/"+digest, "application/octet-stream", object)
}

// call makes a request of the Connect protocol in JSON.
func (s *site) call(procedure string, message any) error {
	body, err := json.Marshal(message)
	if err != nil {
		return err
	}
	return s.request(http.MethodPost, "/"+procedure, "application/json", bytes.NewReader(body))
}

func (s *site) request(method, path, kind string, body io.Reader) error {
	req, err := http.NewRequestWithContext(s.r.ctx, method, s.at.API+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", kind)
	req.Header.Set("Authorization", "Bearer "+s.admin)
	resp, err := s.api.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s: %.300s", method, path, resp.Status, answer)
	}
	return err
}
