package selector

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"go.einride.tech/aip/filtering"
)

// SyntaxError says what is wrong with an expression, and where.
type SyntaxError struct {
	Expr    string // as given to Parse
	Column  int    // 1-based, in characters from the start of Expr
	Message string
}

// Error returns the message and the column.
func (e *SyntaxError) Error() string {
	return fmt.Sprintf("selector: %s (column %d)", e.Message, e.Column)
}

// Caret returns two lines: the expression, and a ^ under the column. Line
// breaks and tabs in the expression are shown as spaces.
func (e *SyntaxError) Caret() string {
	return printable(e.Expr) + "\n" + strings.Repeat(" ", e.Column-1) + "^"
}

// syntaxError makes a SyntaxError at a byte offset of expr.
func syntaxError(expr string, offset int, format string, args ...any) *SyntaxError {
	offset = min(offset, len(expr))
	return &SyntaxError{
		Expr:    expr,
		Column:  utf8.RuneCountInString(expr[:offset]) + 1,
		Message: fmt.Sprintf(format, args...),
	}
}

func isEnd(err error) bool { return errors.Is(err, io.EOF) }

// translate turns an error of the parser into a SyntaxError. The parser wraps
// one error per rule of the grammar; the innermost knows best.
func translate(expr string, lead int, err error) *SyntaxError {
	type positioned interface {
		Position() filtering.Position
		Message() string
	}
	offset, message := 0, ""
	for ; err != nil; err = errors.Unwrap(err) {
		p, ok := err.(positioned)
		switch {
		case ok:
			offset, message = lead+int(p.Position().Offset), p.Message()
		case errors.Is(err, io.EOF):
			return syntaxError(expr, len(strings.TrimSpace(expr))+lead, "the expression ends too early")
		default:
			message = err.Error()
		}
	}
	return syntaxError(expr, offset, "%s", friendly(message))
}

// friendly rewords the parser's messages that a hint makes clearer.
func friendly(message string) string {
	token, trailing := strings.CutPrefix(message, "unexpected trailing token ")
	if !trailing {
		var ok bool
		if token, ok = strings.CutPrefix(message, "unexpected token "); !ok {
			return message
		}
	}
	switch filtering.TokenType(token) {
	case filtering.TokenTypeNot:
		return "unexpected NOT: put a space after it, and parentheses around what is negated twice"
	case filtering.TokenTypeMinus, filtering.TokenTypeDot, filtering.TokenTypeText, filtering.TokenTypeNumber, filtering.TokenTypeHexNumber:
		return fmt.Sprintf("unexpected %s: a name or value that is not one word or number goes in quotes", tokenName(token))
	}
	return "unexpected " + tokenName(token)
}

func tokenName(token string) string {
	switch filtering.TokenType(token) {
	case filtering.TokenTypeText:
		return "text"
	case filtering.TokenTypeString:
		return "quoted text"
	case filtering.TokenTypeNumber, filtering.TokenTypeHexNumber:
		return "number"
	case filtering.TokenTypeWhitespace:
		return "space"
	}
	return token
}
