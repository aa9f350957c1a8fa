package postgres

import (
	"strings"

	"github.com/otad/otad/internal/store/sqlstore"
	"github.com/otad/otad/pkg/selector"
)

// A glance at the text of a document says of most rows that the number at a path does
// not satisfy a comparison, for half of what reading it as JSON costs. It is FALSE
// only when that is certain, and rests on the stored form of a shadow: no white space,
// as few escapes as JSON allows (shadow.Document.Append).
//
// `"battery":` stands where a member of that name begins, or of a longer one that has
// a quote in it, and nowhere else: within a string each quote has a backslash before
// it. So where it stands once, what is behind it is the value at the path, or nothing
// is at the path. A number ends at a comma or a brace.
//
// There is no subquery in it, though pieces of text are worked out twice for want of
// one: PostgreSQL scans in parallel only without.

// glanceable reports whether the keys stand in a document as they are.
func glanceable(path []string) bool {
	for _, k := range path {
		if strings.ContainsFunc(k, func(r rune) bool { return r < ' ' || r == '"' || r == '\\' }) {
			return false
		}
	}
	return true
}

// mayCompare is FALSE for documents in which the number at the path, the section
// first, is seen not to satisfy the comparison.
func mayCompare(column string, path []string, op selector.Operator, literal string) sqlstore.Condition {
	last := path[len(path)-1]
	around := `"` + last + `":`
	number := sqlstore.Say("split_part(split_part(split_part("+column+", CAST(? AS text), 2), ',', 1), '}', 1)", around)
	if len(path) > 2 { // many objects have a member of that name, few a name
		around = `"` + path[len(path)-2] + `":{`
		number = sqlstore.Say("split_part(split_part(',' || split_part(split_part(split_part("+column+", CAST(? AS text), 2), '{', 1), '}', 1), CAST(? AS text), 2), ',', 1)",
			around, `,"`+last+`":`)
	}
	// In ASCII: - and 0 to 9. What begins as a number is one.
	return sqlstore.Say("CASE WHEN split_part("+column+", CAST(? AS text), 3) = '' AND ascii(?) = ANY('{45,48,49,50,51,52,53,54,55,56,57}')"+
		" THEN CAST(? AS numeric) "+spelling(op)+" CAST(CAST(? AS text) AS numeric) ELSE TRUE END", around, number, number, literal)
}
