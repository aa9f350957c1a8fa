package shadow

import (
	"strconv"
	"strings"
)

// equalNumbers compares the values of two JSON numbers exactly.
func equalNumbers(a, b string) bool {
	if a == b {
		return true
	}
	x, okx := decimalOf(a)
	y, oky := decimalOf(b)
	return okx && oky && x == y
}

// decimal is 0.digits * 10^exp with neither leading nor trailing zeros; zero
// has no digits.
type decimal struct {
	negative bool
	digits   string
	exp      int64
}

// decimalOf reads a JSON number. It is false for an exponent beyond 32 bits,
// which makes such a number equal only to its own text.
func decimalOf(s string) (decimal, bool) {
	s, negative := strings.CutPrefix(s, "-")
	var exp int64
	if i := strings.IndexAny(s, "eE"); i >= 0 {
		var err error
		if exp, err = strconv.ParseInt(s[i+1:], 10, 32); err != nil {
			return decimal{}, false
		}
		s = s[:i]
	}
	whole, fraction, _ := strings.Cut(s, ".")
	digits := whole
	if fraction != "" {
		digits += fraction
	}
	exp += int64(len(whole))
	trimmed := strings.TrimLeft(digits, "0")
	exp -= int64(len(digits) - len(trimmed))
	trimmed = strings.TrimRight(trimmed, "0")
	if trimmed == "" {
		return decimal{}, true
	}
	return decimal{negative: negative, digits: trimmed, exp: exp}, true
}
