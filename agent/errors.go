package agent

import (
	"errors"
	"fmt"
)

// refusal is an error that ends an execution before anything that runs is
// changed: what the job points at can not be accepted.
type refusal struct{ err error }

func (r refusal) Error() string { return r.err.Error() }
func (r refusal) Unwrap() error { return r.err }

func refuse(format string, args ...any) error { return refusal{fmt.Errorf(format, args...)} }

// doubt is an error of what the server handed over: a wrong signature or digest,
// an old version, a file that is missing. It may come of a publication under
// way or of a broken cache, so it becomes a refusal only when it stays.
type doubt struct{ err error }

func (d doubt) Error() string { return d.err.Error() }
func (d doubt) Unwrap() error { return d.err }

func doubtful(format string, args ...any) error { return doubt{fmt.Errorf(format, args...)} }

// diskError is a fault of the device's own storage: the agent ends, and its
// restart goes on from what the disk really holds.
type diskError struct{ err error }

func (d diskError) Error() string { return d.err.Error() }
func (d diskError) Unwrap() error { return d.err }

func isRefusal(err error) bool { var r refusal; return errors.As(err, &r) }
func isDoubt(err error) bool   { var d doubt; return errors.As(err, &d) }
func isDisk(err error) bool    { var d diskError; return errors.As(err, &d) }
