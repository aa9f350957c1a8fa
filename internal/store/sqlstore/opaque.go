package sqlstore

import "strings"

// opaque is 1 for a document that PostgreSQL can not read as jsonb, or not put
// into an index: one with a zero byte in a string, or a number of very many
// digits or with an exponent of four or more. It may be 1 for others too, which
// are then looked at one by one.
func opaque(document string) int64 {
	if strings.Contains(document, `\u0000`) || hugeNumber(document) {
		return 1
	}
	return 0
}

// What numbers may have: within it, every number is far from the bounds of
// numeric.
const (
	maxExponentDigits = 3
	maxDigits         = 400
)

func hugeNumber(document string) bool {
	for i := 0; i < len(document); i++ {
		switch c := document[i]; {
		case c == '"':
			i = afterString(document, i)
		case digit(c):
			whole := digits(document, i)
			if whole-i > maxDigits {
				return true
			}
			i = whole
			if i == len(document) || document[i] != 'e' && document[i] != 'E' {
				i--
				continue
			}
			i++
			if i < len(document) && (document[i] == '+' || document[i] == '-') {
				i++
			}
			exponent := digits(document, i)
			if exponent-i > maxExponentDigits {
				return true
			}
			i = exponent - 1
		}
	}
	return false
}

// digits returns the place after the digits, and the decimal point among them,
// that begin at i.
func digits(s string, i int) int {
	for i < len(s) && (digit(s[i]) || s[i] == '.') {
		i++
	}
	return i
}

func digit(c byte) bool { return '0' <= c && c <= '9' }

// afterString returns the place of the quote that ends the string that begins
// at i.
func afterString(document string, i int) int {
	for i++; i < len(document) && document[i] != '"'; i++ {
		if document[i] == '\\' {
			i++ // what is escaped
		}
	}
	return i
}
