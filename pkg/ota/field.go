package ota

import (
	"errors"
	"strings"
)

// FieldError is an error about one part of a plan. Its text is that of Err: the
// field is for who knows where the plan is written.
type FieldError struct {
	Field string // as a plan file has it, such as stages[1].gate, counted from 0
	Err   error
}

func (e *FieldError) Error() string { return e.Err.Error() }
func (e *FieldError) Unwrap() error { return e.Err }

// AtField says which part of a plan err is about; nil stays nil. If err is about a
// part of that part, both make the path: AtField("retry", about "on[0]") is about
// retry.on[0].
func AtField(field string, err error) error {
	if err == nil {
		return nil
	}
	if inner := FieldOf(err); strings.HasPrefix(inner, "[") {
		field += inner
	} else if inner != "" {
		field += "." + inner
	}
	return &FieldError{Field: field, Err: err}
}

// FieldOf returns the part of a plan that err is about; empty: it does not say.
func FieldOf(err error) string {
	if about := new(FieldError); errors.As(err, &about) {
		return about.Field
	}
	return ""
}
