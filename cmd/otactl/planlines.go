package main

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"connectrpc.com/connect"
	"go.yaml.in/yaml/v3"

	"github.com/otad/otad/pkg/ota"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

// planLines knows in which line of its file a plan says what, so that a refusal can
// name it, whoever refuses. The zero value knows of no file.
type planLines struct {
	file   string
	root   *yaml.Node
	beside map[string]string // fields that were given beside the file, and count, with how
}

func newPlanLines(b []byte) planLines {
	doc := new(yaml.Node)
	if err := yaml.Unmarshal(b, doc); err != nil || len(doc.Content) == 0 {
		return planLines{}
	}
	return planLines{root: doc.Content[0]}
}

// locate puts before an error about a part of the plan where that stands: the file and
// the line, or the flag beside it; or that the file leaves it out.
func (p planLines) locate(err error) error {
	field := refusedField(err)
	if p.root == nil || field == "" {
		return err
	}
	part := fieldSteps(field)[0]
	if flag, ok := p.beside[part]; ok {
		return fmt.Errorf("%s: %w", flag, err)
	}
	if given, _ := member(p.root, part); given == nil {
		return fmt.Errorf("%s: %s is left out: %w", p.file, part, err)
	}
	return fmt.Errorf("%s: line %d: %w", p.file, p.line(field), err)
}

// line is where the field stands; if the file does not have it, where that stands
// which it would belong to; 0: there is no file.
func (p planLines) line(field string) int {
	if p.root == nil {
		return 0
	}
	node, line := p.root, p.root.Line
	for _, step := range fieldSteps(field) {
		if node.Kind == yaml.AliasNode {
			node = node.Alias
		}
		next, at := member(node, step)
		if next == nil {
			break
		}
		node, line = next, at
	}
	return line
}

// member returns one of a mapping or sequence, and the line that it begins in.
func member(of *yaml.Node, step string) (*yaml.Node, int) {
	switch of.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(of.Content); i += 2 {
			if key := of.Content[i]; key.Value == step {
				return of.Content[i+1], key.Line
			}
		}
	case yaml.SequenceNode:
		if i, err := strconv.Atoi(step); err == nil && i >= 0 && i < len(of.Content) {
			return of.Content[i], of.Content[i].Line
		}
	}
	return nil, 0
}

// fieldSteps are the words of a field: stages[1].gate has three.
func fieldSteps(field string) []string {
	steps := strings.FieldsFunc(field, func(r rune) bool { return r == '.' || r == '[' || r == ']' })
	if len(steps) == 0 {
		return []string{field}
	}
	return steps
}

// refusedField is the part of the plan that an error is about, of the rules or of the
// server; empty: it does not say.
func refusedField(err error) string {
	if field := ota.FieldOf(err); field != "" {
		return field
	}
	refused := new(connect.Error)
	if !errors.As(err, &refused) {
		return ""
	}
	for _, detail := range refused.Details() {
		if value, err := detail.Value(); err == nil {
			if r, ok := value.(*otadv1.Refusal); ok {
				return r.GetField()
			}
		}
	}
	return ""
}
