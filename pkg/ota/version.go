package ota

import (
	"cmp"
	"slices"
	"strings"
)

// Version is a version of a release in the form in which versions are compared.
//
// A version that can be compared is one or more decimal numbers with dots between
// them, after a "v" or not: 2, 1.4.0, v2026.11.27. A "-" or a "~" begins the name of
// a pre-release, which comes before the version itself: 2.0.0-rc.1, 2.0.0~beta. What
// follows a "+" tells builds apart and has no place in the order. Every other version
// is equal to itself and can not be compared.
//
// The order is that of Semantic Versioning 2.0.0, section 11, for any number of
// numbers, missing ones being 0: 1.9 < 1.10 = 1.10.0 < 2.0-rc.2 < 2.0-rc.10 < 2.0.
type Version struct {
	text    string
	numbers []string // without leading zeros; nil: it can not be compared
	pre     []string // of a pre-release
}

// ParseVersion reads a version, be it one that can be compared or not.
func ParseVersion(s string) Version {
	v := Version{text: s}
	rest, _, _ := strings.Cut(strings.TrimPrefix(s, "v"), "+")
	if i := strings.IndexAny(rest, "-~"); i >= 0 {
		v.pre = strings.Split(rest[i+1:], ".")
		rest = rest[:i]
	}
	numbers := strings.Split(rest, ".")
	if !slices.ContainsFunc(numbers, func(n string) bool { return !decimal(n) }) && !slices.Contains(v.pre, "") {
		for i := range numbers {
			numbers[i] = plain(numbers[i])
		}
		v.numbers = numbers
	}
	return v
}

func decimal(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

// plain is a number without leading zeros, nothing for 0, so that the longer of two
// is the larger.
func plain(number string) string { return strings.TrimLeft(number, "0") }

// Ordered reports whether it can be compared.
func (v Version) Ordered() bool { return v.numbers != nil }

// Compare returns a number below, at or above 0 for a version that comes before,
// with or after o; false: they can not be compared.
func (v Version) Compare(o Version) (int, bool) {
	if v.text == o.text {
		return 0, true
	}
	if !v.Ordered() || !o.Ordered() {
		return 0, false
	}
	for i := range max(len(v.numbers), len(o.numbers)) {
		if c := compareNumbers(at(v.numbers, i), at(o.numbers, i)); c != 0 {
			return c, true
		}
	}
	switch {
	case v.pre == nil || o.pre == nil:
		return len(o.pre) - len(v.pre), true // none comes last
	default:
		return slices.CompareFunc(v.pre, o.pre, comparePre), true
	}
}

func at(list []string, i int) string {
	if i < len(list) {
		return list[i]
	}
	return ""
}

func compareNumbers(a, b string) int { return cmp.Or(len(a)-len(b), strings.Compare(a, b)) }

// comparePre orders identifiers of a pre-release: numbers before words.
func comparePre(a, b string) int {
	switch da, db := decimal(a), decimal(b); {
	case da && db:
		return compareNumbers(plain(a), plain(b))
	case da:
		return -1
	case db:
		return 1
	}
	return strings.Compare(a, b)
}

// since reports whether a device that runs one version has at least the other.
func (v Version) since(least Version) bool {
	c, ok := v.Compare(least)
	return ok && c >= 0
}

// before reports whether it is known to come before o.
func (v Version) before(o Version) bool {
	c, ok := v.Compare(o)
	return ok && c < 0
}
