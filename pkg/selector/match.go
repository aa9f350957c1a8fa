package selector

import (
	"encoding/json"
	"slices"
	"strings"
)

func (c Comparison) match(f Facts) bool {
	switch c.Field.Source {
	case ID:
		return c.matchText(f.ID())
	case Hardware:
		return c.matchText(f.Hardware())
	case Groups:
		groups := f.Groups()
		return slices.Contains(groups, c.Value.Text) || c.Anything() && len(groups) > 0
	case Online:
		online, known := f.Online()
		return known && (c.Anything() || c.matchBool(online))
	case LastSeen:
		at := f.LastSeen()
		return !at.IsZero() && (c.Anything() || c.Op.holds(at.Compare(c.Value.at)))
	case Tags:
		return c.matchTags(f.Tags())
	case Reported:
		v, ok := f.Reported(c.Field.Path)
		return ok && c.matchValue(v)
	case Desired:
		v, ok := f.Desired(c.Field.Path)
		return ok && c.matchValue(v)
	}
	return false
}

func (c Comparison) matchTags(m map[string]string) bool {
	if len(c.Field.Path) > 0 {
		s, ok := m[c.Field.Path[0]]
		return ok && c.matchText(s)
	}
	if c.Anything() {
		return len(m) > 0
	}
	_, ok := m[c.Value.Text]
	return ok
}

func (c Comparison) matchValue(v any) bool {
	if c.Anything() {
		return v != nil
	}
	switch v := v.(type) {
	case string:
		return c.matchText(v)
	case json.Number:
		return c.matchNumber(string(v))
	case bool:
		return c.matchBool(v)
	case map[string]any:
		return c.matchObject(v)
	case []any:
		return c.matchArray(v)
	}
	return false
}

func (c Comparison) matchText(s string) bool {
	if c.Value.Kind == Number {
		return false
	}
	switch c.Op {
	case Has:
		return c.Anything() || strings.Contains(s, c.Value.Text)
	case Equal:
		return matchWild(c.Value.Text, s)
	case NotEqual:
		return !matchWild(c.Value.Text, s)
	}
	return c.Op.holds(strings.Compare(s, c.Value.Text))
}

// wildcard splits a pattern that may begin and end with *.
func wildcard(pattern string) (part string, openStart, openEnd bool) {
	part, openStart = strings.CutPrefix(pattern, "*")
	part, openEnd = strings.CutSuffix(part, "*")
	return part, openStart, openEnd
}

func matchWild(pattern, s string) bool {
	part, openStart, openEnd := wildcard(pattern)
	switch {
	case openStart && openEnd:
		return strings.Contains(s, part)
	case openStart:
		return strings.HasSuffix(s, part)
	case openEnd:
		return strings.HasPrefix(s, part)
	}
	return s == part
}

func (c Comparison) matchNumber(s string) bool {
	if c.Value.Kind != Number {
		return false
	}
	d, ok := decimalOf(s)
	return ok && c.Op.holds(compareDecimals(d, c.Value.d))
}

// matchBool compares with true and false. After : the parser no longer tells
// quotes, so there both kinds of text count.
func (c Comparison) matchBool(b bool) bool {
	if c.Value.Kind == Number || c.Value.Kind == Text && c.Op != Has {
		return false
	}
	if c.Value.Text != "true" && c.Value.Text != "false" {
		return false
	}
	same := (c.Value.Text == "true") == b
	switch c.Op {
	case Equal, Has:
		return same
	case NotEqual:
		return !same
	}
	return false
}

func (c Comparison) matchObject(m map[string]any) bool {
	if c.Op != Has {
		return false
	}
	if c.Value.Text == "*" {
		return true
	}
	_, ok := m[c.Value.Text]
	return ok
}

// matchArray looks for an element that equals the value.
func (c Comparison) matchArray(a []any) bool {
	if c.Op != Has {
		return false
	}
	element := Comparison{Op: Equal, Value: c.Value}
	if element.Value.Kind == Text {
		element.Value.Kind = Word
	}
	for _, v := range a {
		if element.matchValue(v) {
			return true
		}
	}
	return false
}
