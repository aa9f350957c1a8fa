package selector

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// facts is one device, its shadow as JSON.
type facts struct {
	id, hardware      string
	tags              map[string]string
	desired, reported map[string]any
	groups            []string
	online, known     bool
	seen              time.Time
}

func (f facts) Online() (online, known bool) { return f.online, f.known }
func (f facts) LastSeen() time.Time          { return f.seen }

func (f facts) ID() string              { return f.id }
func (f facts) Hardware() string        { return f.hardware }
func (f facts) Groups() []string        { return f.groups }
func (f facts) Tags() map[string]string { return f.tags }

func (f facts) Desired(path []string) (any, bool)  { return at(f.desired, path) }
func (f facts) Reported(path []string) (any, bool) { return at(f.reported, path) }

func at(m map[string]any, path []string) (any, bool) {
	var v any = m
	for _, k := range path {
		m, _ = v.(map[string]any)
		var ok bool
		if v, ok = m[k]; !ok {
			return nil, false
		}
	}
	return v, len(path) > 0 || len(m) > 0
}

func TestOfflineAndNeverHeard(t *testing.T) {
	for expr, want := range map[string][2]bool{ // of one that is offline, and one never heard of
		"online = true": {}, "online = false": {true, false}, "online:*": {true, false}, "NOT online = true": {true, true}, "online != true": {true, false},
	} {
		s, err := Parse(expr)
		if err != nil {
			t.Fatal(err)
		}
		if got := [2]bool{s.Match(facts{known: true}), s.Match(facts{})}; got != want {
			t.Errorf("%s: %v, want %v", expr, got, want)
		}
	}
}

func TestLastSeen(t *testing.T) {
	seen := time.Date(2026, 11, 1, 12, 0, 0, 123456000, time.UTC)
	for expr, want := range map[string]bool{
		`lastSeen < "2026-11-01T12:00:00.123457Z"`: true, `lastSeen < "2026-11-01T12:00:00.123456Z"`: false, `lastSeen <= "2026-11-01T12:00:00.123456Z"`: true,
		`lastSeen = "2026-11-01T13:00:00.123456+01:00"`: true, `lastSeen:"2026-11-01T12:00:00.123456Z"`: true, `lastSeen != "2026-11-01T12:00:00Z"`: true,
		`lastSeen > "2026-11-01T12:00:00Z"`: true, `lastSeen >= "2027-01-01T00:00:00Z"`: false, `lastSeen:*`: true, `NOT lastSeen > "2026-01-01T00:00:00Z"`: false,
	} {
		s, err := Parse(expr)
		if err != nil {
			t.Fatal(err)
		}
		if s.Match(facts{seen: seen}) != want {
			t.Errorf("%s: want %v", expr, want)
		}
		if never := s.Match(facts{}); never != strings.HasPrefix(expr, "NOT") {
			t.Errorf("%s of one never seen: %v", expr, never)
		}
	}
	for _, bad := range []string{`lastSeen < "yesterday"`, `lastSeen < 5`, `lastSeen = true`, `lastSeen < "2026-11-01"`, `lastSeen < "2026-11-01T00:00:00.1234567Z"`, `lastSeen = "*"`, `lastSeen:"x"`} {
		if _, err := Parse(bad); err == nil || !strings.Contains(err.Error(), "lastSeen is a moment: write it in quotes") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func object(t testing.TB, s string) map[string]any {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(s))
	d.UseNumber()
	var m map[string]any
	if err := d.Decode(&m); err != nil {
		t.Fatal(err)
	}
	return m
}

func device(t testing.TB) facts {
	return facts{
		id: "gw-17", hardware: "rpi4", groups: []string{"canary", "lab-2"}, online: true, known: true,
		tags: map[string]string{"site": "paris", "rack": "5", "a-b": "x", "x.y": "dots", "empty": "", "flag": "true"},
		reported: object(t, `{"battery":87,"temp":-4.5,"online":true,"name":"Gate Way","big":9007199254740993,"zero":0,"huge":1e400,
			"firmware":{"version":"1.10.0","slot":{"active":"A"}},"dns":["10.0.0.1","9",5,true],"objs":[{"a":1}],"none":[],"a-b":1,"0":{"1":"n"},"star":"*"}`),
		desired: object(t, `{"interval":60.0,"online":false}`),
	}
}

func mustParse(t testing.TB, expr string) Selector {
	t.Helper()
	s, err := Parse(expr)
	if err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	return s
}

func TestMatch(t *testing.T) {
	tests := []struct {
		expr string
		want bool
	}{
		{``, true},
		{"  \n ", true},
		{`hardware = "rpi4" AND tags.site = "paris" AND shadow.reported.battery > 20 AND NOT shadow.reported.online = false`, true},

		// id, hardware and tags
		{`id = "gw-17"`, true},
		{`id != "gw-17"`, false},
		{`id = "gw-18"`, false},
		{`hardware = rpi4`, true},
		{`hardware = 'rpi4'`, true},
		{`tags.site = paris`, true},
		{`tags.rack = "5"`, true},
		{`tags."a-b" = x`, true},
		{`tags."x.y" = dots`, true},
		{`tags.empty = ""`, true},
		{`tags.flag = true`, true},
		{`tags.flag = "true"`, true},
		{`tags:site`, true},
		{`tags:"a-b"`, true},
		{`tags:nope`, false},
		{`tags:*`, true},
		{`online = true`, true},
		{`online = false`, false},
		{`online != false`, true},
		{`online:true`, true},
		{`online:*`, true},
		{`NOT online = false AND hardware = "rpi4"`, true},
		{`groups:canary`, true},
		{`groups:"lab-2"`, true},
		{`groups:lab`, false},
		{`groups:*`, true},
		{`NOT groups:nope AND id:gw`, true},
		{`tags.site:*`, true},
		{`tags.nope:*`, false},

		// wildcards: ends only, = and != only
		{`hardware = "rpi*"`, true},
		{`hardware = "*4"`, true},
		{`hardware = "*pi*"`, true},
		{`hardware = "*"`, true},
		{`hardware = "*pi"`, false},
		{`hardware = "pi*"`, false},
		{`hardware = "*p"`, false},
		{`hardware = "r*4"`, false},
		{`hardware = "x*"`, false},
		{`hardware != "rpi*"`, false},
		{`hardware != "x*"`, true},
		{`tags.empty = "*"`, true},
		{`tags.nope = "*"`, false},
		{`shadow.reported.battery = "*"`, false},
		{`shadow.reported.star = "*"`, true},

		// text
		{`hardware < "rpi5"`, true},
		{`hardware < "rpi4"`, false},
		{`hardware <= "rpi4"`, true},
		{`hardware > "rpi"`, true},
		{`hardware > "rpi4"`, false},
		{`hardware >= "rpi4"`, true},
		{`hardware >= "s"`, false},
		{`hardware:"pi"`, true},
		{`hardware:pi`, true},
		{`hardware:"PI"`, false},
		{`shadow.reported.name = "Gate Way"`, true},
		{`shadow.reported.firmware.version = "1.*"`, true},
		{`shadow.reported.firmware.slot.active = A`, true},

		// numbers
		{`shadow.reported.battery = 87`, true},
		{`shadow.reported.battery = 87.0`, true},
		{`shadow.reported.battery = 0x57`, true},
		{`shadow.reported.battery != 87`, false},
		{`shadow.reported.battery != 1`, true},
		{`shadow.reported.battery<88`, true},
		{`shadow.reported.battery < 87`, false},
		{`shadow.reported.battery <= 87`, true},
		{`shadow.reported.battery > 86.999`, true},
		{`shadow.reported.battery > 87`, false},
		{`shadow.reported.battery >= 87`, true},
		{`shadow.reported.battery >= 87.5`, false},
		{`shadow.reported.battery : 87`, true},
		{`shadow.reported.temp = -4.5`, true},
		{`shadow.reported.temp < -4`, true},
		{`shadow.reported.temp > -5`, true},
		{`shadow.reported.temp < 0`, true},
		{`shadow.reported.zero = -0.0`, true},
		{`shadow.reported.big = 9007199254740993`, true},
		{`shadow.reported.big = 9007199254740992`, false},
		{`shadow.reported.huge > 9223372036854775807`, true},
		{`shadow.desired.interval = 60`, true},

		// booleans
		{`shadow.reported.online = true`, true},
		{`shadow.reported.online != true`, false},
		{`shadow.reported.online = false`, false},
		{`shadow.reported.online != false`, true},
		{`shadow.desired.online = false`, true},
		{`shadow.reported.online:true`, true},
		{`shadow.reported.online:false`, false},
		{`shadow.reported.online < true`, false},
		{`shadow.reported.online >= true`, false},

		// objects and arrays
		{`shadow.reported:battery`, true},
		{`shadow.reported:nope`, false},
		{`shadow.reported:*`, true},
		{`shadow.desired:*`, true},
		{`shadow.reported.firmware:version`, true},
		{`shadow.reported.firmware:nope`, false},
		{`shadow.reported.firmware:*`, true},
		{`shadow.reported.firmware = "1.10.0"`, false},
		{`shadow.reported.firmware != "x"`, false},
		{`shadow.reported.dns:"10.0.0.1"`, true},
		{`shadow.reported.dns:"10.*"`, true},
		{`shadow.reported.dns:"10"`, false},
		{`shadow.reported.dns:5`, true},
		{`shadow.reported.dns:9`, false},
		{`shadow.reported.dns:true`, true},
		{`shadow.reported.dns:false`, false},
		{`shadow.reported.dns = 5`, false},
		{`shadow.reported.dns < 5`, false},
		{`shadow.reported.objs:a`, false},
		{`shadow.reported.none:*`, true},
		{`shadow.reported.none:x`, false},
		{`shadow.reported."a-b" = 1`, true},
		{`shadow.reported.0.1 = n`, true},

		// types that do not meet, and missing paths
		{`shadow.reported.battery = "87"`, false},
		{`shadow.reported.battery != "87"`, false},
		{`shadow.reported.battery < "9"`, false},
		{`shadow.reported.battery:"8"`, false},
		{`shadow.reported.battery = true`, false},
		{`shadow.reported.name = 5`, false},
		{`shadow.reported.name != 5`, false},
		{`shadow.reported.name > 5`, false},
		{`shadow.reported.name:5`, false},
		{`shadow.reported.online = "true"`, false},
		{`shadow.reported.online = 1`, false},
		{`shadow.reported.online != "x"`, false},
		{`tags.nope = "x"`, false},
		{`tags.nope != "x"`, false},
		{`NOT tags.nope = "x"`, true},
		{`shadow.reported.nope < 5`, false},
		{`shadow.reported.nope >= 5`, false},
		{`shadow.reported.nope.deeper = 5`, false},
		{`shadow.reported.battery.deeper = 5`, false},
		{`shadow.reported.dns.x:*`, false},
		{`-shadow.reported.nope < 5`, true},

		// AND, OR, NOT
		{`NOT hardware = rpi4`, false},
		{`-hardware = rpi4`, false},
		{`-(hardware = rpi3)`, true},
		{`NOT (NOT hardware = rpi4)`, true},
		{`hardware = rpi4 AND id = x`, false},
		{`hardware = rpi4 OR id = x`, true},
		{`id = x OR id = y OR id = "gw-17"`, true},
		{`hardware = rpi4 tags.site = paris`, true},
		{`hardware = rpi4 tags.site = rome`, false},
		{`id = x AND id = x OR hardware = rpi4`, false}, // OR binds tighter
		{`(id = x AND id = x) OR hardware = rpi4`, true},
		{"hardware = rpi4\nAND\n\ttags.site = paris", true},
	}
	f := device(t)
	for _, tt := range tests {
		s, err := Parse(tt.expr)
		if err != nil {
			t.Errorf("%s: %v", tt.expr, err)
			continue
		}
		if got := s.Match(f); got != tt.want {
			t.Errorf("%s: got %v, want %v", tt.expr, got, tt.want)
		}
	}
}

func TestMatchWithoutFacts(t *testing.T) {
	for expr, want := range map[string]bool{
		`tags:*`:                          false,
		`shadow.reported:*`:               false,
		`shadow.desired.a.b = 1`:          false,
		`NOT shadow.reported.up = false`:  true,
		`id = ""`:                         true,
		`shadow.reported:x OR -tags.a:*`:  true,
		`shadow.reported.up:* OR tags:ab`: false,
	} {
		if got := mustParse(t, expr).Match(facts{}); got != want {
			t.Errorf("%s: got %v, want %v", expr, got, want)
		}
	}
	if !(Selector{}).Match(facts{}) || !(Selector{}).All() || mustParse(t, "id = x").All() {
		t.Error("the zero selector, and only one without a condition, selects all")
	}
}

func TestSyntaxErrors(t *testing.T) {
	tests := []struct {
		expr    string
		column  int
		message string // part of it
	}{
		{`color = "red"`, 1, "there is no field color: the fields are id, hardware, online, lastSeen, groups, tags.KEY, shadow.reported.PATH and shadow.desired.PATH"},
		{`hardware = "é" AND color.x = 1`, 20, "there is no field color.x"},
		{"  id = x AND\n\tcolor = 1", 15, "there is no field color"},
		{`shadow.foo = 1`, 1, "not shadow.foo"},
		{`shadow = 1`, 1, "not shadow"},
		{`id.x = "1"`, 1, "id has no parts"},
		{`tags.a.b = "1"`, 1, `write tags."a.b"`},
		{`tags = "x"`, 1, "use tags:site"},
		{`online = 1`, 1, "online is true or false"},
		{`online = "true"`, 1, "online is true or false"},
		{`online > true`, 1, "online is true or false"},
		{`online = maybe`, 1, "online is true or false"},
		{`online.x = true`, 1, "online has no parts"},
		{`groups = "x"`, 1, `write groups:"canary"`},
		{`groups.x:*`, 1, `write groups:"x"`},
		{`shadow.reported = 1`, 1, "is not one value"},
		{`tags.rack = 5`, 13, "put the value in quotes"},
		{`hardware > 4.5`, 12, "put the value in quotes"},
		{`hardware`, 1, "not compared with anything"},
		{`tags.site`, 1, "tags.site:*"},
		{`"rpi4"`, 1, "a value alone"},
		{`5 = 5`, 1, "on the left side"},
		{`"id" = x`, 1, "on the left side"},
		{`hardware = tags.site`, 12, "on the right side"},
		{`hardware = (id = x)`, 13, "on the right side"},
		{`id = a and id = b`, 8, "must be in capitals: AND"},
		{`not id = a`, 1, "must be in capitals: NOT"},
		{`timestamp("x") = id`, 1, "on the left side"},
		{`size(id)`, 1, "there is no function size"},
		{`FUZZY()`, 1, "there is no function FUZZY"},
		{`AND()`, 1, "there is no function AND"},
		{`NOT(id = a)`, 1, "put a space after it"},
		{`hardware = rpi-4`, 15, "goes in quotes"},
		{`hardware = `, 11, "ends too early"},
		{`(id = a`, 8, "expected )"},
		{`id = a)`, 7, "unexpected )"},
		{`id == a`, 5, "unexpected ="},
		{`id = "a`, 6, "unterminated string"},
		{`id = "\q"`, 6, "unable to unescape"},
		{"id = \xff", 6, "not UTF-8"},
		{strings.Repeat("(", MaxNesting+1) + "id = a" + strings.Repeat(")", MaxNesting+1), MaxNesting + 1, "split the expression"},
		{`id = "` + strings.Repeat("x", MaxBytes) + `"`, MaxBytes + 1, "use at most 4096"},
	}
	for _, tt := range tests {
		_, err := Parse(tt.expr)
		var se *SyntaxError
		if !errors.As(err, &se) {
			t.Errorf("%s: got %v, want a SyntaxError", tt.expr, err)
			continue
		}
		if se.Column != tt.column || !strings.Contains(se.Message, tt.message) || se.Expr != tt.expr {
			t.Errorf("%.80s: got column %d %q, want column %d ...%s...", tt.expr, se.Column, se.Message, tt.column, tt.message)
		}
	}
}

// TestNumbersAreReadAsTheyAreWritten, or refused with what to write instead.
func TestNumbersAreReadAsTheyAreWritten(t *testing.T) {
	const (
		beyond   = "is beyond the whole numbers that are compared, -9223372036854775807 to 9223372036854775807"
		exponent = "has an exponent: write the number out"
		digits   = "has more digits than are compared: write at most 15"
		zero     = "begins with a zero: leave it out"
	)
	for _, tt := range []struct{ number, read, refused string }{
		{"0", "0", ""}, {"-5", "-5", ""}, {"5.", "5", ""}, {".5", "0.5", ""}, {"-.5", "-0.5", ""}, {"0.50", "0.5", ""}, {"0x1E5", "485", ""}, {"-0x10", "-16", ""},
		{"9223372036854775807", "9223372036854775807", ""}, {"-9223372036854775807", "-9223372036854775807", ""},
		{"9223372036854775808", "", beyond}, {"-9223372036854775808", "", beyond}, {"99999999999999999999", "", beyond}, {"0xffffffffffffffff", "", beyond},
		{strings.Repeat("9", 400), "", beyond},
		{"1e400", "", exponent}, {"-1E400", "", exponent}, {"1e5", "", exponent}, {"1.5e3", "", exponent}, {"1.e3", "", exponent}, {".5e+3", "", exponent}, {"1e-5", "", exponent},
		{"0.30000000000000004", "0.30000000000000004", ""}, {"1.00000000000000000000", "1", ""}, {"100000000000000000000.0", "100000000000000000000", ""},
		{"1.0000000000000000000000000001", "", digits}, {"0.1234567890123456789", "", digits}, {"9007199254740993.0", "", digits}, {"1152921504606846976.0", "", digits}, {strings.Repeat("9", 400) + ".0", "", digits},
		{"010", "", zero}, {"-007", "", zero}, {"00.5", "", zero},
		{"1e", "", "goes in quotes"}, {"12a", "", "goes in quotes"}, {"1_000", "", "goes in quotes"},
	} {
		for _, op := range []string{" = ", " > ", ":"} {
			expr := "tags.x = y AND shadow.reported.n" + op + tt.number
			s, err := Parse(expr)
			if tt.refused != "" {
				if err == nil || !strings.Contains(err.Error(), tt.refused) {
					t.Errorf("%s: got %v, want ...%s...", expr, err, tt.refused)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s: %v", expr, err)
				continue
			}
			if got := s.root.(And).Right.(Comparison).Value; got.Kind != Number || got.Text != tt.read {
				t.Errorf("%s: read as %+v, want the number %s", expr, got, tt.read)
			}
		}
	}
	for _, key := range []string{"007", "1e400", "99999999999999999999", "5.010"} { // keys of a path are no numbers
		if _, err := Parse("shadow.reported." + key + " = 1"); err != nil && !strings.Contains(err.Error(), "goes in quotes") {
			t.Errorf("a key %s: %v", key, err)
		}
		if !mustParse(t, `tags.a = "`+key+`" OR id = x`).Match(facts{id: "x"}) {
			t.Errorf("the text %q is not taken", key)
		}
	}
}

func TestSyntaxErrorText(t *testing.T) {
	_, err := Parse("hardware = \"é\"\tAND color = 1")
	var se *SyntaxError
	if !errors.As(err, &se) {
		t.Fatal(err)
	}
	if want := "selector: there is no field color: the fields are " + allowed + " (column 20)"; err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
	if want := "hardware = \"é\" AND color = 1\n                   ^"; se.Caret() != want {
		t.Errorf("got\n%s\nwant\n%s", se.Caret(), want)
	}
}

func TestLimitsAreReached(t *testing.T) {
	nested := strings.Repeat("(", MaxNesting) + `id = "gw-17"` + strings.Repeat(")", MaxNesting)
	long := `id = "gw-17"` + strings.Repeat(` AND id = "gw-17"`, 240)
	long += strings.Repeat(" ", MaxBytes-len(long))
	for _, expr := range []string{nested, long, `id != "` + strings.Repeat("(", MaxBytes-8) + `"`} {
		if !mustParse(t, expr).Match(device(t)) {
			t.Errorf("%.40s...: no match", expr)
		}
	}
}

// TestHostileInputIsCheap holds the parser, which tries alternatives, to a
// bounded effort on input made to try them all. The effort is counted in
// allocations, which a parser that tries again makes again.
func TestHostileInputIsCheap(t *testing.T) {
	const perByte, base = 50, 200
	for _, unit := range []string{"(", "f(", "f((", "NOT (", "-(", "a.b.c(", "(f(a,", "a OR (", "1.", "- ", "\"", "NOT ", "a ", "a:(", "f(a,f(b),"} {
		for _, n := range []int{MaxNesting / 2, MaxNesting, MaxBytes / len(unit)} {
			expr := strings.Repeat(unit, n)
			allocs := testing.AllocsPerRun(1, func() {
				if _, err := Parse(expr); err == nil {
					t.Errorf("%q x %d: want an error", unit, n)
				}
			})
			if limit := float64(base + perByte*len(expr)); allocs > limit {
				t.Errorf("%q x %d: %.0f allocations, at most %.0f", unit, n, allocs, limit)
			}
		}
	}
}

func TestStringParsesBack(t *testing.T) {
	for _, expr := range []string{``, ` id = a `, "id = a\n OR -tags:b"} {
		s := mustParse(t, expr)
		if want := strings.TrimSpace(expr); s.String() != want {
			t.Errorf("got %q, want %q", s, want)
		}
		if again := mustParse(t, s.String()); again.String() != s.String() {
			t.Errorf("%q came back as %q", s, again)
		}
	}
}

func TestMatchAsksOnlyForNamedFields(t *testing.T) {
	s := mustParse(t, `id = a AND shadow.reported.x = 1`)
	if s.Match(onlyID("b")) {
		t.Error("want no match")
	}
}

// onlyID panics when asked for anything but the id.
type onlyID string

func (f onlyID) ID() string            { return string(f) }
func (onlyID) Hardware() string        { panic("hardware") }
func (onlyID) Groups() []string        { panic("groups") }
func (onlyID) Online() (bool, bool)    { panic("groups") }
func (onlyID) LastSeen() time.Time     { panic("seen") }
func (onlyID) Tags() map[string]string { panic("tags") }

func (onlyID) Desired([]string) (any, bool)  { panic("desired") }
func (onlyID) Reported([]string) (any, bool) { panic("reported") }

func TestDecimalOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := rapid.Float64Range(-1e9, 1e9).Draw(t, "a"), rapid.Float64Range(-10, 10).Draw(t, "b")
		x, y := jsonText(t, a), jsonText(t, b)
		dx, okx := decimalOf(x)
		dy, oky := decimalOf(y)
		if !okx || !oky {
			t.Fatalf("%s, %s: not numbers", x, y)
		}
		want := 0
		if a < b {
			want = -1
		} else if a > b {
			want = 1
		}
		if got := compareDecimals(dx, dy); got != want {
			t.Fatalf("%s and %s: got %d, want %d", x, y, got, want)
		}
		if compareDecimals(dy, dx) != -want || compareDecimals(dx, dx) != 0 {
			t.Fatalf("%s and %s: not an order", x, y)
		}
	})
	rapid.Check(t, func(t *rapid.T) { // short numbers and their digits say the same, also beside numbers that are neither
		numbers := rapid.SampledFrom([]string{"0", "-0", "7", "-7", "999999999999999999", "1000000000000000000", "-1000000000000000001", "7.5", "1e3", "70e-1", "1000"})
		x, y := numbers.Draw(t, "x"), numbers.Draw(t, "y")
		dx, _ := decimalOf(x)
		dy, _ := decimalOf(y)
		lx, _ := longOf(x)
		ly, _ := longOf(y)
		if got, want := compareDecimals(dx, dy), compareDecimals(lx, ly); got != want {
			t.Fatalf("%s and %s: got %d, by digits %d", x, y, got, want)
		}
	})
	for _, bad := range []string{"", "-", "x", "1x", "1e", "1e99999999999"} {
		if _, ok := decimalOf(bad); ok {
			t.Errorf("%q: want no number", bad)
		}
	}
}

func jsonText(t *rapid.T, f float64) string {
	b, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{`hardware = "rpi4" AND tags.site = "paris" AND shadow.reported.battery > 20 AND NOT shadow.reported.online = false`,
		`id:a OR -(tags."x y":* AND shadow.desired.0.n <= -0x1f)`, `a(b(c), "d")`, `((id = 'a\x41'))`, "tags.a = \"\u00e9\" and", `NOT(id=a)`, `1.5.5 = .`, ``} {
		f.Add(s)
	}
	d := device(f)
	f.Fuzz(func(t *testing.T, expr string) {
		s, err := Parse(expr)
		if err != nil {
			se, ok := err.(*SyntaxError)
			if !ok || se.Column < 1 || se.Column > len(expr)+1 || se.Message == "" {
				t.Fatalf("%q: %#v", expr, err)
			}
			_ = se.Caret()
			return
		}
		again, err := Parse(s.String())
		if err != nil || again.Match(d) != s.Match(d) || again.String() != s.String() {
			t.Fatalf("%q comes back different from %q: %v", expr, s, err)
		}
		if expr = "NOT (" + s.String() + ")"; !s.All() && len(expr) <= MaxBytes {
			if n, err := Parse(expr); err == nil && n.Match(d) == s.Match(d) {
				t.Fatalf("%q: NOT makes no difference", expr)
			}
		}
	})
}

func BenchmarkMatch(b *testing.B) {
	s := mustParse(b, `hardware = "rpi4" AND tags.site = "paris" AND shadow.reported.battery > 20 AND NOT shadow.reported.online = false`)
	var f Facts = device(b)
	b.ReportAllocs()
	for b.Loop() {
		if !s.Match(f) {
			b.Fatal("no match")
		}
	}
}

func TestNotTurnsEverythingAround(t *testing.T) {
	f := device(t)
	for _, expr := range []string{"", `hardware = rpi4`, `hardware = x OR id = y`, `NOT tags.nope = "x"`, `-tags:site AND id = a`} {
		s := mustParse(t, expr)
		if s.Not().Match(f) == s.Match(f) {
			t.Errorf("%q: NOT makes no difference", expr)
		}
		if again := mustParse(t, s.Not().String()); again.Match(f) != s.Not().Match(f) {
			t.Errorf("%q does not mean what it says", s.Not())
		}
	}
}

func TestFields(t *testing.T) {
	s := mustParse(t, `id = a AND (tags.site = b OR -shadow.reported.a.b < 5) AND shadow.reported.a.b > 1 AND tags:x`)
	var got []string
	for _, f := range s.Fields() {
		got = append(got, f.String())
	}
	if want := "id tags.site shadow.reported.a.b tags"; strings.Join(got, " ") != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if len((Selector{}).Fields()) != 0 {
		t.Error("the selector of all names no field")
	}
}

func TestParseField(t *testing.T) {
	f, err := ParseField(`shadow.reported.firmware."a-b"`)
	if err != nil || f.Source != Reported || strings.Join(f.Path, " ") != "firmware a-b" {
		t.Errorf("%+v %v", f, err)
	}
	for _, bad := range []string{"", "color", "id:x OR id", "NOT id", "id =", "tags.a.b", "a b", "id:* AND id"} {
		if f, err := ParseField(bad); err == nil {
			t.Errorf("%q: %+v", bad, f)
		}
	}
}
