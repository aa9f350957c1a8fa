package ota

import (
	"errors"
	"fmt"
	"testing"
)

func TestAtField(t *testing.T) {
	if AtField("stages", nil) != nil {
		t.Error("a field makes an error of none")
	}
	on := AtField("on[1]", invalid("no such class"))
	for want, err := range map[string]error{
		"":                      invalid("x"),
		"on[1]":                 fmt.Errorf("around: %w", on),
		"retry.on[1]":           AtField("retry", on),
		"retry.on[1].name":      AtField("retry.on", AtField("[1]", fmt.Errorf("around: %w", AtField("name", invalid("x"))))),
		"stages[2].gate":        stageError(2, AtField("gate", invalid("x"))),
		"stages[2]":             stageError(2, invalid("x")),
		"command.parameters.äö": AtField("command", Command{Name: "x", Parameters: map[string]string{"a": "b", "äö": ""}}.ValidateOrder()),
	} {
		if got := FieldOf(err); got != want || !errors.Is(err, ErrInvalid) {
			t.Errorf("%v: field %q, want %q", err, got, want)
		}
	}
	if text := AtField("retry", on).Error(); text != "invalid: no such class" {
		t.Errorf("the text is %q", text)
	}
}
