package mqtt

import (
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/otad/otad/pkg/ota"
)

// DeviceLevel is the level of a topic template where the device id stands.
const DeviceLevel = "{device}"

// MaxTemplates is how many topic templates a server has of each kind; each is
// compared for every message.
const MaxTemplates = 16

// Templates are the free-form topics of devices: topics of the operator's own
// making, of which each device has a part of its own. The zero value has none.
type Templates struct {
	publish, subscribe []template
}

// template is a topic filter with one level {device}. What stands in front of
// that level is literal; behind it there may be literal levels, + and a last #.
type template []string

// ParseTemplates reads the templates of topics that devices may publish to and
// subscribe to, such as "sensors/{device}/#". It refuses one that would give two
// devices the same topic, alone or together with another of them, and one in the
// server's own tree; the error says which and why.
func ParseTemplates(publish, subscribe []string) (*Templates, error) {
	t := new(Templates)
	var err error
	if t.publish, err = parseTemplates(publish); err != nil {
		return nil, err
	}
	if t.subscribe, err = parseTemplates(subscribe); err != nil {
		return nil, err
	}
	all := slices.Concat(t.publish, t.subscribe)
	for i, a := range all {
		for _, b := range all[i+1:] {
			if a.collides(b) {
				return nil, fmt.Errorf("topic templates %s and %s give two devices the same topic; put %s at the same level of both", a, b, DeviceLevel)
			}
		}
	}
	return t, nil
}

// Publish returns the texts of the templates that devices may publish to.
func (t *Templates) Publish() []string { return texts(t.publish) }

// Subscribe returns the texts of the templates that devices may subscribe to.
func (t *Templates) Subscribe() []string { return texts(t.subscribe) }

func texts(all []template) []string {
	var out []string
	for _, t := range all {
		out = append(out, t.String())
	}
	return out
}

func parseTemplates(in []string) ([]template, error) {
	if len(in) > MaxTemplates {
		return nil, fmt.Errorf("%d topic templates, at most %d", len(in), MaxTemplates)
	}
	var out []template
	for _, s := range in {
		t, err := parseTemplate(s)
		if err != nil {
			return nil, fmt.Errorf("topic template %q: %w", s, err)
		}
		if !slices.ContainsFunc(out, func(o template) bool { return slices.Equal(o, t) }) {
			out = append(out, t)
		}
	}
	return out, nil
}

func parseTemplate(s string) (template, error) {
	t := template(strings.Split(s, "/"))
	at := slices.Index(t, DeviceLevel)
	switch {
	case at < 0:
		return nil, fmt.Errorf("no level %s, so that every device would have the same topic", DeviceLevel)
	case len(t) > MaxTopicLevels:
		return nil, fmt.Errorf("%d levels, at most %d", len(t), MaxTopicLevels)
	case strings.HasPrefix(t[0], "$") || t[0] == ownTree:
		return nil, fmt.Errorf("topics that begin with $ or %s/ are the server's own; choose another first level", ownTree)
	}
	for i, level := range t {
		if err := checkLevel(level, i == len(t)-1, i > at); err != nil && i != at {
			return nil, err
		}
	}
	return t, nil
}

// checkLevel says whether a level other than the device's may stand there.
func checkLevel(level string, last, behindDevice bool) error {
	switch {
	case level == "+" && behindDevice, level == "#" && behindDevice && last:
		return nil
	case level == "+" || level == "#":
		return fmt.Errorf("+ stands behind %s only, # only as the last level behind it", DeviceLevel)
	case strings.ContainsAny(level, "+#{}%") || strings.ContainsFunc(level, unprintable) || strings.TrimSpace(level) != level:
		return fmt.Errorf("level %q: want %s once, + or # alone, or plain text without + # { } %%", level, DeviceLevel)
	}
	return nil
}

// unprintable reports what has no place in a topic, or in the line of an
// external broker's rules that is made of a template.
func unprintable(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }

func (t template) String() string { return strings.Join(t, "/") }

// covers reports whether every topic that filter (or topic) matches is one that
// the template gives to the device.
func (t template) covers(deviceID, filter string) bool {
	more := true
	for _, want := range t {
		if want == "#" {
			return true
		}
		if !more {
			return false
		}
		var level string
		level, filter, more = strings.Cut(filter, "/")
		switch want {
		case "+":
			if level == "#" {
				return false
			}
		case DeviceLevel:
			if level != deviceID {
				return false
			}
		default: // literal, so never a wildcard
			if level != want {
				return false
			}
		}
	}
	return !more
}

// collides reports whether a topic may belong to one device by t and to another
// by o. With {device} at the same level that can not be.
func (t template) collides(o template) bool {
	if slices.Index(t, DeviceLevel) == slices.Index(o, DeviceLevel) {
		return false
	}
	for i := 0; ; i++ {
		switch {
		case i < len(t) && t[i] == "#", i < len(o) && o[i] == "#":
			return true
		case i == len(t) || i == len(o):
			return len(t) == len(o)
		case !meets(t[i], o[i]):
			return false
		}
	}
}

// meets reports whether two levels of templates have a text in common.
func meets(a, b string) bool {
	if a == "+" || b == "+" || a == b {
		return true
	}
	return a == DeviceLevel && ota.ValidateDeviceID(b) == nil || b == DeviceLevel && ota.ValidateDeviceID(a) == nil
}
