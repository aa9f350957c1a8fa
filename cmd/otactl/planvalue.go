package main

import (
	"fmt"
	"slices"

	"go.yaml.in/yaml/v3"
)

// The values of a plan file are taken as the schema of plan files has them, and no wider:
// YAML libraries take yes for true, 5.7 for 5, and a key without a value for none.

// text is a text with the line that it stands in, for errors.
type text struct {
	value string
	line  int
}

// UnmarshalYAML takes what looks like a time for a text too.
func (t *text) UnmarshalYAML(n *yaml.Node) error {
	return t.read(n, "a text: put it in quotes", "!!str", "!!timestamp")
}

func (t *text) read(n *yaml.Node, want string, tags ...string) error {
	if n.Kind != yaml.ScalarNode {
		return errOneValue(n)
	}
	if !slices.Contains(tags, n.ShortTag()) {
		return fmt.Errorf("line %d: %s: want %s", n.Line, n.Value, want)
	}
	t.value, t.line = n.Value, n.Line
	return nil
}

func errOneValue(n *yaml.Node) error {
	return fmt.Errorf("line %d: want one value, not a list or keys", n.Line)
}

// loose is a text that may be written as a number, or as true or false: a stage of 5
// devices.
type loose struct{ text }

// UnmarshalYAML keeps it as it is written.
func (s *loose) UnmarshalYAML(n *yaml.Node) error {
	return s.read(n, "a text or a number", "!!str", "!!timestamp", "!!int", "!!float", "!!bool")
}

// whole is a whole number that the API can carry.
type whole int32

// UnmarshalYAML refuses fractions.
func (w *whole) UnmarshalYAML(n *yaml.Node) error {
	var number int32
	if n.Kind != yaml.ScalarNode {
		return errOneValue(n)
	}
	if n.ShortTag() != "!!int" || n.Decode(&number) != nil {
		return fmt.Errorf("line %d: %q: want a whole number of at most 32 bits", n.Line, n.Value)
	}
	*w = whole(number)
	return nil
}

// truth is true or false.
type truth bool

// UnmarshalYAML refuses yes, no, on and off, which are texts.
func (b *truth) UnmarshalYAML(n *yaml.Node) error {
	var is bool
	if n.Kind != yaml.ScalarNode {
		return errOneValue(n)
	}
	if n.ShortTag() != "!!bool" || n.Decode(&is) != nil {
		return fmt.Errorf("line %d: %q: want true or false", n.Line, n.Value)
	}
	*b = truth(is)
	return nil
}
