package storetest

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/store/memstore"
	"github.com/otad/otad/pkg/selector"
	"github.com/otad/otad/pkg/shadow"
)

// indexed are fields with an index, so that selectors go both ways.
var indexed = []selector.Field{
	{Source: selector.Reported, Path: []string{"i"}},
	{Source: selector.Desired, Path: []string{"i", "a"}},
	{Source: selector.Tags, Path: []string{"site"}},
}

var selectorTests = []test{
	{"select what matches, in order, after an id", func(s *suite) {
		s.enrolled("a", "b", "c", "d")
		s.update("b", "", "k", "x")
		s.update("c", "", "k", "x")
		s.update("d", "", "k", "y")
		s.update("d", "named", "k", "x")
		s.must(s.RevokeDevice(ctx, "c", epoch))
		no, yes := false, true
		for _, tt := range []struct {
			q    fleet.DeviceQuery
			want []string
		}{
			{fleet.DeviceQuery{}, []string{"a", "b", "c", "d"}},
			{fleet.DeviceQuery{Selector: s.parse(`shadow.reported.k = "x"`)}, []string{"b", "c"}},
			{fleet.DeviceQuery{Selector: s.parse(`NOT shadow.reported.k = "x"`)}, []string{"a", "d"}},
			{fleet.DeviceQuery{Selector: s.parse(`shadow.reported.k != "x"`)}, []string{"d"}},
			{fleet.DeviceQuery{Selector: s.parse(`shadow.reported:*`), After: "b"}, []string{"c", "d"}},
			{fleet.DeviceQuery{Selector: s.parse(`shadow.reported.k = "x"`), Revoked: &no}, []string{"b"}},
			{fleet.DeviceQuery{Revoked: &yes}, []string{"c"}},
			{fleet.DeviceQuery{Revoked: &yes, After: "c"}, nil},
		} {
			s.equal(fmt.Sprintf("%+v", tt.q), s.selected(tt.q), tt.want)
		}
		_, err := s.DeleteShadow(ctx, "b", "", epoch)
		s.must(err)
		s.equal("without the deleted", s.selected(fleet.DeviceQuery{Selector: s.parse(`shadow.reported:*`)}), []string{"c", "d"})
	}},
	{"select who is online", func(s *suite) {
		s.enrolled("in", "out", "never")
		s.must(s.SaveConnections(ctx, map[string]fleet.Connection{
			"in": {Connected: true, Since: epoch, Began: epoch, Replica: "r"}, "out": {Since: epoch, Began: epoch, Reason: "gone", Replica: "r"},
		}))
		for expr, want := range map[string][]string{
			"online = true": {"in"}, "online = false": {"out"}, "online != true": {"out"}, "online:true": {"in"}, "online:*": {"in", "out"},
			"NOT online = true": {"never", "out"}, "NOT online:*": {"never"}, `online = false OR id = "never"`: {"never", "out"},
		} {
			q := fleet.DeviceQuery{Selector: s.parse(expr)}
			s.equal(expr, s.selected(q), want)
			var surveyed []string
			s.must(s.Survey(ctx, q, nil, func(d fleet.Surveyed) bool { surveyed = append(surveyed, d.ID); return true }))
			s.equal("survey "+expr, surveyed, want)
		}
	}},
	{"selecting stops when told, over many pages", func(s *suite) {
		var ids []string
		for i := range 300 {
			ids = append(ids, fmt.Sprintf("d%03d", i))
		}
		s.enrolled(ids...)
		q := fleet.DeviceQuery{Selector: s.parse(`hardware = "board-a" AND NOT id = "*5"`)}
		var seen []string
		s.must(s.SelectDevices(ctx, q, func(v fleet.DeviceView) bool {
			seen = append(seen, v.ID)
			return len(seen) < 200
		}))
		var want []string
		for _, id := range ids {
			if !strings.HasSuffix(id, "5") {
				want = append(want, id)
			}
		}
		s.equal("seen", seen, want[:200])
		s.equal("all", s.selected(q), want)
	}},
	{"text is never SQL", func(s *suite) {
		s.enrolled("a")
		s.update("a", "", "k", "x")
		for _, text := range []string{`'`, `"`, `\`, `%`, `_`, `'; DROP TABLE devices; --`, `?`, `$1`, `{rows}`, "\x00", `') OR 1=1 --`, `"."x`, `]`, `[0]`, `$`, `*x`} {
			q := quoted(text)
			for _, expr := range []string{
				"id = " + q, "hardware:" + q, "tags." + q + " = " + q, "tags:" + q, "shadow.reported." + q + " = " + q,
				"shadow.reported." + q + ".x < 5", "shadow.desired:" + q, "shadow.reported.k < " + q + " AND id = " + q, "shadow.reported.i = " + q,
			} {
				s.equal(expr, s.selected(fleet.DeviceQuery{Selector: s.parse(expr)}), []string(nil))
			}
		}
		s.equal("still there", s.selected(fleet.DeviceQuery{}), []string{"a"})
	}},
	{"a number is found at its path, whatever else looks like it", func(s *suite) {
		const number = `shadow.reported.k < 0`
		for i, tt := range []struct {
			desired, reported, expr string
		}{
			{"", `{"k":-1}`, number},
			{`{"k":1}`, `{"k":-1}`, number},
			{`{"reported":{"k":1}}`, `{"k":-1}`, number},
			{`{"reported":{"a":{"b":1}},"k":1}`, `{"a":{"k":1},"k":-1}`, number},
			{"", `{"a\"k":1,"b":{"c":1},"k":-1}`, number},
			{"", `{"a":"\"k\":1,","b":{"k":1},"k":-1}`, number},
			{"", `{"a":"}{","k":-1}`, number},
			{"", `{"a":{"k":1},"edMeta":{"b":1},"k":-1}`, number},
			{"", `{"a":[{"k":1}],"k":-1e0}`, number},
			{"", `{"a":{"reported":{"k":1}},"k":-0.5}`, number},
			{`{"edMeta":1}`, `{"b":{"k":2},"e":{"edMeta":{"x":1}},"k":-1}`, number},
			{"", `{"a":{"k":1},"b":{"k":-1}}`, `shadow.reported.b.k < 0`},
			{`{"b":{"k":1}}`, `{"b":{"k":-1}}`, `shadow.reported.b.k < 0`},
			{"", `{"a":{"b":{"k":1}},"b":{"k":-1}}`, `shadow.reported.b.k < 0`},
			{"", `{"b":{"a":{"k":1},"k":-1}}`, `shadow.reported.b.k < 0`},
			{"", `{"b":{"a\"k":1,"c":{"d":1},"k":-1}}`, `shadow.reported.b.k < 0`},
			{`{"b":{"k":1}}`, `{"a":{"edMeta":{"b":{"k":1}}},"b":{"k":-1}}`, `shadow.reported.b.k < 0`},
			{`{"a":{"k":1},"k":-1}`, `{"k":1}`, `shadow.desired.k < 0`},
			{`{"a":{"desired":{"k":1}},"k":-1}`, `{"k":1}`, `shadow.desired.k < 0`},
			{`{"b":{"k":-1}}`, `{"b":{"k":1}}`, `shadow.desired.b.k < 0`},
		} {
			id := fmt.Sprintf("d%02d", i)
			s.enrolled(id)
			s.mixed(id, tt.desired, tt.reported)
			s.equal(tt.desired+tt.reported, s.selected(fleet.DeviceQuery{Selector: s.parse(`id = "` + id + `" AND ` + tt.expr)}), []string{id})
			s.equal("not "+tt.desired+tt.reported, s.selected(fleet.DeviceQuery{Selector: s.parse(`id = "` + id + `" AND NOT ` + tt.expr)}), []string(nil))
		}
	}},
	{"numbers about the limits of what selectors compare", func(s *suite) {
		numbers := map[string]string{
			"a": "-1e400", "b": "-99999999999999999999", "c": "-9223372036854775807", "d": "0.3", "e": "0.30000000000000004", "f": "0.300000000000000041",
			"g": "9223372036854775807", "h": "9223372036854775808", "i": "99999999999999999999", "j": "1e400", "k": `"99999999999999999999"`,
		}
		for _, id := range slices.Sorted(maps.Keys(numbers)) {
			s.enrolled(id)
			s.mixed(id, "", `{"i":`+numbers[id]+`,"n":`+numbers[id]+`}`)
		}
		for _, fields := range [][]selector.Field{nil, indexed} {
			s.must(s.IndexFields(ctx, fields))
			for tail, want := range map[string][]string{
				" = 9223372036854775807": {"g"}, " > 9223372036854775807": {"h", "i", "j"}, " >= 9223372036854775807": {"g", "h", "i", "j"},
				" < -9223372036854775807": {"a", "b"}, " = -9223372036854775807": {"c"}, " = 0.30000000000000004": {"e"}, " > 0.30000000000000004": {"f", "g", "h", "i", "j"},
				" = 100000000000000000000.0": nil, " > 100000000000000000000.0": {"j"}, " < 100000000000000000000.0": {"a", "b", "c", "d", "e", "f", "g", "h", "i"},
				` = "99999999999999999999"`: {"k"},
			} {
				for _, field := range []string{"shadow.reported.i", "shadow.reported.n"} {
					s.equal(field+tail, s.selected(fleet.DeviceQuery{Selector: s.parse(field + tail)}), want)
				}
			}
		}
	}},
	{"indexes come and go, and change no answer", func(s *suite) {
		s.enrolled("a", "b", "c")
		s.update("a", "", "i", "x")
		s.update("b", "", "i", "xy")
		s.update("c", "i", "i", "x")
		for _, fields := range [][]selector.Field{nil, indexed, indexed, indexed[1:], indexed[:1], nil} {
			s.must(s.IndexFields(ctx, fields))
			for expr, want := range map[string][]string{
				`shadow.reported.i = "x"`: {"a"}, `shadow.reported.i = "x*"`: {"a", "b"}, `shadow.reported.i >= "xy"`: {"b"}, `shadow.reported.i = 5`: nil,
			} {
				s.equal(expr, s.selected(fleet.DeviceQuery{Selector: s.parse(expr)}), want)
			}
			s.update("a", "", "i", "x")
		}
		for _, f := range []selector.Field{
			{Source: selector.ID}, {Source: selector.Tags}, {Source: selector.Reported}, {Source: selector.Tags, Path: []string{"a'b"}},
			{Source: selector.Tags, Path: []string{""}}, {Source: selector.Tags, Path: []string{"?"}}, {Source: selector.Tags, Path: []string{strings.Repeat("x", 65)}},
			{Source: selector.Reported, Path: strings.Split("a.b.c.d.e.f.g.h.i", ".")},
		} {
			s.wantErr(s.IndexFields(ctx, []selector.Field{f}), fleet.ErrInvalid)
		}
		s.wantErr(s.IndexFields(ctx, make([]selector.Field, fleet.MaxIndexes+1)), fleet.ErrInvalid)
	}},
	{"the largest selectors", func(s *suite) {
		s.enrolled("a")
		s.update("a", "", "k", "x")
		for _, expr := range []string{
			strings.Repeat("id:a ", selector.MaxBytes/5),
			strings.Repeat("-id:b ", selector.MaxBytes/6),
			"id:a" + strings.Repeat(" OR id:b", selector.MaxBytes/8-1),
			strings.Repeat("(", selector.MaxNesting) + `id = "a"` + strings.Repeat(")", selector.MaxNesting),
			strings.Repeat("NOT (", selector.MaxNesting) + `id = "a"` + strings.Repeat(")", selector.MaxNesting),
			"shadow.reported.k = x" + strings.Repeat(" AND shadow.reported.k:x", selector.MaxBytes/24-1),
			"shadow.reported.k = x AND -shadow.reported.x" + strings.Repeat(".y", (selector.MaxBytes-60)/2) + ":*",
		} {
			s.equal(expr[:40], s.selected(fleet.DeviceQuery{Selector: s.parse(expr)}), []string{"a"})
		}
	}},
}

// parse returns the selector.
func (s *suite) parse(expr string) selector.Selector {
	s.Helper()
	sel, err := selector.Parse(expr)
	s.must(err)
	return sel
}

// mixed stores the sections, and then each of their members again, a second after
// the other, so that the metadata has their keys too.
func (s *suite) mixed(id, desired, reported string) {
	s.Helper()
	var sections [2]map[string]any
	for i, text := range []string{desired, reported} {
		if text != "" {
			d := json.NewDecoder(strings.NewReader(text))
			d.UseNumber()
			s.must(d.Decode(&sections[i]))
		}
	}
	at := epoch
	update := func(desired, reported map[string]any) {
		at = at.Add(time.Second)
		_, err := s.UpdateShadow(ctx, id, "", shadow.NewUpdate(desired, reported), at)
		s.must(err)
	}
	update(sections[0], sections[1])
	for _, path := range pathsOf(sections[0]) {
		update(alone(sections[0], path), nil)
	}
	for _, path := range pathsOf(sections[1]) {
		update(nil, alone(sections[1], path))
	}
}

// alone is what m has at the path, and nothing else.
func alone(m map[string]any, path []string) map[string]any {
	v := m[path[0]]
	if len(path) > 1 {
		v = alone(v.(map[string]any), path[1:])
	}
	return map[string]any{path[0]: v}
}

// selected returns the ids, and holds CountDevices to them.
func (s *suite) selected(q fleet.DeviceQuery) (ids []string) {
	s.Helper()
	s.must(s.SelectDevices(ctx, q, func(v fleet.DeviceView) bool {
		ids = append(ids, v.ID)
		return true
	}))
	n, err := s.CountDevices(ctx, q)
	s.must(err)
	s.equal("count", n, len(ids))
	return ids
}

// quoted is text as an expression has it.
func quoted(text string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range text {
		switch {
		case r == '"' || r == '\\':
			b.WriteRune('\\')
			b.WriteRune(r)
		case r < ' ' || r == 0x7f:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
	}
	return b.String() + `"`
}

// What documents and selectors are made of: little enough that they meet.
var (
	selectorKeys = rapid.SampledFrom([]string{
		"a", "a", "b", "i", "i", "battery", "a-b", "x.y", "", "é", `q"t`, `b\s`, "n\nl", "$", "[0]", "0", "*", "%", "_", "'", "nul\x00",
		"desired", "reported", "<&>", "😀", "?", "\U0010FFFF", "\uD7FF", "true",
		`q"a`, `q"i`, "edMeta", "reportedMeta", ",", ":{",
	})
	selectorTexts = rapid.SampledFrom([]string{
		"", "a", "b", "ab", "aa", "true", "false", "5", "87", "é", "ê", "😀", "😁", `q"t`, `\`, "%", "_", "'", "*", "a*", "nul\x00", "nul\x00x", "nul", "[1]", `{"a":1}`,
		strings.Repeat("long ", 600), strings.Repeat("x", 500), "\U0010FFFF", "a\U0010FFFF", "\uD7FF", "\uE000", "a b", "<&>", "\n", "ÿ", "null", `"a":5,`, "}", "{", "},{",
	})
	selectorNumbers = rapid.SampledFrom([]string{
		"0", "-0", "1", "1.0", "1e0", "10e-1", "-1", "5", "87", "87.0", "0.1", "0.10", "0.10000000000000001", "0.1000000000000000055511151231257827",
		"100000000000000.1", "100000000000000.11", "100000000000000.12", "9007199254740992", "9007199254740993", "9007199254740993.0", "9007199254740994.0",
		"1152921504606847200", "1152921504606847232", "1152921504606847232.0", "1152921504606847300.0", "1152921504606847250", "1152921504606847330.5",
		"9223372036854775807", "9223372036854775808", "-9223372036854775808", "-9223372036854775809", "123456789012345678901234567890",
		"1e400", "-1e400", "1e-400", "-1e-400", "1e200000", "1e-200000", "1E99999999999", "1e-99999999999", "5e-324", "2e-324", "1e22", "1e23", "100000000000000000000000", "1e16", "1e-7",
		strings.Repeat("7", 401), "0." + strings.Repeat("7", 700), "1e999", "1e-999",
	})
	selectorWords = rapid.SampledFrom([]string{"a", "b", "ab", "true", "false", "nul", "five"})
)

func selectorValue(t *rapid.T, depth int) any {
	switch n := rapid.IntRange(0, 11).Draw(t, "kind"); {
	case n < 3:
		return selectorTexts.Draw(t, "text")
	case n < 6:
		return json.Number(selectorNumbers.Draw(t, "number"))
	case n == 6:
		return json.Number(strconv.FormatInt(rapid.Int64().Draw(t, "integer"), 10))
	case n == 7:
		return json.Number(strconv.FormatFloat(rapid.Float64().Draw(t, "float"), 'g', -1, 64))
	case n == 8 || depth == 0:
		return rapid.Bool().Draw(t, "bool")
	case n == 9:
		a := make([]any, rapid.IntRange(0, 3).Draw(t, "elements"))
		for i := range a {
			a[i] = selectorValue(t, depth-1)
		}
		return a
	}
	return selectorObject(t, depth-1)
}

func selectorObject(t *rapid.T, depth int) map[string]any {
	m := map[string]any{}
	for range rapid.IntRange(1, 4).Draw(t, "members") {
		m[selectorKeys.Draw(t, "key")] = selectorValue(t, depth)
	}
	return m
}

// expression draws a selector. Half of its paths are those of a document.
func expression(t *rapid.T, depth int, paths [][]string) string {
	if depth > 0 {
		switch rapid.IntRange(0, 6).Draw(t, "part") {
		case 0:
			return "NOT (" + expression(t, depth-1, paths) + ")"
		case 1:
			return "-(" + expression(t, depth-1, paths) + ")"
		case 2:
			return "(" + expression(t, depth-1, paths) + ") AND (" + expression(t, depth-1, paths) + ")"
		case 3:
			return "(" + expression(t, depth-1, paths) + ") OR (" + expression(t, depth-1, paths) + ")"
		}
	}
	return compared(t, paths)
}

func compared(t *rapid.T, paths [][]string) string {
	op := rapid.SampledFrom([]string{"=", "!=", "<", "<=", ">", ">=", ":"}).Draw(t, "op")
	text := quoted(selectorTexts.Draw(t, "text"))
	if rapid.IntRange(0, 2).Draw(t, "wild") == 0 {
		star := func() string { return rapid.SampledFrom([]string{"", "*"}).Draw(t, "star") }
		text = quoted(star() + selectorTexts.Draw(t, "text") + star())
	}
	switch rapid.IntRange(0, 10).Draw(t, "field") {
	case 10:
		return "lastSeen " + op + " " + rapid.SampledFrom([]string{`"2026-05-04T02:02:01.123456Z"`, `"2026-05-04T02:03:01.123456Z"`, `"2026-05-04T04:02:01.123457+02:00"`, `"0001-01-01T00:00:01Z"`, `"9999-12-31T23:59:59Z"`, "*"}).Draw(t, "moment")
	case 0:
		return "id " + op + " " + text
	case 1:
		return "hardware " + op + " " + text
	case 2:
		return "tags." + quoted(selectorKeys.Draw(t, "key")) + op + text
	case 3:
		return "tags.site" + op + text
	case 4:
		return rapid.SampledFrom([]string{"tags", "shadow.reported", "shadow.desired"}).Draw(t, "map") + ":" + rapid.SampledFrom([]string{"*", quoted(selectorKeys.Draw(t, "key"))}).Draw(t, "asked")
	}
	path := paths[rapid.IntRange(0, len(paths)-1).Draw(t, "path")]
	if rapid.IntRange(0, 2).Draw(t, "other") == 0 {
		path = []string{rapid.SampledFrom([]string{"reported", "desired"}).Draw(t, "section"), selectorKeys.Draw(t, "key"), selectorKeys.Draw(t, "key")}
	}
	field := "shadow." + path[0]
	for _, k := range path[1:] {
		field += "." + quoted(k)
	}
	switch rapid.IntRange(0, 7).Draw(t, "literal") {
	case 0:
		return field + ":*"
	case 1:
		return field + op + selectorWords.Draw(t, "word")
	case 2, 3, 4:
		return field + op + " " + selectorNumbers.Draw(t, "number")
	case 5:
		return field + op + " " + strconv.FormatInt(rapid.Int64().Draw(t, "integer"), 10)
	}
	return field + op + text
}

// pathsOf returns the paths of every value in m.
func pathsOf(m map[string]any, prefix ...string) (paths [][]string) {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		path := append(slices.Clone(prefix), k)
		paths = append(paths, path)
		if child, ok := m[k].(map[string]any); ok {
			paths = append(paths, pathsOf(child, path...)...)
		}
	}
	return paths
}

// testSelectors holds SQL against selector.Match: over random documents and
// random expressions both name the same devices.
func testSelectors(t *testing.T, open func(t testing.TB) fleet.Store) {
	stores := [2]fleet.Store{memstore.New(), open(t)}
	ids := enrollVaried(t, stores)
	if err := stores[1].IndexFields(ctx, indexed); err != nil {
		t.Fatal(err)
	}
	for i, id := range ids[:4] { // the others were never heard of
		for _, s := range stores {
			if err := s.SeenDevices(ctx, map[string]time.Time{id: epoch.Add(time.Duration(i/2) * time.Minute)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	parsed, matched := 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		paths := [][]string{{"reported", "i"}, {"desired", "i", "a"}}
		for _, id := range rapid.SliceOfNDistinct(rapid.SampledFrom(ids), 1, 3, rapid.ID).Draw(rt, "devices") {
			desired, reported := map[string]any(nil), map[string]any(nil)
			if rapid.IntRange(0, 4).Draw(rt, "desired?") > 2 {
				desired = selectorObject(rt, 2)
			}
			if rapid.IntRange(0, 4).Draw(rt, "reported?") > 0 {
				reported = selectorObject(rt, 3)
			}
			paths = append(append(paths, pathsOf(desired, "desired")...), pathsOf(reported, "reported")...)
			for _, s := range stores {
				replaceShadow(rt, s, id, desired, reported)
			}
			again := pathsOf(reported)
			if len(again) == 0 || rapid.Bool().Draw(rt, "at once") {
				continue
			}
			part := alone(reported, again[rapid.IntRange(0, len(again)-1).Draw(rt, "again")])
			for _, s := range stores {
				if _, err := s.UpdateShadow(ctx, id, "", large(shadow.NewUpdate(nil, part)), epoch.Add(2*time.Second)); err != nil {
					rt.Fatalf("%v: %v", part, err)
				}
			}
		}
		for range 6 {
			expr := expression(rt, 3, paths)
			sel, err := selector.Parse(expr)
			if err != nil {
				continue
			}
			parsed++
			q := fleet.DeviceQuery{Selector: sel, After: rapid.SampledFrom([]string{"", "", ids[2]}).Draw(rt, "after")}
			var found [2][]string
			for i, s := range stores {
				if err := s.SelectDevices(ctx, q, func(v fleet.DeviceView) bool {
					found[i] = append(found[i], v.ID)
					return true
				}); err != nil {
					rt.Fatalf("%s: %T: %v", expr, s, err)
				}
				if n, err := s.CountDevices(ctx, q); err != nil || n != len(found[i]) {
					rt.Fatalf("%s: %T: counts %d of %d, %v", expr, s, n, len(found[i]), err)
				}
			}
			if !slices.Equal(found[0], found[1]) {
				rt.Fatalf("%s:\nin memory %q\nin SQL    %q", expr, found[0], found[1])
			}
			matched += min(len(found[0]), 1)
		}
	})
	if parsed < 100 || matched < parsed/10 {
		t.Errorf("%d expressions, of which %d match anything: too few to tell", parsed, matched)
	}
}

// enrollVaried enrolls devices that differ in id, hardware and tags.
func enrollVaried(t testing.TB, stores [2]fleet.Store) (ids []string) {
	t.Helper()
	devices := []fleet.Device{
		{ID: "a", Hardware: "a"}, {ID: "ab", Hardware: "é"}, {ID: "b", Hardware: "%", Tags: map[string]string{"site": "a", "": "x", "a": "true"}},
		{ID: "é", Hardware: "a*", Tags: map[string]string{"site": "ab", `q"t`: `q"t`, `b\s`: `\`, "n\nl": "\n", "<&>": "<&>"}},
		{ID: "q\"t", Hardware: "", Tags: map[string]string{"site": "", "x.y": "5", "😀": "😀", "'": "'"}},
		{ID: "true", Hardware: "true", Tags: map[string]string{"a": "87", "[0]": "_", "$": "%", "\U0010FFFF": "a\U0010FFFF"}},
	}
	for i, d := range devices {
		h := secret(100 + i)
		for _, s := range stores {
			if err := s.CreateEnrollmentToken(ctx, fleet.EnrollmentToken{ID: d.ID, SecretHash: h, Uses: 1, Tags: d.Tags, CreatedAt: epoch}); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Enroll(ctx, d, h, epoch); err != nil {
				t.Fatal(err)
			}
		}
		ids = append(ids, d.ID)
	}
	slices.Sort(ids)
	return ids
}

// large lets an update make as large a document as there may be.
func large(u shadow.Update) shadow.Update {
	u.MaxBytes = shadow.StateBytesCeiling
	return u
}

func replaceShadow(t *rapid.T, s fleet.Store, id string, desired, reported map[string]any) {
	u := shadow.Update{Desired: shadow.Patch{Set: true}, Reported: shadow.Patch{Set: true}}
	if _, err := s.UpdateShadow(ctx, id, "", u, epoch); err != nil {
		t.Fatal(err)
	}
	if _, err := s.UpdateShadow(ctx, id, "", large(shadow.NewUpdate(desired, reported)), epoch.Add(time.Second)); err != nil {
		t.Fatalf("%v %v: %v", desired, reported, err)
	}
}
