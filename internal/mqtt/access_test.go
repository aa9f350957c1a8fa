package mqtt_test

import (
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/otad/otad/internal/mqtt"
)

func templates(t testing.TB, publish, subscribe []string) *mqtt.Templates {
	t.Helper()
	parsed, err := mqtt.ParseTemplates(publish, subscribe)
	if err != nil {
		t.Fatal(err)
	}
	return parsed
}

// sketch is what the usual sketch for an ESP32 needs.
func sketch(t testing.TB) *mqtt.Templates {
	return templates(t, []string{"sensors/{device}/#"}, []string{"sensors/{device}/command"})
}

func TestOwnTopics(t *testing.T) {
	a := mqtt.DeviceAccess("dev", nil)
	for topic, want := range map[string]bool{
		"ota/dev/x": true, "ota/dev/#": true, "ota/dev/+/x": true, "$aws/things/dev/shadow/update": true,
		"$aws/things/dev/#": true, "$aws/things/dev/shadow/name/n/update/accepted": true, "ota/dev/": false,
		"": false, "#": false, "+": false, "ota": false, "ota/": false, "ota/dev": false, "ota/+/x": false, "ota/#": false,
		"ota/dev2/x": false, "ota/de/x": false, "ota/Dev/x": false, "ota//dev/x": false, "/ota/dev/x": false, "ota/dev#": false,
		"ota/dev+/x": false, "$aws/things/dev": false, "$aws/things/+/x": false, "$aws/+/dev/x": false, "+/dev/x": false,
		"$aws/things/dev2/x": false, "$share/g/ota/dev/x": false, "$SYS/ota/dev/x": false, "aws/things/dev/x": false,
		"$aws/things/dev/1/2/3/4/5":   true,  // 8 levels
		"$aws/things/dev/1/2/3/4/5/6": false, // 9
		"sensors/dev/t":               false, // no template
	} {
		if got := a.MaySubscribe(topic); got != want {
			t.Errorf("MaySubscribe(%q) = %v", topic, got)
		}
		if got := a.MayReceive(topic); got != want {
			t.Errorf("MayReceive(%q) = %v", topic, got)
		}
		if got := a.MayPublish(topic); got != (want && !strings.ContainsAny(topic, "+#")) {
			t.Errorf("MayPublish(%q) = %v", topic, got)
		}
	}
}

func TestTemplatesGiveEachDeviceItsPart(t *testing.T) {
	a := mqtt.DeviceAccess("dev", sketch(t))
	for _, c := range []struct {
		topic              string
		publish, subscribe bool
	}{
		{"sensors/dev/temperature", true, false},
		{"sensors/dev/command", true, true},
		{"sensors/dev", true, false}, // 4.7.1.2: sensors/dev/# matches its parent
		{"sensors/dev/a/b", true, false},
		{"sensors/dev/a/b/c/d/e/f", true, false},    // 8 levels
		{"sensors/dev/a/b/c/d/e/f/g", false, false}, // 9
		{"sensors/dev/+", false, false},
		{"sensors/dev/#", false, false},
		{"sensors/other/temperature", false, false},
		{"sensors/other/command", false, false},
		{"sensors/+/command", false, false},
		{"sensors/#", false, false},
		{"sensors/dev/command/#", false, false},
		{"+/dev/command", false, false},
		{"#", false, false},
		{"sensors", false, false},
		{"sensors/{device}/command", false, false},
		{"sensors/devi/command", false, false},
		{"sensors/de/command", false, false},
		{"Sensors/dev/command", false, false},
		{"/sensors/dev/command", false, false},
		{"ota/dev/presence", true, true},
		{"ota/other/presence", false, false},
	} {
		if got := a.MayPublish(c.topic); got != c.publish {
			t.Errorf("MayPublish(%q) = %v", c.topic, got)
		}
		if got := a.MaySubscribe(c.topic); got != c.subscribe {
			t.Errorf("MaySubscribe(%q) = %v", c.topic, got)
		}
	}
	wide := mqtt.DeviceAccess("dev", templates(t, nil, []string{"rooms/{device}/+/set", "home/{device}/#"}))
	for filter, want := range map[string]bool{
		"rooms/dev/lamp/set": true, "rooms/dev/+/set": true, "rooms/dev/#": false, "rooms/dev/+/+": false, "rooms/dev/lamp": false,
		"home/dev/#": true, "home/dev": true, "home/dev/+/x": true, "home/+": false, "home/#": false, "home/other/#": false,
	} {
		if got := wide.MaySubscribe(filter); got != want {
			t.Errorf("MaySubscribe(%q) = %v", filter, got)
		}
	}
}

// Names that devices can not have, and one that would be the server's tree.
func TestStrangeNamesGetNothing(t *testing.T) {
	all := templates(t, []string{"{device}/#"}, []string{"{device}/#"})
	for _, id := range []string{"", "+", "#", "a/b", "$aws", "$share", "..", "a b", strings.Repeat("x", 129)} {
		a := mqtt.DeviceAccess(id, all)
		for _, topic := range []string{id, id + "/x", "ota/" + id + "/x", "$aws/things/" + id + "/x"} {
			if a.MayPublish(topic) || a.MaySubscribe(topic) || a.MayReceive(topic) {
				t.Errorf("device %q may use %q", id, topic)
			}
		}
	}
	a := mqtt.DeviceAccess("ota", all)
	if a.MayPublish("ota/dev/presence") || a.MaySubscribe("ota/#") || a.MaySubscribe("ota/dev/x") || a.MayReceive("ota/dev/x") {
		t.Error("a device called ota reads the server's tree by a template")
	}
	if !a.MaySubscribe("ota/ota/x") {
		t.Error("a device called ota has no topics")
	}
}

func TestProvisioningAccess(t *testing.T) {
	a := mqtt.ProvisioningAccess()
	long := strings.Repeat("t", 36)
	calls := []string{
		"$aws/certificates/create/json", "$aws/certificates/create/cbor",
		"$aws/certificates/create-from-csr/json", "$aws/certificates/create-from-csr/cbor",
		"$aws/provisioning-templates/fleet_1-A/provision/json", "$aws/provisioning-templates/" + long + "/provision/cbor",
	}
	for _, c := range calls {
		if !a.MayPublish(c) || a.MaySubscribe(c) || a.MayReceive(c) {
			t.Errorf("%q: a call is published, not heard", c)
		}
		for _, suffix := range []string{"/accepted", "/rejected"} {
			if a.MayPublish(c+suffix) || !a.MaySubscribe(c+suffix) || !a.MayReceive(c+suffix) {
				t.Errorf("%q: an answer is heard, not published", c+suffix)
			}
		}
		for _, not := range []string{c + "/", c + "/+", c + "/#", c + "/other", "/" + c, c + "x", c + "/accepted/accepted", "$share/g/" + c + "/accepted"} {
			if a.MayPublish(not) || a.MaySubscribe(not) || a.MayReceive(not) {
				t.Errorf("%q is open", not)
			}
		}
	}
	for _, not := range []string{
		"", "#", "+", "$aws/#", "$aws/certificates/#", "$aws/certificates/+/json", "$aws/certificates/create/+", "$aws/certificates/create",
		"$aws/provisioning-templates/+/provision/json", "$aws/provisioning-templates//provision/json", "$aws/provisioning-templates/#",
		"$aws/provisioning-templates/" + long + "t/provision/json", "$aws/provisioning-templates/a/b/provision/json", "$aws/provisioning-templates/a.b/provision/json",
		"$aws/things/dev/shadow/update", "ota/dev/presence", "$aws/certificates/create/xml",
	} {
		if a.MayPublish(not) || a.MaySubscribe(not) || a.MaySubscribe(not+"/accepted") {
			t.Errorf("%q is open", not)
		}
	}
}

func TestOpenAccessKeepsTheServersTreesShut(t *testing.T) {
	a := mqtt.OpenAccess()
	for _, topic := range []string{"TopicA", "TopicA/B", "/TopicA", "", "$other/x", "otax", "ota2/x", "x/ota/y", "a/b/c/d/e/f/g/h/i"} {
		if !a.MayPublish(topic) || !a.MaySubscribe(topic) || !a.MayReceive(topic) {
			t.Errorf("%q is shut", topic)
		}
	}
	for _, filter := range []string{"#", "+/#", "+/+", "+", "+/dev/presence", "/#"} {
		if !a.MaySubscribe(filter) {
			t.Errorf("the filter %q is refused", filter)
		}
	}
	for _, topic := range []string{"ota", "ota/", "ota/dev/presence", "ota/#", "ota/+/x", "$aws", "$aws/#", "$aws/things/dev/shadow/update", "$SYS", "$SYS/#", "$SYS/broker/x", "$share/g/ota/x"} {
		if a.MayPublish(topic) || a.MaySubscribe(topic) || a.MayReceive(topic) {
			t.Errorf("%q is open", topic)
		}
	}
}

// matching draws a topic that the filter matches.
func matching(t *rapid.T, filter string) string {
	var out []string
	level := rapid.SampledFrom([]string{"a", "b", "ota", "sensors", "", "command", "things"})
	for _, l := range strings.Split(filter, "/") {
		switch l {
		case "#":
			out = append(out, rapid.SliceOfN(level, 0, 3).Draw(t, "rest")...)
		case "+":
			out = append(out, level.Draw(t, "level"))
		default:
			out = append(out, l)
		}
	}
	return strings.Join(out, "/")
}

// What one device may hear or say, no other may: for any templates that
// ParseTemplates accepts, any two devices, and any filter.
func TestNoTwoDevicesShareATopic(t *testing.T) {
	front := rapid.SampledFrom([]string{"sensors", "a", "b", "", "ota"})
	behind := rapid.SampledFrom([]string{"a", "b", "+", "#", "command"})
	text := rapid.Custom(func(t *rapid.T) string {
		l := append(rapid.SliceOfN(front, 0, 2).Draw(t, "front"), mqtt.DeviceLevel)
		return strings.Join(append(l, rapid.SliceOfN(behind, 0, 2).Draw(t, "behind")...), "/")
	})
	word := rapid.SampledFrom([]string{"a", "b", "ota", "sensors", "+", "#", "command", ""})
	accepted := 0
	rapid.Check(t, func(t *rapid.T) {
		parsed, err := mqtt.ParseTemplates(rapid.SliceOfN(text, 0, 2).Draw(t, "publish"), rapid.SliceOfN(text, 0, 2).Draw(t, "subscribe"))
		if err != nil {
			return
		}
		ids := []string{"a", "b", "ota", "sensors"}
		mine := rapid.SampledFrom(ids).Draw(t, "mine")
		filter := strings.Join(rapid.SliceOfN(word, 1, 4).Draw(t, "filter"), "/")
		if rapid.Bool().Draw(t, "own") {
			filter = "$aws/things/" + filter
		}
		if i := strings.Index(filter, "#"); i >= 0 {
			filter = filter[:i+1]
		}
		me := mqtt.DeviceAccess(mine, parsed)
		if !me.MaySubscribe(filter) && !me.MayPublish(filter) {
			return
		}
		accepted++
		topic := matching(t, filter)
		if !mqtt.Matches(filter, topic) {
			t.Fatalf("%q does not match %q", filter, topic)
		}
		for _, other := range ids {
			if they := mqtt.DeviceAccess(other, parsed); other != mine && (they.MayPublish(topic) || they.MayReceive(topic)) {
				t.Fatalf("devices %s and %s share %q (filter %q, templates %q %q)", mine, other, topic, filter, parsed.Publish(), parsed.Subscribe())
			}
		}
	})
	if accepted == 0 {
		t.Fatal("no filter was accepted, nothing was tested")
	}
}

// No topic and no filter opens the way to another device.
func FuzzDeviceAccess(f *testing.F) {
	for _, topic := range []string{"ota/a/x", "ota/b/x", "$aws/things/a/#", "ota/+/x", "$share/g/ota/a/x", "ota/a/../b/x", "sensors/a/x", "sensors/+/command", "a/set", "#"} {
		f.Add("a", topic)
	}
	all := templates(f, []string{"sensors/{device}/#", "stat/{device}/+/x"}, []string{"sensors/{device}/command", "cmnd/{device}/#"})
	f.Fuzz(func(t *testing.T, id, topic string) {
		a := mqtt.DeviceAccess(id, all)
		if !a.MayPublish(topic) && !a.MaySubscribe(topic) {
			return
		}
		l := strings.Split(topic, "/")
		at := 1
		if l[0] == "$aws" {
			at = 2
		}
		if len(l) <= at || l[at] != id || strings.ContainsAny(strings.Join(l[:at+1], ""), "+#") || len(l) > mqtt.MaxTopicLevels {
			t.Fatalf("device %q may use %q", id, topic)
		}
	})
}

func BenchmarkDeviceAccess(b *testing.B) {
	a := mqtt.DeviceAccess("sensor-000001", sketch(b))
	b.ReportAllocs()
	for b.Loop() {
		if !a.MayPublish("$aws/things/sensor-000001/shadow/update") || !a.MayPublish("sensors/sensor-000001/temperature") {
			b.Fatal("denied")
		}
	}
}
