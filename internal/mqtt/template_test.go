package mqtt_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/otad/otad/internal/mqtt"
)

func TestTemplatesThatAreRefused(t *testing.T) {
	many := make([]string, mqtt.MaxTemplates+1)
	for i := range many {
		many[i] = "sensors/{device}/#"
	}
	for _, c := range []struct {
		publish []string
		want    string
	}{
		{[]string{"sensors/#"}, "no level {device}"},
		{[]string{""}, "no level {device}"},
		{[]string{"sensors/x{device}/#"}, "no level {device}"},
		{[]string{"sensors/{Device}/#"}, "no level {device}"},
		{[]string{"{device}/{device}"}, "want {device} once"},
		{[]string{"sensors/{device}/{metric}"}, "want {device} once"},
		{[]string{"sensors/+/{device}"}, "+ stands behind {device} only"},
		{[]string{"+/{device}/#"}, "+ stands behind {device} only"},
		{[]string{"#/{device}"}, "# only as the last level"},
		{[]string{"sensors/{device}/#/x"}, "# only as the last level"},
		{[]string{"sensors/{device}/a+"}, "+ or # alone"},
		{[]string{"sensors/{device}/a#"}, "+ or # alone"},
		{[]string{"sensors/{device}/%u"}, "plain text"},
		{[]string{"sensors/{device}/a\n"}, "plain text"},
		{[]string{"sensors/{device}/ a"}, "plain text"},
		{[]string{"sensors/{device}/\xff"}, "plain text"},
		{[]string{"sensors/{device}/\x00"}, "plain text"},
		{[]string{"$aws/things/{device}/#"}, "the server's own"},
		{[]string{"$share/{device}/#"}, "the server's own"},
		{[]string{"$SYS/{device}"}, "the server's own"},
		{[]string{"ota/{device}/#"}, "the server's own"},
		{[]string{"{device}/2/3/4/5/6/7/8/9"}, "9 levels, at most 8"},
		{many, "17 topic templates, at most 16"},
		{[]string{"a/{device}", "{device}/b"}, "two devices the same topic"},
		{[]string{"a/{device}/#", "{device}/b/c"}, "two devices the same topic"},
		{[]string{"a/{device}", "{device}/#"}, "two devices the same topic"},
		{[]string{"a/{device}", "{device}/+"}, "two devices the same topic"},
		{[]string{"a/b/{device}", "a/{device}/+"}, "two devices the same topic"},
	} {
		for _, both := range [][2][]string{{c.publish, nil}, {nil, c.publish}} {
			if _, err := mqtt.ParseTemplates(both[0], both[1]); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%q: %v, want %q", c.publish, err, c.want)
			}
		}
	}
	if _, err := mqtt.ParseTemplates([]string{"a/{device}"}, []string{"{device}/#"}); err == nil {
		t.Error("one device publishes where another listens")
	}
}

func TestTemplatesThatAreTaken(t *testing.T) {
	for _, publish := range [][]string{
		{"sensors/{device}/#"}, {"{device}"}, {"{device}/#"}, {"/x/{device}/+/y/#"}, {"a b/{device}"}, {"otad/{device}"},
		{"a/{device}", "a/b/{device}"},               // another number of levels
		{"a/{device}/x", "{device}/b/y"},             // the last level differs
		{"tele/{device}/#", "stat/{device}/#"},       // one level
		{"a.b/{device}", "{device}/x"},               // no device is called a.b
		{"sensors/{device}/#", "sensors/{device}/+"}, // within one device
	} {
		p, err := mqtt.ParseTemplates(publish, publish)
		if err != nil {
			t.Errorf("%q: %v", publish, err)
			continue
		}
		if !slices.Equal(p.Publish(), publish) || !slices.Equal(p.Subscribe(), publish) {
			t.Errorf("%q: came back as %q and %q", publish, p.Publish(), p.Subscribe())
		}
	}
}
