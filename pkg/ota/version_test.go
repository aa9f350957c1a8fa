package ota

import (
	"cmp"
	"testing"
)

// TestVersionOrder holds every pair of a list in ascending order against it.
func TestVersionOrder(t *testing.T) {
	order := [][]string{
		{"0", "0.0.0", "v0"},
		{"0.9"},
		{"1-0"}, {"1-2"}, {"1-10"}, {"1-a"}, {"1-a.1"}, {"1-a.1.x"}, {"1-a.b"}, {"1~rc", "1-rc"}, {"1-rc2"},
		{"1", "1.0", "v1.0.0", "1+build7", "1.0+x"},
		{"1.0.1"}, {"1.9"}, {"1.10", "1.010.0"}, {"2.0.0-rc.1"}, {"2.0.0"},
		{"2026.11.27"}, {"99999999999999999999999999"}, {"100000000000000000000000000"},
	}
	for i, as := range order {
		for j, bs := range order {
			for _, a := range as {
				for _, b := range bs {
					c, ok := ParseVersion(a).Compare(ParseVersion(b))
					if !ok || cmp.Compare(c, 0) != cmp.Compare(i, j) {
						t.Errorf("%s to %s: %d %v", a, b, c, ok)
					}
				}
			}
		}
	}
}

func TestVersionsThatCanNotBeCompared(t *testing.T) {
	for _, s := range []string{"build-7", "v", "1a", "1.x", "1..2", "1-", "1-a..b", "", "jammy", "1.2_3"} {
		v := ParseVersion(s)
		if v.Ordered() {
			t.Errorf("%q is ordered", s)
		}
		if c, ok := v.Compare(v); c != 0 || !ok {
			t.Errorf("%q is not equal to itself", s)
		}
		for _, o := range []string{"1.0", "other"} {
			if _, ok := v.Compare(ParseVersion(o)); ok {
				t.Errorf("%q is compared with %q", s, o)
			}
			if v.since(ParseVersion(o)) || v.before(ParseVersion(o)) || ParseVersion(o).since(v) {
				t.Errorf("%q and %q have an order", s, o)
			}
		}
	}
}

// FuzzVersion: the order of any three versions is one.
func FuzzVersion(f *testing.F) {
	f.Add("1.0", "1.0-rc", "2")
	f.Add("v1", "1+x", "1~a.1")
	f.Add("x", "1-", "")
	f.Fuzz(func(t *testing.T, x, y, z string) {
		a, b, c := ParseVersion(x), ParseVersion(y), ParseVersion(z)
		ab, ok := a.Compare(b)
		if ba, back := b.Compare(a); back != ok || cmp.Compare(ba, 0) != -cmp.Compare(ab, 0) {
			t.Fatalf("%q to %q: %d %v, and back %d %v", x, y, ab, ok, ba, back)
		}
		if a.before(b) && b.before(c) && !a.before(c) {
			t.Fatalf("%q < %q < %q", x, y, z)
		}
		if a.Ordered() && b.Ordered() && c.Ordered() && a.since(b) && b.since(c) && !a.since(c) {
			t.Fatalf("%q >= %q >= %q", x, y, z)
		}
	})
}
