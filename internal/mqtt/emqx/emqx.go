// Package emqx writes the configuration with which EMQX 5 keeps devices apart as
// our own broker does: who a device is comes from its certificate, and it may use
// its own topics and its part of the templates. It is text only, by EMQX's public
// documentation; it has not been run on EMQX itself.
package emqx

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
	Servers   []string // names in the certificates of the otads
	Publish   []string // topic templates, as mqtt.ParseTemplates has accepted them
	Subscribe []string
}

// deviceLevel is the level of a template where the device id stands.
const deviceLevel = "{device}"

// ErrTemplate: the rules can not hold a template.
var ErrTemplate = errors.New("EMQX has no rule for this topic template")

// Main returns the settings, one on a line, for emqx.conf (HOCON). With them a
// connection is who its certificate says, whatever id and name it claims, the
// listeners without TLS are closed, and what no rule allows is denied.
func (c Config) Main() string {
	port, address, _ := strings.Cut(c.Listen, " ")
	if address == "" {
		address = "0.0.0.0"
	}
	var b strings.Builder
	b.WriteString("# Made by \"otad broker config emqx\"; make it again rather than change it.\n")
	for _, s := range [][2]string{
		{"listeners.tcp.default.enable", "false"},
		{"listeners.ws.default.enable", "false"},
		{"listeners.wss.default.enable", "false"},
		{"listeners.ssl.default.enable", "true"},
		{"listeners.ssl.default.bind", quote(address + ":" + port)},
		{"listeners.ssl.default.ssl_options.cacertfile", quote(c.CAFile)},
		{"listeners.ssl.default.ssl_options.certfile", quote(c.CertFile)},
		{"listeners.ssl.default.ssl_options.keyfile", quote(c.KeyFile)},
		{"listeners.ssl.default.ssl_options.verify", "verify_peer"},
		{"listeners.ssl.default.ssl_options.fail_if_no_peer_cert", "true"},
		{"mqtt.peer_cert_as_username", "cn"},
		{"mqtt.peer_cert_as_clientid", "cn"},
		{"mqtt.max_packet_size", "256KB"},
		{"mqtt.max_topic_levels", "8"},
		{"mqtt.max_inflight", "1000"},
		{"mqtt.max_mqueue_len", "10000"},
		{"authorization.no_match", "deny"},
		{"authorization.deny_action", "ignore"},
		{"authorization.sources", `[{type = file, enable = true, path = ` + quote(c.ACLFile) + `}]`},
	} {
		fmt.Fprintf(&b, "%s = %s\n", s[0], s[1])
	}
	return b.String()
}

// ACL returns the authorization file, Erlang terms of which the first that fits
// decides. ErrTemplate for a template whose first level is the device: a device
// called ota would get the server's tree.
func (c Config) ACL() (string, error) {
	var b strings.Builder
	b.WriteString("%% Made by \"otad broker config emqx\"; make it again rather than change it.\n")
	for _, name := range c.Servers {
		rule(&b, "{username, "+quote(name)+"}", "all", "$aws/things/#", "ota/#")
	}
	b.WriteString("\n%% a device: its own topics and no others\n")
	rule(&b, "all", "all", "$aws/things/${username}/#", "ota/${username}/#")
	for _, group := range []struct {
		right     string
		templates []string
	}{{"publish", c.Publish}, {"subscribe", c.Subscribe}} {
		for _, t := range group.templates {
			if strings.HasPrefix(t, deviceLevel) {
				return "", fmt.Errorf("%w: %s; put a level of plain text in front of %s", ErrTemplate, t, deviceLevel)
			}
			if strings.HasPrefix(t, "eq ") || strings.Contains(t, "$") {
				return "", fmt.Errorf("%w: %s; $ and a leading \"eq \" mean something else there", ErrTemplate, t)
			}
			rule(&b, "all", group.right, strings.Replace(t, deviceLevel, "${username}", 1))
		}
	}
	b.WriteString("\n{deny, all}.\n")
	return b.String(), nil
}

func rule(b *strings.Builder, who, right string, topics ...string) {
	quoted := make([]string, len(topics))
	for i, t := range topics {
		quoted[i] = quote(t)
	}
	fmt.Fprintf(b, "{allow, %s, %s, [%s]}.\n", who, right, strings.Join(quoted, ", "))
}

// quote is a string of both languages.
func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}
