package fleet

import (
	"errors"
	"fmt"
	"regexp"
	"slices"

	"github.com/otad/otad/pkg/selector"
)

// Limits of declared indexes.
const (
	// MaxIndexes is how many fields may have an index: each costs every update of
	// what it is on.
	MaxIndexes = 16
	// MaxIndexDepth is how many keys a path may have.
	MaxIndexDepth = 8
	// maxFieldKey is the longest key, in bytes.
	maxFieldKey = 64
)

// fieldKey is what the keys of an indexed path consist of. They stand in SQL, so
// nothing is allowed that means something there.
var fieldKey = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// ParseIndexes reads the names of the fields to keep an index on.
func ParseIndexes(names []string) ([]selector.Field, error) {
	var list []selector.Field
	for _, name := range names {
		f, err := selector.ParseField(name)
		if err != nil {
			return nil, fmt.Errorf("%w: indexed field %q: %w", ErrInvalid, name, err)
		}
		if !slices.ContainsFunc(list, func(o selector.Field) bool { return o.Key() == f.Key() }) {
			list = append(list, f)
		}
	}
	return list, Indexable(list)
}

// Indexable reports a list of fields that is too long, and a field that can
// have no index.
func Indexable(fields []selector.Field) error {
	if len(fields) > MaxIndexes {
		return fmt.Errorf("%w: %d indexed fields, at most %d: each slows every update of a shadow", ErrInvalid, len(fields), MaxIndexes)
	}
	for _, f := range fields {
		if err := indexable(f); err != nil {
			return fmt.Errorf("%w: indexed field %s: %w", ErrInvalid, f, err)
		}
	}
	return nil
}

func indexable(f selector.Field) error {
	switch {
	case f.Source == selector.ID || f.Source == selector.Hardware || f.Source == selector.Groups || f.Source == selector.Online || f.Source == selector.LastSeen:
		return errors.New("only tags and values of the shadow take an index")
	case f.IsMap():
		return errors.New("it is not one value: name a key of it")
	case len(f.Path) > MaxIndexDepth:
		return fmt.Errorf("%d keys deep, at most %d", len(f.Path), MaxIndexDepth)
	}
	for _, k := range f.Path {
		if len(k) > maxFieldKey || !fieldKey.MatchString(k) {
			return fmt.Errorf("the key %.70q has other characters than letters, digits, - and _, or more than %d", k, maxFieldKey)
		}
	}
	return nil
}
