package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/otad/otad/internal/testserver"
)

// TestExternalBrokerByTheBook takes the steps of "External broker" in
// docs/operations.md as they stand there, from nothing, with other paths and ports.
// mosquitto runs as its own user where the tests are root's, and so reads its files.
func TestExternalBrokerByTheBook(t *testing.T) {
	t.Parallel()
	s := prepareSite(t, nil)
	if err := os.Chmod(filepath.Dir(s.dir), 0o711); err != nil { // as /etc and /var/lib are, for another user
		t.Fatal(err)
	}
	addr, etc, crl := freeAddr(t), s.path("etc"), s.path("otad-crl", "crl.pem")
	book := readBook(t, "External broker")
	book.say("sudo ", "", " -o otad ", " ", "/var/lib/otad-crl", s.path("otad-crl"), "/etc/otad/otad.yaml", s.path("otad.yaml"), "/etc/mosquitto", etc,
		"broker.example:8883", "localhost:"+port(addr), "broker.example", "localhost", " -o mosquitto ", brokerOwner(),
		"config mosquitto ", fmt.Sprintf("config mosquitto --listen '%s 127.0.0.1' --certs %s/certs --acl-file %s/otad.acl ", port(addr), etc, etc))

	book.run(s.dir, "sh", 0)
	settings := fmt.Sprintf("data: %s\nhosts: [localhost]\napi-listen: %s\ndevice-listen: %s\n%s", s.path("server"), s.ports[0], s.ports[1], book.block("yaml", 0))
	if err := os.WriteFile(s.path("otad.yaml"), []byte(settings), 0o600); err != nil {
		t.Fatal(err)
	}
	s.server = start(t, "otad", s.path("otad.log"), nil, bin+"/otad", "serve", "--config", s.path("otad.yaml"))
	until(t, "the list of revoked certificates", func() bool { _, err := os.Stat(crl); return err == nil })
	book.run(s.dir, "sh", 1)
	m := s.brokerOf(etc, addr)
	m.reloadOnChange(crl)
	until(t, "devices to be let in", func() bool {
		raw, err := os.ReadFile(s.path("server", "addresses.json"))
		return err == nil && json.Unmarshal(raw, &s.at) == nil
	})
	if code, text := s.ready(); code != "200" {
		t.Errorf("readiness: status %s, %s", code, text)
	}

	s.must("key", "init")
	s.token = strings.TrimSpace(s.must("token", "create", "--uses", "2", "--hardware", hardware, "-q"))
	gone, stays := s.subscriber(m, "gone"), s.subscriber(m, "stays")
	if s.refused(m, "gone") {
		t.Fatal("refused before it is revoked")
	}
	s.must("device", "revoke", "gone", "--yes")
	until(t, "the broker to refuse the certificate", func() bool { return s.refused(m, "gone") })
	s.must("shadow", "set", "stays", "interval=30")
	until(t, "the other device to hear", func() bool { return strings.Contains(stays.text(), `"interval":30`) })
	if text := m.text(); strings.Contains(text, "Unable to open") {
		t.Errorf("mosquitto could not read something:\n%s", text)
	}
	gone.kill()
	stays.kill()
	if s.refused(m, "stays") {
		t.Error("a certificate that was not revoked is refused")
	}
}

// brokerUser is whom mosquitto becomes when root starts it.
func brokerUser() string {
	if _, err := user.Lookup("mosquitto"); err != nil {
		return "nobody"
	}
	return "mosquitto"
}

// brokerOwner is how install gives it a file, which only root can.
func brokerOwner() string {
	if os.Geteuid() != 0 {
		return " "
	}
	return " -o " + brokerUser() + " "
}

// brokerOf starts mosquitto with its directory, as a distribution does.
func (s *site) brokerOf(etc, addr string) *mosquittoProc {
	s.t.Helper()
	conf := fmt.Sprintf("log_type all\nlog_dest stderr\nuser %s\ninclude_dir %s/conf.d\n", brokerUser(), etc)
	file := filepath.Join(etc, "mosquitto.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Chmod(file, 0o644); err != nil { // whatever the umask
		s.t.Fatal(err)
	}
	program, err := testserver.MosquittoBinary()
	if err != nil {
		s.t.Fatal(err)
	}
	m := &mosquittoProc{start(s.t, "mosquitto", s.path("mosquitto.log"), nil, program, "-c", file), addr}
	until(s.t, "mosquitto to run", func() bool { return strings.Contains(m.text(), "running") })
	return m
}

// book is a section of docs/operations.md.
type book struct {
	t    *testing.T
	text string
}

var fence = regexp.MustCompile("(?s)\n```(\\w+)\n(.*?\n)```\n")

func readBook(t *testing.T, title string) *book {
	t.Helper()
	raw, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(raw), "\n## "+title+"\n")
	if !found {
		t.Fatalf("no section %q", title)
	}
	section, _, _ = strings.Cut(section, "\n### ")
	return &book{t, section}
}

// say writes what is other here: pairs of old and new. Each has to be there.
func (b *book) say(pairs ...string) {
	b.t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if !strings.Contains(b.text, pairs[i]) {
			b.t.Fatalf("the section does not say %q", pairs[i])
		}
	}
	b.text = strings.NewReplacer(pairs...).Replace(b.text)
}

// block is the n-th block of a language.
func (b *book) block(language string, n int) string {
	b.t.Helper()
	for _, found := range fence.FindAllStringSubmatch(b.text, -1) {
		if found[1] != language {
			continue
		}
		if n == 0 {
			return found[2]
		}
		n--
	}
	b.t.Fatalf("the section has too few blocks of %s", language)
	return ""
}

// run has the shell take the steps of a block.
func (b *book) run(dir, language string, n int) {
	b.t.Helper()
	steps := b.block(language, n)
	cmd := exec.Command("sh", "-e", "-c", steps)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	if out, err := cmd.CombinedOutput(); err != nil {
		b.t.Fatalf("%v\n%s\n%s", err, steps, out)
	}
}
