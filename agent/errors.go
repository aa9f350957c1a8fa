package agent

import (
	"errors"
	"fmt"
)

// refusal is an error that ends an execution before anything is changed: what
// the job points at can not be accepted.
type refusal struct{ err error }

func (r refusal) Error() string { return r.err.Error() }
func (r refusal) Unwrap() error { return r.err }

func refuse(format string, args ...any) error { return refusal{fmt.Errorf(format, args...)} }

// diskError is a fault of the device's own storage: the agent ends, and its
// restart goes on from what the disk really holds.
type diskError struct{ err error }

func (d diskError) Error() string { return d.err.Error() }
func (d diskError) Unwrap() error { return d.err }

func isRefusal(err error) bool { var r refusal; return errors.As(err, &r) }
func isDisk(err error) bool    { var d diskError; return errors.As(err, &d) }
