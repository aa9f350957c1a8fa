package ota

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// pathRelease is a signed release in a line "name@version [min V] [requires N@V] [on HW]
// [sec N] [draft] [as IMAGE]".
func pathRelease(t interface{ Fatal(...any) }, line string) Release {
	words := strings.Fields(line)
	id, err := ParseReleaseID(words[0])
	if err != nil {
		t.Fatal(err)
	}
	r := Release{State: ReleaseSigned, Manifest: Manifest{Name: id.Name, Version: id.Version, HardwareIDs: []string{"a", "b"}, ImageDigest: id.String()}}
	for i := 1; i < len(words); i++ {
		switch words[i] {
		case "draft":
			r.State = ReleaseDraft
			continue
		case "withdrawn":
			r.State = ReleaseWithdrawn
			continue
		}
		i++
		switch words[i-1] {
		case "min":
			r.MinVersion = words[i]
		case "requires":
			need, _ := ParseReleaseID(words[i])
			r.Requires = append(r.Requires, need)
		case "on":
			r.HardwareIDs = []string{words[i]}
		case "sec":
			_, _ = fmt.Sscan(words[i], &r.SecurityVersion)
		case "as":
			r.ImageDigest = words[i]
		}
	}
	return r
}

func pathsOf(t *testing.T, releases string) (*Paths, error) {
	t.Helper()
	var list []Release
	for _, line := range strings.Split(strings.TrimSpace(releases), ";") {
		list = append(list, pathRelease(t, line))
	}
	return NewPaths(list[len(list)-1], list)
}

func TestPaths(t *testing.T) {
	const line = "gw@1; gw@1.5; gw@2; gw@2.1; gw@2.5 min 2; gw@3 min 2; "
	long := "gw@1; "
	for v := 2; v <= 9; v++ {
		long += fmt.Sprintf("gw@%d min %d; ", v, v-1)
	}
	for name, tt := range map[string]struct {
		releases string // the last is the target
		from     string // image, of hardware a
		want     string // via; or a part of the reason to stay, after "!"
	}{
		"needs nothing":                   {"gw@1; gw@2", "gw@1", ""},
		"needs nothing, whatever runs":    {"gw@1; gw@2", "factory", ""},
		"runs enough":                     {line + "gw@4 min 1", "gw@1.5", ""},
		"runs more":                       {"gw@9; gw@4 min 1", "gw@9", ""},
		"runs it already":                 {"ng@1 requires gw@2", "ng@1", ""},
		"the newest that will do":         {line + "gw@4 min 2", "gw@1", "gw@2.1"},
		"the shortest":                    {line + "gw@4 min 2.5", "gw@1.5", "gw@2.1 gw@3"},
		"one between":                     {line + "gw@4 min 3", "gw@2", "gw@3"},
		"two steps":                       {line + "gw@3.5 min 3", "gw@1", "gw@2.1 gw@3"},
		"never over a newer one":          {"gw@1; gw@2; gw@5; gw@4 min 2", "gw@1", "gw@2"},
		"no way":                          {"gw@1; gw@2 draft; gw@3 min 2", "gw@1", "!no signed release leads there from gw@1"},
		"over a withdrawn one":            {"gw@1; gw@2 withdrawn; gw@3 min 2", "gw@1", "!no signed release"},
		"from a withdrawn one":            {"gw@1; gw@2 withdrawn; gw@3 min 2", "gw@2", ""},
		"a draft says nothing":            {"gw@2 draft; gw@3 min 2", "gw@2", "!no release has the image"},
		"other hardware":                  {"gw@1; gw@2 on b; gw@3 min 2", "gw@1", "!gw@3 needs gw 2 or newer"},
		"unknown image":                   {line + "gw@4 min 2", "factory", "!no release has the image that they say they run"},
		"nothing said":                    {line + "gw@4 min 2", "", "!upload it as one"},
		"of no order":                     {"gw@jammy; gw@2; gw@3 min 2", "gw@jammy", "!no signed release leads there from gw@jammy"},
		"other firmware runs":             {"x@7; gw@2; gw@3 min 2", "x@7", "gw@2"},
		"another firmware is required":    {"gw@1; gw@2; ng@1 requires gw@2", "gw@1", "gw@2"},
		"and runs":                        {"gw@1; gw@2; ng@1 requires gw@2", "gw@2", ""},
		"over two firmwares":              {"gw@1; gw@2; ng@1 requires gw@2; ng@2 min 1", "gw@1", "gw@2 ng@1"},
		"never below a security version":  {"gw@1 sec 3; gw@2 sec 2; gw@3 sec 3 min 2", "gw@1", "!no signed release"},
		"nor over one above the target":   {"gw@1; gw@2 sec 4; gw@3 sec 3 min 2", "gw@1", "!no signed release"},
		"the security version goes up":    {"gw@1; gw@2 sec 2; gw@3 sec 3 min 2", "gw@1", "gw@2"},
		"the same image is no step":       {"gw@1; gw@2 as gw@1; gw@3 min 2", "gw@1", "!no signed release"},
		"an image is the least it may be": {"gw@2 as img; gw@1 as img; gw@2.5; gw@3 min 2", "img", "gw@2.5"},
		"as many as may be":               {long[:strings.Index(long, "gw@9")-2], "gw@1", "gw@2 gw@3 gw@4 gw@5 gw@6 gw@7"},
		"a limit on how many":             {long + "gw@10 min 9", "gw@1", "!install 9 releases one after the other, at most 8"},
		"as many as the limit":            {long + "gw@10 min 9", "gw@2", "gw@3 gw@4 gw@5 gw@6 gw@7 gw@8 gw@9"},
	} {
		t.Run(name, func(t *testing.T) {
			p, err := pathsOf(t, tt.releases)
			if err != nil {
				t.Fatal(err)
			}
			path := p.From(Position{"a", tt.from})
			got := strings.Trim(fmt.Sprint(path.Via), "[]")
			if want, stay := strings.CutPrefix(tt.want, "!"); stay {
				if !strings.Contains(path.Stay, want) || path.Via != nil {
					t.Errorf("%+v, want to stay since %s", path, want)
				}
			} else if got != want || path.Stay != "" {
				t.Errorf("%+v, want %s", path, want)
			}
		})
	}
}

func TestRequiresCircle(t *testing.T) {
	for name, tt := range map[string]struct{ releases, want string }{
		"two":            {"ng@1 requires gw@2; gw@2 requires ng@1", "gw@2 needs ng@1, which needs gw@2"},
		"three":          {"a@1 requires b@1; b@1 requires c@1; c@1 requires a@1", "c@1 needs a@1, which needs b@1, which needs c@1"},
		"by newer ones":  {"ng@3 requires gw@1; gw@2 requires ng@2", "gw@2 needs ng@3, which needs gw@2"},
		"one way out":    {"gw@1; ng@1 requires gw@1; gw@2 requires ng@1", ""},
		"of a line":      {"gw@1 min 0.5; gw@2 min 1", ""},
		"draft":          {"ng@1 requires gw@2 draft; gw@2 requires ng@1", ""},
		"nothing needed": {"ng@1 requires gw@2; gw@2", ""},
		"behind other hardware": {
			"gw@5 on b; ng@1 requires gw@2 on a; gw@2 requires ng@1 on a", "gw@2 needs ng@1, which needs gw@2",
		},
		"over other hardware":   {"ng@1 requires gw@2 on b; gw@2 requires ng@1 on a", ""},
		"on one of two":         {"ng@1; ng@2 requires gw@2 on a; gw@2 requires ng@1", ""},
		"open on the other":     {"ng@1 on b; ng@2 requires gw@2 on a; gw@2 requires ng@1", ""},
		"on the other of two":   {"ng@1 requires gw@2 on b; gw@2 requires ng@1", "gw@2 needs ng@1, which needs gw@2"},
		"on both, of each kind": {"ng@1 requires gw@2 on a; ng@3 requires gw@2 on b; gw@2 requires ng@1", "gw@2 needs ng@1, which needs gw@2"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := pathsOf(t, tt.releases)
			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (!errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("%v, want %s", err, tt.want)
			}
		})
	}
}

func TestNeedsValidate(t *testing.T) {
	for name, tt := range map[string]struct{ line, want string }{
		"none":             {"gw@2", ""},
		"minimum":          {"gw@2 min 1.9", ""},
		"of any":           {"gw@jammy requires bl@1", ""},
		"its own":          {"gw@2 min 2.0", "minimum version 2.0 of gw@2"},
		"above":            {"gw@2 min 3", "want a version below 2"},
		"not comparable":   {"gw@2 min jammy", "can be compared"},
		"of no order":      {"gw@jammy min 1", "can be compared"},
		"no version":       {"gw@2 min a/b", "firmware version"},
		"same name":        {"gw@2 requires gw@1", "its minimum version"},
		"two":              {"gw@2 requires a@1 requires b@1", "at most 1"},
		"both":             {"gw@2 min 1 requires b@1", "say one of them"},
		"requires nothing": {"gw@2 requires b@jammy", "can be compared"},
	} {
		t.Run(name, func(t *testing.T) {
			err := pathRelease(t, tt.line).validateNeeds()
			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (!errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("%v, want %s", err, tt.want)
			}
		})
	}
}

func TestAdmits(t *testing.T) {
	for _, tt := range []struct{ release, runs, want string }{
		{"gw@2", "", ""},
		{"gw@2", "x@1", ""},
		{"gw@3 min 2", "gw@2.0", ""},
		{"gw@3 min 2", "gw@4", ""},
		{"gw@3 min 2", "gw@2-rc", "gw@3 needs gw 2 or newer, and gw@2-rc runs there"},
		{"gw@3 min 2", "gw@jammy", "a version that can not be compared"},
		{"gw@3 min 2", "", "what runs there is not known"},
		{"gw@3 min 2", "x@3", "x@3 runs there"},
		{"ng@1 requires gw@2", "gw@2.1", ""},
		{"ng@1 requires gw@2", "ng@0.9", "ng@1 needs gw 2 or newer"},
	} {
		runs, _ := ParseReleaseID(tt.runs)
		err := pathRelease(t, tt.release).Admits(runs)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s on %q: %v, want %q", tt.release, tt.runs, err, tt.want)
		}
	}
}

// TestPathsProperty holds the paths over random releases against a search that tries
// everything.
func TestPathsProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		releases := map[ReleaseID]Release{}
		var list []Release
		for range rapid.IntRange(1, 9).Draw(t, "releases") {
			line := fmt.Sprintf("%s@%d on %s sec %d", rapid.SampledFrom([]string{"gw", "gw", "ng"}).Draw(t, "name"),
				rapid.IntRange(1, 6).Draw(t, "version"), rapid.SampledFrom([]string{"a", "a", "b"}).Draw(t, "hardware"), rapid.IntRange(0, 1).Draw(t, "security"))
			switch rapid.IntRange(0, 3).Draw(t, "needs") {
			case 0, 1:
				line += fmt.Sprintf(" min %d", rapid.IntRange(0, 5).Draw(t, "min"))
			case 2:
				line += fmt.Sprintf(" requires %s@%d", rapid.SampledFrom([]string{"gw", "ng"}).Draw(t, "of"), rapid.IntRange(1, 6).Draw(t, "least"))
			}
			if r := pathRelease(t, line); r.validateNeeds() == nil && releases[r.ID()].Name == "" {
				releases[r.ID()], list = r, append(list, r)
			}
		}
		if len(list) == 0 {
			return
		}
		target := list[len(list)-1]
		p, err := NewPaths(target, list)
		if err != nil {
			return // TestRequiresCircle is about that
		}
		for _, from := range list {
			checkPath(t, target, from, list, releases, p.From(Position{"a", from.ImageDigest}))
		}
	})
}

func checkPath(t *rapid.T, target, from Release, list []Release, releases map[ReleaseID]Release, path Path) {
	want := -1
	if from.ID() == target.ID() || target.Admits(from.ID()) == nil {
		want = 0
	} else {
		want = shortest(target, from, list, 1)
	}
	if path.Stay != "" {
		if want >= 0 && want < MaxPath {
			t.Fatalf("from %s to %s: %s, but there is a way over %d", from.ID(), target.ID(), path.Stay, want)
		}
		return
	}
	if len(path.Via) != want {
		t.Fatalf("from %s to %s: via %v, the shortest way is over %d", from.ID(), target.ID(), path.Via, want)
	}
	at := from
	seen := []ReleaseID{from.ID()}
	for _, id := range path.Via {
		next := releases[id]
		if err := next.Admits(at.ID()); err != nil || !next.Fits("a") || next.SecurityVersion < at.SecurityVersion || slices.Contains(seen, id) {
			t.Fatalf("from %s to %s: via %v: %v", from.ID(), target.ID(), path.Via, err)
		}
		at, seen = next, append(seen, id)
	}
	if err := target.Admits(at.ID()); err != nil && at.ID() != target.ID() {
		t.Fatalf("from %s via %v: %v", from.ID(), path.Via, err)
	}
}

// shortest tries every way, and returns over how many releases the best one goes;
// negative: there is none.
func shortest(target, at Release, list []Release, depth int) int {
	best := -1
	for _, next := range list {
		up := next.Name != at.Name || ParseVersion(at.Version).before(ParseVersion(next.Version))
		below := next.Name != target.Name || ParseVersion(next.Version).before(ParseVersion(target.Version))
		if depth > MaxPath || next.ID() == target.ID() || !next.Fits("a") || next.Admits(at.ID()) != nil || !up || !below ||
			next.SecurityVersion < at.SecurityVersion || next.SecurityVersion > target.SecurityVersion {
			continue
		}
		n := -1
		if target.Admits(next.ID()) == nil {
			n = depth
		} else {
			n = shortest(target, next, list, depth+1)
		}
		if n >= 0 && (best < 0 || n < best) {
			best = n
		}
	}
	return best
}

// TestOpened: a change of the releases is looked at where it leads somewhere new, or
// another way.
func TestOpened(t *testing.T) {
	of := func(text string) (list []Release) {
		for _, line := range strings.Split(text, ";") {
			list = append(list, pathRelease(t, line))
		}
		return list
	}
	for name, c := range map[string]struct{ before, after, want string }{
		"one that leads there":       {"gw@1; gw@2 draft; gw@3 min 2", "gw@1; gw@2; gw@3 min 2", "[{a gw@1} {a gw@2} {b gw@1} {b gw@2}]"},
		"on one hardware":            {"gw@1; gw@2 draft on a; gw@3 min 2", "gw@1; gw@2 on a; gw@3 min 2", "[{a gw@1} {a gw@2} {b gw@2}]"},
		"one that is newer":          {"gw@1; gw@2; gw@2.1 draft; gw@3 min 2", "gw@1; gw@2; gw@2.1; gw@3 min 2", "[{a gw@1} {a gw@2.1} {b gw@1} {b gw@2.1}]"},
		"one that leads nowhere":     {"gw@1; gw@2; gw@1.5 draft; gw@3 min 2", "gw@1; gw@2; gw@1.5; gw@3 min 2", "[{a gw@1.5} {b gw@1.5}]"},
		"one of another firmware":    {"gw@1; gw@2; cam@1 draft; gw@3 min 2", "gw@1; gw@2; cam@1; gw@3 min 2", "[{a cam@1} {b cam@1}]"},
		"one less":                   {"gw@1; gw@2; gw@2.1; gw@3 min 2", "gw@1; gw@2; gw@2.1 withdrawn; gw@3 min 2", "[{a gw@1} {b gw@1}]"},
		"none is left":               {"gw@1; gw@2; gw@3 min 2", "gw@1; gw@2 withdrawn; gw@3 min 2", "[]"},
		"the goal needs nothing":     {"gw@1 draft; gw@3", "gw@1; gw@3", "[]"},
		"what was in a circle is no": {"gw@1; cam@1 requires gw@3; gw@3 requires cam@1", "gw@1; cam@1 requires gw@3; gw@3 requires cam@1", "[]"},
	} {
		after := of(c.after)
		if got := fmt.Sprint(Opened(after[len(after)-1], of(c.before), after)); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}
