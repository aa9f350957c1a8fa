package sqlstore

import (
	"strings"
	"unicode/utf8"

	"github.com/otad/otad/pkg/selector"
)

// where turns a selector into SQL about the rows d of devices and s of their
// classic shadows. Values and paths are arguments, never SQL. What SQL can not
// say exactly lies between the bounds, and selector.Match decides there:
// numbers, on a database that reads them as floats; and all of a row whose
// documents the database can not read.
//
// A NULL is taken for no, so each NOT is made of IS NOT TRUE.
type where struct{ json JSON }

func (w where) bounds(n selector.Node) Bounds {
	switch n := n.(type) {
	case selector.And:
		return w.list(both, flat[selector.And](n))
	case selector.Or:
		return w.list(either, flat[selector.Or](n))
	case selector.Not:
		b := w.bounds(n.Of)
		return Bounds{Upper: notTrue(b.Lower), Lower: notTrue(b.Upper)}
	case selector.Comparison:
		return w.comparison(n)
	}
	return Exactly(always)
}

func (w where) list(join func(...Condition) Condition, nodes []selector.Node) Bounds {
	upper, lower := make([]Condition, len(nodes)), make([]Condition, len(nodes))
	for i, n := range nodes {
		b := w.bounds(n)
		upper[i], lower[i] = b.Upper, b.Lower
	}
	return Bounds{join(upper...), join(lower...)}
}

// flat returns the parts that n joins, through parts of the same type.
func flat[T selector.And | selector.Or](n selector.Node) []selector.Node {
	t, ok := n.(T)
	if !ok {
		return []selector.Node{n}
	}
	left, right := sides(t)
	return append(flat[T](left), flat[T](right)...)
}

func sides(n any) (left, right selector.Node) {
	if and, ok := n.(selector.And); ok {
		return and.Left, and.Right
	}
	or := n.(selector.Or)
	return or.Left, or.Right
}

func (w where) comparison(c selector.Comparison) Bounds {
	switch c.Field.Source {
	case selector.ID:
		return w.text(Condition{SQL: "d.id"}, c)
	case selector.Hardware:
		return w.text(Condition{SQL: "d.hardware"}, c)
	case selector.Groups:
		return w.groups(c)
	case selector.Online:
		return w.online(c)
	case selector.LastSeen:
		return w.lastSeen(c)
	}
	column, path := columnOf(c.Field)
	for _, k := range path {
		if !w.json.Holds(k) {
			return Bounds{always, never}
		}
	}
	return w.section(column, path, c)
}

// groups asks whether the device is in a group, or in any.
func (w where) groups(c selector.Comparison) Bounds {
	const member = "EXISTS (SELECT 1 FROM group_members m WHERE m.device_id = d.id"
	switch {
	case c.Anything():
		return Exactly(Condition{SQL: member + ")"})
	case !w.json.Holds(c.Value.Text):
		return Bounds{always, never}
	}
	return Exactly(Say(member+" AND m.group_name = ?)", c.Value.Text))
}

// online asks for what was heard of a device last; of most there is a row.
func (w where) online(c selector.Comparison) Bounds {
	const heard = "EXISTS (SELECT 1 FROM device_connections o WHERE o.device_id = d.id AND o.since_at IS NOT NULL"
	if c.Anything() {
		return Exactly(Condition{SQL: heard + ")"})
	}
	return Exactly(Say(heard+" AND o.connected = ?)", flag((c.Value.Text == "true") == (c.Op != selector.NotEqual))))
}

// lastSeen asks when a device was last heard of; of one that never was there is no row.
func (w where) lastSeen(c selector.Comparison) Bounds {
	const heard = "EXISTS (SELECT 1 FROM device_seen o WHERE o.device_id = d.id"
	if c.Anything() {
		return Exactly(Condition{SQL: heard + ")"})
	}
	op := c.Op
	if op == selector.Has {
		op = selector.Equal
	}
	return Exactly(Say(heard+" AND o.seen_at "+string(op)+" ?)", c.Value.Time().UnixMicro()))
}

// columnOf returns the column that holds a field of JSON, and the path in it; ""
// for other fields.
func columnOf(f selector.Field) (column string, path []string) {
	switch f.Source {
	case selector.Reported:
		return "s.document", append([]string{"reported"}, f.Path...)
	case selector.Desired:
		return "s.document", append([]string{"desired"}, f.Path...)
	case selector.Tags:
		return "d.tags", f.Path
	}
	return "", nil
}

func (w where) section(column string, path []string, c selector.Comparison) Bounds {
	switch {
	case c.Field.Source == selector.Tags && c.Field.IsMap() && c.Anything():
		return Exactly(Condition{SQL: "(d.tags <> '{}')"})
	case c.Field.IsMap() && !c.Anything():
		return w.has(column, path, c.Value.Text)
	}
	return w.value(w.json.At(column, path, false), c)
}

// has asks for a key of the object at path.
func (w where) has(column string, path []string, key string) Bounds {
	if !w.json.Holds(key) {
		return Bounds{always, never}
	}
	return Exactly(w.json.At(column, append(path[:len(path):len(path)], key), false).Is(JSONAny))
}

// value compares a value of any type: of the parts only the one for its type
// can be true.
func (w where) value(v JSONValue, c selector.Comparison) Bounds {
	if c.Anything() {
		return Exactly(v.Is(JSONAny))
	}
	parts := w.scalar(v, c)
	if c.Op == selector.Has {
		if w.json.Holds(c.Value.Text) {
			parts = append(parts, Exactly(both(v.Is(JSONObject), v.Key(c.Value.Text))))
		} else {
			parts = append(parts, Bounds{v.Is(JSONObject), never})
		}
		elements := v.Any(func(element JSONValue) Bounds {
			equal := selector.Comparison{Op: selector.Equal, Value: c.Value}
			if equal.Value.Kind == selector.Text {
				equal.Value.Kind = selector.Word
			}
			return oneOf(w.scalar(element, equal))
		})
		parts = append(parts, Bounds{both(v.Is(JSONArray), elements.Upper), both(v.Is(JSONArray), elements.Lower)})
	}
	return oneOf(parts)
}

func oneOf(parts []Bounds) Bounds {
	if len(parts) == 0 {
		return Exactly(never)
	}
	upper, lower := make([]Condition, len(parts)), make([]Condition, len(parts))
	for i, b := range parts {
		upper[i], lower[i] = b.Upper, b.Lower
	}
	return Bounds{either(upper...), either(lower...)}
}

// scalar compares text, numbers and truths, each with its own kind.
func (w where) scalar(v JSONValue, c selector.Comparison) []Bounds {
	if c.Value.Kind == selector.Number {
		op := c.Op
		if op == selector.Has {
			op = selector.Equal
		}
		return []Bounds{v.Number(op, c.Value.Text)}
	}
	t := w.text(v.Text(), c)
	parts := []Bounds{{both(v.Is(JSONText), t.Upper), both(v.Is(JSONText), t.Lower)}}
	if c.Value.Kind == selector.Text && c.Op != selector.Has {
		return parts
	}
	same, other := JSONTrue, JSONFalse
	switch c.Value.Text {
	case "true":
	case "false":
		same, other = other, same
	default:
		return parts
	}
	switch c.Op {
	case selector.Equal, selector.Has:
		parts = append(parts, Exactly(v.Is(same)))
	case selector.NotEqual:
		parts = append(parts, Exactly(v.Is(other)))
	}
	return parts
}

// text compares text with text.
func (w where) text(t Condition, c selector.Comparison) Bounds {
	if c.Value.Kind == selector.Number {
		return Exactly(never)
	}
	if c.Anything() {
		return Exactly(always)
	}
	if !w.json.Holds(c.Value.Text) {
		return Bounds{always, never}
	}
	switch c.Op {
	case selector.Has:
		return Exactly(w.contains(t, c.Value.Text))
	case selector.Equal:
		return Exactly(w.wild(t, c))
	case selector.NotEqual:
		return Exactly(Say("(? AND ? IS NOT NULL)", notTrue(w.wild(t, c)), t))
	}
	return Exactly(Say("(? "+string(c.Op)+" ?)", t, c.Value.Text))
}

func (w where) contains(t Condition, part string) Condition {
	if part == "" {
		return always
	}
	return w.json.Contains(t, part)
}

func (w where) wild(t Condition, c selector.Comparison) Condition {
	part, openStart, openEnd := c.Wildcard()
	switch {
	case openStart && openEnd:
		return w.contains(t, part)
	case openStart && part == "":
		return always
	case openStart:
		return w.json.HasSuffix(t, part)
	case openEnd:
		return prefix(t, part)
	}
	return Say("(? = ?)", t, part)
}

// prefix is the range of the texts that begin with part.
func prefix(t Condition, part string) Condition {
	from := Say("(? >= ?)", t, part)
	if end := after(part); end != "" {
		return both(from, Say("(? < ?)", t, end))
	}
	return from
}

// after returns the first text, in order of bytes, that comes after all that
// begin with part; "" when there is none.
func after(part string) string {
	for len(part) > 0 {
		r, n := utf8.DecodeLastRuneInString(part)
		part = part[:len(part)-n]
		switch {
		case r == utf8.MaxRune:
			continue
		case r == 0xD7FF: // before the surrogates, which are no text
			return part + "\uE000"
		}
		return part + string(r+1)
	}
	return ""
}

// mentioned returns what the document of every match has in it as text, for what
// the selector can not do without. A shadow's text has a string as it is, in
// quotes, unless it has to be escaped.
func (w where) mentioned(root selector.Node) Condition {
	list := []Condition{always}
	for _, n := range flat[selector.And](root) {
		c, ok := n.(selector.Comparison)
		if !ok || c.Op != selector.Equal || c.Value.Kind == selector.Number || !plain(c.Value.Text) {
			continue
		}
		if column, _ := columnOf(c.Field); column == "s.document" {
			if m := w.json.Mentions(column, `"`+c.Value.Text+`"`); m.SQL != "" {
				list = append(list, m)
			}
		}
	}
	return both(list...)
}

// plain reports whether s is compared as it is, and stands so in JSON.
func plain(s string) bool {
	return s != "true" && s != "false" && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool {
		return r < ' ' || r == '"' || r == '\\' || r == '*' || r == 0x7f
	})
}

// needsShadow reports whether only devices with a classic shadow can match.
func needsShadow(n selector.Node) bool {
	switch n := n.(type) {
	case selector.And:
		return needsShadow(n.Left) || needsShadow(n.Right)
	case selector.Or:
		return needsShadow(n.Left) && needsShadow(n.Right)
	case selector.Comparison:
		return n.Field.Source == selector.Reported || n.Field.Source == selector.Desired
	}
	return false
}
