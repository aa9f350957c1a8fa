package selector

import (
	"errors"
	"strings"
)

// ParseField reads the name of a field alone, such as
// shadow.reported.firmware.version.
func ParseField(name string) (Field, error) {
	s, err := Parse(name + ":*")
	if err != nil {
		return Field{}, err
	}
	c, ok := s.root.(Comparison)
	if !ok || !c.Anything() {
		return Field{}, errors.New("selector: want the name of one field: " + allowed)
	}
	return c.Field, nil
}

// Key is a text that only equal fields have in common.
func (f Field) Key() string {
	return strings.Join(append([]string{string(f.Source)}, f.Path...), "\x00")
}
