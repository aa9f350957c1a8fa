package selector

import (
	"math"
	"regexp"
	"strconv"
	"strings"

	"go.einride.tech/aip/filtering"
)

// numeral is a number as one may write it; the parser reads fewer.
var numeral = regexp.MustCompile(`^(0x[0-9a-fA-F]+|[0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?`)

// numerals finds the numbers among the tokens of an expression, and refuses those
// that the parser does not read, or reads as another number than they say.
type numerals struct {
	text   string              // of the expression
	before filtering.TokenType // the token before
	end    int                 // of the last number found
}

// refusal returns why the number that begins with the token is not taken; "" when
// it is, and when none begins there.
func (n *numerals) refusal(token filtering.Token) string {
	before, at := n.before, int(token.Position.Offset)
	n.before = token.Type
	switch {
	case at < n.end: // a part of the last one
		return ""
	case token.Type == filtering.TokenTypeDot && (before.IsValue() || before == filtering.TokenTypeNumber || before.IsKeyword()):
		n.end = at + len(token.Value) + 1 // a key of a path, whatever its first character
		return ""
	}
	found := numeral.FindStringSubmatch(n.text[at:])
	if found == nil {
		return ""
	}
	n.end = at + len(found[0])
	return unread(found[1], found[2])
}

// unread returns why a number is not taken, which has no sign.
func unread(number, exponent string) string {
	switch {
	case exponent != "" && !strings.HasPrefix(number, "0x"):
		return number + exponent + " has an exponent: write the number out, as in 1000 or 0.001, and put text in quotes"
	case len(number) > 1 && number[0] == '0' && number[1] >= '0' && number[1] <= '9':
		return number + " begins with a zero: leave it out, and put text in quotes"
	case !strings.Contains(number, "."):
		if _, err := strconv.ParseInt(number, 0, 64); err != nil {
			const limit = "9223372036854775807"
			return number + " is beyond the whole numbers that are compared, -" + limit + " to " + limit + ": what lies outside is found by < and > of these; put text in quotes"
		}
		return ""
	}
	f, err := strconv.ParseFloat(number, 64)
	said, _ := decimalOf(number)
	read, _ := decimalOf(strconv.FormatFloat(f, 'f', -1, 64))
	if err != nil || math.IsInf(f, 0) || compareDecimals(said, read) != 0 {
		return number + " has more digits than are compared: write at most 15, and put text in quotes"
	}
	return ""
}
