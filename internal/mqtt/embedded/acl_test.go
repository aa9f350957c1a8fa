package embedded

import (
	"regexp"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/otad/otad/internal/mqtt"
)

func TestOwns(t *testing.T) {
	for topic, want := range map[string]bool{
		"ota/dev/x": true, "ota/dev/#": true, "ota/dev/+/x": true, "$aws/things/dev/shadow/update": true,
		"$aws/things/dev/#": true, "$aws/things/dev/shadow/name/n/update/accepted": true, "ota/dev/": false,
		"": false, "#": false, "+": false, "ota": false, "ota/": false, "ota/dev": false, "ota/+/x": false, "ota/#": false,
		"ota/dev2/x": false, "ota/de/x": false, "ota/Dev/x": false, "ota//dev/x": false, "/ota/dev/x": false, "ota/dev#": false,
		"ota/dev+/x": false, "$aws/things/dev": false, "$aws/things/+/x": false, "$aws/+/dev/x": false, "+/dev/x": false,
		"$aws/things/dev2/x": false, "$share/g/ota/dev/x": false, "$SYS/ota/dev/x": false, "aws/things/dev/x": false,
		"$aws/things/dev/1/2/3/4/5":   true,  // 8 levels
		"$aws/things/dev/1/2/3/4/5/6": false, // 9
	} {
		if got := owns("dev", topic); got != want {
			t.Errorf("owns(dev, %q) = %v", topic, got)
		}
	}
}

// No name of a device, and no topic, opens the way to another device.
func FuzzOwns(f *testing.F) {
	for _, topic := range []string{"ota/a/x", "ota/b/x", "$aws/things/a/#", "ota/+/x", "$share/g/ota/a/x", "ota/a/../b/x"} {
		f.Add("a", topic)
	}
	f.Fuzz(func(t *testing.T, id, topic string) {
		if strings.ContainsAny(id, "/+#") || !owns(id, topic) {
			return
		}
		levels := strings.Split(topic, "/")
		mine := levels[0] == "ota" && levels[1] == id ||
			levels[0] == "$aws" && levels[1] == "things" && levels[2] == id
		if !mine || len(levels) > MaxTopicLevels {
			t.Fatalf("owns(%q, %q)", id, topic)
		}
	})
}

// The matcher agrees with the filter written as a regular expression.
func TestMatches(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		level := rapid.SampledFrom([]string{"a", "b", "", "$x"})
		topic := strings.Join(rapid.SliceOfN(level, 1, 4).Draw(t, "topic"), "/")
		filter := strings.Join(rapid.SliceOfN(rapid.OneOf(level, rapid.Just("+")), 1, 4).Draw(t, "filter"), "/")
		if rapid.Bool().Draw(t, "rest") {
			filter += "/#"
		}
		expr := regexp.QuoteMeta(filter)
		expr = strings.ReplaceAll(expr, `\+`, "[^/]*")
		if before, ok := strings.CutSuffix(expr, "/#"); ok {
			expr = before + "(/.*)?"
		}
		want := regexp.MustCompile("^"+expr+"$").MatchString(topic) &&
			strings.HasPrefix(topic, "$") == strings.HasPrefix(filter, "$")
		if got := mqtt.Matches(filter, topic); got != want {
			t.Fatalf("mqtt.Matches(%q, %q) = %v", filter, topic, got)
		}
	})
	for _, topic := range []string{"a", "a/b", "", "/"} {
		if !mqtt.Matches("#", topic) {
			t.Errorf("# does not match %q", topic)
		}
	}
	if mqtt.Matches("#", "$aws/x") || mqtt.Matches("+/x", "$aws/x") {
		t.Error("a leading wildcard matches a topic that starts with $")
	}
}
