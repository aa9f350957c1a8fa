package emqx_test

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/otad/otad/internal/mqtt"
	"github.com/otad/otad/internal/mqtt/emqx"
)

func config() emqx.Config {
	return emqx.Config{Listen: "8883 192.0.2.1", CAFile: "/c/ca.pem", CertFile: "/c/b.pem", KeyFile: "/c/b.key", ACLFile: "/c/acl.conf",
		Servers: []string{"otad", "otad-2"}, Publish: []string{"sensors/{device}/#", "say \"hi\"/{device}/+"}, Subscribe: []string{"sensors/{device}/command"}}
}

// rules is an interpreter of the authorization file as EMQX's documentation has
// it: the first rule that fits decides, a subscription is compared level by level
// with the rule's filter, and ${username} is the certificate's name.
type rules []struct {
	who, right string
	topics     []string
}

var (
	ruleForm  = regexp.MustCompile(`^\{allow, (all|\{username, "([^"]+)"\}), (all|publish|subscribe), \[(.*)\]\}\.$`)
	topicForm = regexp.MustCompile(`"((?:[^"\\]|\\.)*)"(?:, |$)`)
)

func parse(t *testing.T, text string) (all rules) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(text), "\n")
	for i, line := range lines {
		if line == "" || strings.HasPrefix(line, "%%") {
			continue
		}
		if i == len(lines)-1 {
			if line != "{deny, all}." {
				t.Errorf("the last rule is %s", line)
			}
			continue
		}
		m := ruleForm.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("no rule: %s", line)
		}
		r := rules{{who: m[2], right: m[3]}}
		for _, topic := range topicForm.FindAllStringSubmatch(m[4], -1) {
			r[0].topics = append(r[0].topics, strings.NewReplacer(`\"`, `"`, `\\`, `\`).Replace(topic[1]))
		}
		all = append(all, r...)
	}
	return all
}

func (all rules) allow(user, right, topic string) bool {
	if share, ok := strings.CutPrefix(topic, "$share/"); ok && right == "subscribe" {
		_, topic, _ = strings.Cut(share, "/")
	}
	for _, r := range all {
		if r.who != "" && r.who != user || r.right != "all" && r.right != right {
			continue
		}
		for _, filter := range r.topics {
			if matches(strings.Split(topic, "/"), strings.Split(strings.ReplaceAll(filter, "${username}", user), "/")) {
				return true
			}
		}
	}
	return false
}

func matches(topic, filter []string) bool {
	for i, level := range filter {
		switch {
		case level == "#":
			return true
		case i == len(topic), level != "+" && level != topic[i]:
			return false
		}
	}
	return len(topic) == len(filter)
}

func acl(t *testing.T, c emqx.Config) rules {
	t.Helper()
	text, err := c.ACL()
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, text)
}

func TestRulesKeepDevicesApart(t *testing.T) {
	all := acl(t, config())
	for _, c := range []struct {
		user, right, topic string
		want               bool
	}{
		{"one", "publish", "$aws/things/one/shadow/update", true},
		{"one", "subscribe", "$aws/things/one/jobs/+/update/accepted", true},
		{"one", "subscribe", "$aws/things/one/#", true},
		{"one", "subscribe", "$share/g/ota/one/log", true},
		{"one", "publish", "ota/one/presence", true},
		{"one", "publish", "sensors/one/a/b", true},
		{"one", "subscribe", "sensors/one/command", true},
		{"one", "publish", `say "hi"/one/x`, true},
		{"one", "publish", "$aws/things/two/shadow/update", false},
		{"one", "subscribe", "$aws/things/+/shadow/update", false},
		{"one", "subscribe", "$aws/things/#", false},
		{"one", "subscribe", "#", false},
		{"one", "subscribe", "+/one/presence", false},
		{"one", "subscribe", "$share/g/ota/+/log", false},
		{"one", "subscribe", "$share/g/#", false},
		{"one", "publish", "ota/onetwo/presence", false},
		{"one", "publish", "ota/on", false},
		{"one", "subscribe", "sensors/one/a", false},
		{"one", "subscribe", "sensors/+/command", false},
		{"one", "publish", "$SYS/brokers", false},
		{"one", "publish", "$delayed/5/ota/two/x", false},
		{"otad", "subscribe", "$aws/things/+/shadow/update", true},
		{"otad-2", "publish", "ota/two/x", true},
		{"otad-3", "publish", "ota/two/x", false},
		{"otad", "publish", "elsewhere", false},
	} {
		if got := all.allow(c.user, c.right, c.topic); got != c.want {
			t.Errorf("%s may %s %s: %t", c.user, c.right, c.topic, got)
		}
	}
}

// No topic and no filter is open to two devices, and what our own broker lets a
// device use, EMQX does as well.
func TestNothingIsSharedByTwoDevices(t *testing.T) {
	c := config()
	templates, err := mqtt.ParseTemplates(c.Publish, c.Subscribe)
	if err != nil {
		t.Fatal(err)
	}
	all := acl(t, c)
	one, two := mqtt.DeviceAccess("one", templates), mqtt.DeviceAccess("two", templates)
	level := rapid.SampledFrom([]string{"$aws", "things", "ota", "sensors", `say "hi"`, "one", "two", "command", "x", "", "+", "#", "$share", "shadow"})
	rapid.Check(t, func(t *rapid.T) {
		topic := strings.Join(rapid.SliceOfN(level, 1, 6).Draw(t, "levels"), "/")
		for _, right := range []string{"publish", "subscribe"} {
			a, b := all.allow("one", right, topic), all.allow("two", right, topic)
			if a && b {
				t.Fatalf("two devices may %s %s", right, topic)
			}
			ours := [2]bool{one.MayPublish(topic), two.MayPublish(topic)}
			if right == "subscribe" {
				ours = [2]bool{one.MaySubscribe(topic), two.MaySubscribe(topic)}
			}
			if ours[0] && !a || ours[1] && !b {
				t.Fatalf("our broker lets a device %s %s, EMQX would not", right, topic)
			}
		}
	})
}

func TestSettings(t *testing.T) {
	got := map[string]string{}
	for line := range strings.Lines(config().Main()) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		key, value, ok := strings.Cut(strings.TrimSpace(line), " = ")
		if _, twice := got[key]; !ok || twice {
			t.Fatalf("line %q", line)
		}
		got[key] = value
	}
	for key, want := range map[string]string{
		"listeners.tcp.default.enable": "false", "listeners.ws.default.enable": "false", "listeners.wss.default.enable": "false",
		"listeners.ssl.default.bind":                   `"192.0.2.1:8883"`,
		"listeners.ssl.default.ssl_options.cacertfile": `"/c/ca.pem"`, "listeners.ssl.default.ssl_options.certfile": `"/c/b.pem"`,
		"listeners.ssl.default.ssl_options.keyfile": `"/c/b.key"`, "listeners.ssl.default.ssl_options.verify": "verify_peer",
		"listeners.ssl.default.ssl_options.fail_if_no_peer_cert": "true",
		"mqtt.peer_cert_as_username":                             "cn", "mqtt.peer_cert_as_clientid": "cn",
		"mqtt.max_topic_levels": fmt.Sprint(mqtt.MaxTopicLevels), "authorization.no_match": "deny",
		"authorization.sources": `[{type = file, enable = true, path = "/c/acl.conf"}]`,
	} {
		if got[key] != want {
			t.Errorf("%s = %s, want %s", key, got[key], want)
		}
	}
	c := config()
	if c.Listen = "1883"; !strings.Contains(c.Main(), "\nlisteners.ssl.default.bind = \"0.0.0.0:1883\"\n") {
		t.Error("a port alone is not every address")
	}
}

func TestTemplatesThatEMQXReadsOtherwise(t *testing.T) {
	for _, bad := range []string{"{device}/#", "eq a/{device}", "a/${clientid}/{device}", "cost in $/{device}"} {
		c := config()
		c.Publish = []string{bad}
		if _, err := c.ACL(); !errors.Is(err, emqx.ErrTemplate) {
			t.Errorf("%s: %v", bad, err)
		}
	}
}
