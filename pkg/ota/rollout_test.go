package ota

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"
)

func TestSizeOf(t *testing.T) {
	for _, c := range []struct {
		size       Size
		population int
		want       int
	}{
		{Size{Percent: 10}, 20, 2}, {Size{Percent: 10}, 21, 3}, {Size{Percent: 1}, 20, 1}, {Size{Percent: 100}, 7, 7},
		{Size{Percent: 0.1}, 1_000_000, 1000}, {Size{Percent: 50}, 0, 0}, {Size{Count: 5}, 3, 3}, {Size{Count: 5}, 30, 5},
		{Size{Percent: 33.3}, 1000, 333},
	} {
		if got := c.size.Of(c.population); got != c.want {
			t.Errorf("%s of %d = %d, want %d", c.size, c.population, got, c.want)
		}
	}
}

func TestBucketIsSeededAndSpread(t *testing.T) {
	if first := Bucket("a", "gw-1"); first != Bucket("a", "gw-1") || first == Bucket("b", "gw-1") {
		t.Fatal("not a function of seed and id")
	}
	if Bucket("a", "bc") == Bucket("ab", "c") {
		t.Fatal("seed and id run into each other")
	}
	const n, parts = 100_000, 16
	var in [parts]int
	for i := range n {
		in[Bucket("seed", fmt.Sprintf("gw-%06d", i))/(math.MaxUint64/parts+1)]++
	}
	for i, got := range in {
		if got < n/parts*9/10 || got > n/parts*11/10 {
			t.Errorf("part %d has %d of %d", i, got, n)
		}
	}
}

func TestParseStages(t *testing.T) {
	stages, err := ParseStages("1%, 10%,100%", Gate{Success: .95}, time.Minute)
	if err != nil || len(stages) != 3 || stages[1].Size.Percent != 10 || stages[2].Gate.Success != .95 || stages[0].State != StagePending {
		t.Fatalf("%+v, %v", stages, err)
	}
	for _, bad := range []string{"", "0%", "101%", "-1%", "x", "10%,,20%", "0", "NaN%", "1.5", "10 %%", "+5", "1000000000", "0x1p3%", "1e1%", "010%", "."} {
		if _, err := ParseStages(bad, Gate{}, 0); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestParseGateAndAbortRule(t *testing.T) {
	for in, want := range map[string]Gate{"95%": {Success: .95}, "100% min 20": {Success: 1, MinFinished: 20}, " 0% ": {}} {
		if got, err := ParseGate(in); err != nil || got != want {
			t.Errorf("gate %q: %+v, %v", in, got, err)
		}
	}
	for in, want := range map[string]AbortRule{
		"failed>5% min 20": {Class: ClassFailed, Share: .05, MinSample: 20},
		"any>=3":           {Class: ClassAny, Share: 1, Count: 3},
		"rolled_back > 0%": {Class: ClassRolledBack},
	} {
		got, err := ParseAbortRule(in)
		if err != nil || got != want {
			t.Errorf("rule %q: %+v, %v", in, got, err)
			continue
		}
		if again, err := ParseAbortRule(got.String()); err != nil || again != got {
			t.Errorf("rule %q prints as %q, which reads as %+v, %v", in, got, again, err)
		}
	}
	for _, bad := range []string{"", "95", "101%", "95% max 3", "95% min 0", "min 3", "+95%", "95% min +3"} {
		if _, err := ParseGate(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("gate %q: %v", bad, err)
		}
	}
	for _, bad := range []string{"", "any", "any>", "any>=0", "bogus>5%", "succeeded>5%", "any>200%", "any>=x", "any>=+3", "any>=1000000000"} {
		if _, err := ParseAbortRule(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("rule %q: %v", bad, err)
		}
	}
}

func TestTripped(t *testing.T) {
	for _, c := range []struct {
		rule string
		ok   int
		bad  int
		want bool
	}{
		{"failed>5% min 20", 18, 1, false}, {"failed>5% min 20", 19, 1, false}, {"failed>5% min 20", 18, 2, true},
		{"any>0%", 100, 0, false}, {"any>0%", 0, 1, true}, {"any>=2", 1000, 1, false}, {"any>=2", 1000, 2, true},
		{"rolled_back>0%", 0, 5, false}, {"any>100%", 0, 5, false},
	} {
		rule, err := ParseAbortRule(c.rule)
		if err != nil {
			t.Fatal(err)
		}
		if got := rule.Tripped(counts(9, 9, c.ok, c.bad)); got != c.want {
			t.Errorf("%s with %d ok and %d failed: %v", c.rule, c.ok, c.bad, got)
		}
	}
}

func TestRolloutValidate(t *testing.T) {
	good := func() Rollout {
		stages, err := ParseStages("10%,50%,100%", Gate{Success: .9}, 0)
		if err != nil {
			t.Fatal(err)
		}
		return Rollout{Release: ReleaseID{"gw", "1.0"}, Stages: stages}
	}
	if r := good(); r.Validate() != nil {
		t.Fatal(r.Validate())
	}
	for name, breakIt := range map[string]func(*Rollout){
		"no stages":        func(r *Rollout) { r.Stages = nil },
		"too many stages":  func(r *Rollout) { r.Stages = make([]Stage, MaxStages+1) },
		"not ascending":    func(r *Rollout) { r.Stages[1].Size.Percent = 10 },
		"over 100":         func(r *Rollout) { r.Stages[2].Size.Percent = 100.5 },
		"two sizes":        func(r *Rollout) { r.Stages[0].Size.Count = 3 },
		"negative count":   func(r *Rollout) { r.Stages[0].Size = Size{Count: -3} },
		"gate over 1":      func(r *Rollout) { r.Stages[0].Gate.Success = 1.1 },
		"gate NaN":         func(r *Rollout) { r.Stages[0].Gate.Success = math.NaN() },
		"negative minimum": func(r *Rollout) { r.Stages[0].Gate.MinFinished = -1 },
		"endless soak":     func(r *Rollout) { r.Stages[0].Soak = MaxSoak + 1 },
		"long selector":    func(r *Rollout) { r.Selector = strings.Repeat("x", MaxSelector+1) },
		"many abort rules": func(r *Rollout) { r.Abort = make([]AbortRule, MaxAbortRules+1) },
		"bad release":      func(r *Rollout) { r.Release.Name = "../x" },
		"no stage state":   func(r *Rollout) { r.Stages[1].State = "" },
		"no such state":    func(r *Rollout) { r.Stages[2].State = StageState(RolloutRunning) },
	} {
		r := good()
		breakIt(&r)
		if err := r.Validate(); !errors.Is(err, ErrInvalid) || FieldOf(err) == "" {
			t.Errorf("%s: %v, of field %q", name, err, FieldOf(err))
		}
	}
	for _, state := range StageStates { // one that runs is as good as a new one
		r := good()
		r.Stages[1].State = state
		if err := r.Validate(); err != nil {
			t.Errorf("a stage that is %s: %v", state, err)
		}
	}
}

func TestDeviceIDs(t *testing.T) {
	for _, ok := range []string{"gw-1", "A:b_c", strings.Repeat("x", 128), "0"} {
		if err := ValidateDeviceID(ok); err != nil {
			t.Errorf("%q: %v", ok, err)
		}
	}
	for _, bad := range []string{"", "a/b", "+", "#", "a+", "..", "a.b", "-a", "$SYS", "a b", "ä", strings.Repeat("x", 129), "a\n"} {
		if err := ValidateDeviceID(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestManifestValidate(t *testing.T) {
	good := Manifest{Name: "gw", Version: "1.0", HardwareIDs: []string{"rpi4"}, Installer: InstallImage, ImageDigest: strings.Repeat("a", 64), ImageSize: 1, ObjectSize: 1}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, breakIt := range map[string]func(*Manifest){
		"name":       func(m *Manifest) { m.Name = "a/b" },
		"version":    func(m *Manifest) { m.Version = "1..2" },
		"hardware":   func(m *Manifest) { m.HardwareIDs = nil },
		"model":      func(m *Manifest) { m.HardwareIDs = []string{"a b"} },
		"models":     func(m *Manifest) { m.HardwareIDs = make([]string, MaxHardwareIDs+1) },
		"security":   func(m *Manifest) { m.SecurityVersion = -1 },
		"installer":  func(m *Manifest) { m.Installer = "sh" },
		"digest":     func(m *Manifest) { m.ImageDigest = strings.Repeat("A", 64) },
		"empty":      func(m *Manifest) { m.ImageSize = 0 },
		"too large":  func(m *Manifest) { m.ImageSize = MaxImageBytes + 1 },
		"no object":  func(m *Manifest) { m.ObjectSize = 0 },
		"health":     func(m *Manifest) { m.Health = []byte("{") },
		"big health": func(m *Manifest) { m.Health = []byte(`"` + strings.Repeat("x", MaxHealthBytes) + `"`) },
		"arguments":  func(m *Manifest) { m.Run = make([]string, MaxRunArguments+1) },
	} {
		m := good
		breakIt(&m)
		if err := m.Validate(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestParseReleaseIDRefuses(t *testing.T) {
	for _, bad := range []string{"gw", "@1", "gw@", "a/b@1", "gw@1/2"} {
		if _, err := ParseReleaseID(bad); !errors.Is(err, ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"10%,100%", "95% min 3", "any>=2", "failed>5% min 20", "gw@1.0", "\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if stages, err := ParseStages(s, Gate{}, 0); err == nil {
			for _, st := range stages {
				if n := st.Size.Of(1000); n < 1 || n > 1000 {
					t.Fatalf("%q: %d of 1000", s, n)
				}
			}
		}
		if rule, err := ParseAbortRule(s); err == nil {
			if again, err := ParseAbortRule(rule.String()); err != nil || again.Class != rule.Class || again.Count != rule.Count {
				t.Fatalf("%q -> %q: %+v, %v", s, rule, again, err)
			}
		}
		if id, err := ParseReleaseID(s); err == nil && id.String() != s {
			t.Fatalf("%q -> %q", s, id)
		}
	})
}
