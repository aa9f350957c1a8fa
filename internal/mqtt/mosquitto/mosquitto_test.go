package mosquitto_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/otad/otad/internal/mqtt/mosquitto"
)

// That mosquitto reads the files and keeps devices apart by them is shown by
// brokertest over internal/mqtt/external, whose broker is configured with them.
func TestFiles(t *testing.T) {
	c := mosquitto.Config{Listen: "8883", CAFile: "/c/ca.pem", CertFile: "/c/b.pem", KeyFile: "/c/b.key", ACLFile: "/c/acl", Servers: []string{"otad", "otad-2"},
		Publish: []string{"sensors/{device}/#"}, Subscribe: []string{"sensors/{device}/command"}}
	for _, line := range []string{
		"listener 8883", "cafile /c/ca.pem", "certfile /c/b.pem", "keyfile /c/b.key", "acl_file /c/acl", "allow_anonymous false",
		"require_certificate true", "use_identity_as_username true", "use_username_as_clientid true",
	} {
		if !strings.Contains(c.Main(), "\n"+line+"\n") {
			t.Errorf("no line %q in\n%s", line, c.Main())
		}
	}
	acl, err := c.ACL()
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"user otad", "user otad-2", "pattern readwrite $aws/things/%u/#", "pattern readwrite ota/%u/#",
		"pattern write sensors/%u/#", "pattern read sensors/%u/command",
	} {
		if !strings.Contains(acl, "\n"+line+"\n") {
			t.Errorf("no line %q in\n%s", line, acl)
		}
	}
	c.Publish = []string{"{device}/#"}
	if _, err := c.ACL(); !errors.Is(err, mosquitto.ErrTemplate) {
		t.Errorf("a device called ota gets the server's tree: %v", err)
	}
}

func TestRevocationLists(t *testing.T) {
	if text := (mosquitto.Config{}).Main(); strings.Contains(text, "crlfile") {
		t.Errorf("a list where there is none:\n%s", text)
	}
	if text := (mosquitto.Config{CRLFile: "/c/crl.pem"}).Main(); !strings.Contains(text, "\ncrlfile /c/crl.pem\n") {
		t.Errorf("no list:\n%s", text)
	}
}
