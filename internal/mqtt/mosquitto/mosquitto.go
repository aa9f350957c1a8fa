// Package mosquitto writes the configuration with which Eclipse Mosquitto keeps
// devices apart as our own broker does: who a device is comes from its
// certificate, and it may use its own topics and its part of the templates. It
// is text only: who runs the broker puts the files in place.
package mosquitto

import (
	"errors"
	"fmt"
	"strings"
)

// Config says what goes into the files. Paths are those on the broker's machine.
type Config struct {
	Listen    string // "PORT", or "PORT ADDRESS"
	CAFile    string // otad's CA, ca.pem
	CertFile  string
	KeyFile   string
	ACLFile   string
	CRLFile   string   // of otad's "--crl-file"; empty: none, and a revoked device keeps its certificate
	Servers   []string // names in the certificates of the otads
	Publish   []string // topic templates, as mqtt.ParseTemplates has accepted them
	Subscribe []string
}

// deviceLevel is the level of a template where the device id stands.
const deviceLevel = "{device}"

// ErrTemplate: mosquitto can not hold a template.
var ErrTemplate = errors.New("mosquitto has no rule for this topic template")

// Main returns the configuration file. Each of its lines about identity matters:
// without use_username_as_clientid a cloned certificate listens along unseen.
func (c Config) Main() string {
	crl := ""
	if c.CRLFile != "" {
		crl = "crlfile " + c.CRLFile + "\n"
	}
	return fmt.Sprintf(`# Made by "otad broker config mosquitto"; make it again rather than change it.
per_listener_settings false
allow_anonymous false
acl_file %s
persistence false
set_tcp_nodelay true
max_packet_size 262144
max_inflight_messages 1000
max_queued_messages 10000
persistent_client_expiration 7d

listener %s
cafile %s
certfile %s
keyfile %s
require_certificate true
use_identity_as_username true
use_username_as_clientid true
%s`, c.ACLFile, c.Listen, c.CAFile, c.CertFile, c.KeyFile, crl)
}

// ACL returns the access control file. ErrTemplate for a template whose first
// level is the device: a device called ota would get the server's tree.
func (c Config) ACL() (string, error) {
	var b strings.Builder
	b.WriteString("# Made by \"otad broker config mosquitto\"; make it again rather than change it.\n")
	for _, name := range c.Servers {
		fmt.Fprintf(&b, "user %s\ntopic readwrite $aws/things/#\ntopic readwrite ota/#\n\n", name)
	}
	b.WriteString("# a device: its own topics and no others\npattern readwrite $aws/things/%u/#\npattern readwrite ota/%u/#\n")
	for _, group := range []struct {
		right     string
		templates []string
	}{{"write", c.Publish}, {"read", c.Subscribe}} {
		for _, t := range group.templates {
			if strings.HasPrefix(t, deviceLevel) {
				return "", fmt.Errorf("%w: %s; put a level of plain text in front of %s", ErrTemplate, t, deviceLevel)
			}
			fmt.Fprintf(&b, "pattern %s %s\n", group.right, strings.Replace(t, deviceLevel, "%u", 1))
		}
	}
	return b.String(), nil
}
