package selector

import (
	"cmp"
	"strconv"
	"strings"
)

// decimal is 0.digits * 10^exp with neither leading nor trailing zeros; zero
// has no digits. It holds JSON numbers exactly, beyond int64 and float64.
// Most are whole and short: these are just the number n.
type decimal struct {
	negative bool
	digits   string
	exp      int64
	short    bool
	n        int64
}

// shortDigits is how many digits an int64 holds whatever they are.
const shortDigits = 18

// shortOf reads a whole number of few digits.
func shortOf(s string) (n int64, ok bool) {
	digits, negative := strings.CutPrefix(s, "-")
	if digits == "" || len(digits) > shortDigits {
		return 0, false
	}
	for i := range len(digits) {
		d := digits[i] - '0'
		if d > 9 {
			return 0, false
		}
		n = 10*n + int64(d)
	}
	if negative {
		n = -n
	}
	return n, true
}

// decimalOf reads a JSON number; it is false for an exponent beyond 32 bits
// and for text that is no number.
func decimalOf(s string) (decimal, bool) {
	if n, ok := shortOf(s); ok {
		return decimal{short: true, n: n}, true
	}
	return longOf(s)
}

// longOf is decimalOf for any number.
func longOf(s string) (decimal, bool) {
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
	digits := whole + fraction
	if digits == "" || strings.Trim(digits, "0123456789") != "" {
		return decimal{}, false
	}
	trimmed := strings.TrimLeft(digits, "0")
	exp += int64(len(whole)) - int64(len(digits)-len(trimmed))
	trimmed = strings.TrimRight(trimmed, "0")
	if trimmed == "" {
		return decimal{}, true
	}
	return decimal{negative: negative, digits: trimmed, exp: exp}, true
}

// sign returns -1, 0 or 1.
func (d decimal) sign() int {
	switch {
	case d.digits == "":
		return 0
	case d.negative:
		return -1
	}
	return 1
}

// long is d by its digits.
func (d decimal) long() decimal {
	if d.short {
		d, _ = longOf(strconv.FormatInt(d.n, 10))
	}
	return d
}

// compareDecimals returns -1, 0 or 1 as a is less than, equal to or greater
// than b.
func compareDecimals(a, b decimal) int {
	if a.short && b.short {
		return cmp.Compare(a.n, b.n)
	}
	a, b = a.long(), b.long()
	if c := cmp.Compare(a.sign(), b.sign()); c != 0 || a.digits == "" {
		return c
	}
	magnitude := cmp.Compare(a.exp, b.exp)
	if magnitude == 0 {
		magnitude = strings.Compare(a.digits, b.digits)
	}
	return a.sign() * magnitude
}
