package shadow

import "time"

// Result is an accepted update. Its payloads are made when they are asked for,
// outside of the transaction that stored it, and only where somebody listens.
type Result struct {
	// Document is what to store.
	Document Document
	// Changed is false when every value stayed as it was; the version and
	// the timestamps have moved on all the same.
	Changed bool

	previous Document
	update   Update
	now      int64
}

// Apply merges u into doc. It changes neither; the result shares values with
// both. A deleted document is created anew with the next
// version. Every error is an *Error:
//
//   - 409 when u.Version is not the version of doc, but 400 for any version
//     other than 1 when doc never existed;
//   - 413 when desired and reported together would exceed u.MaxBytes;
//   - 400 or 415 for what NewUpdate could not read.
func Apply(doc Document, u Update, now time.Time) (Result, error) {
	if u.fault != nil {
		return Result{}, u.fault
	}
	if len(u.ClientToken) > MaxClientTokenBytes {
		return Result{}, invalid("Invalid clientToken")
	}
	if err := checkVersion(doc, u.Version); err != nil {
		return Result{}, err
	}
	m := merger{now: now.Unix()}
	next := Document{Version: doc.Version + 1, UpdatedAt: now.UTC().Truncate(time.Millisecond)}
	next.Desired, next.DesiredAt = m.section(doc.Desired, doc.DesiredAt, u.Desired)
	next.Reported, next.ReportedAt = m.section(doc.Reported, doc.ReportedAt, u.Reported)
	if next.size() > u.maxBytes() {
		return Result{}, ErrTooLarge
	}
	return Result{Document: next, Changed: m.changed || !doc.Exists(), previous: doc, update: u, now: now.Unix()}, nil
}

func (u Update) maxBytes() int {
	if u.MaxBytes == 0 {
		return MaxStateBytes
	}
	return min(u.MaxBytes, StateBytesCeiling)
}

// checkVersion holds the version of a request against doc. A client that
// creates a shadow may say 1, the version it will have.
func checkVersion(doc Document, v *int64) error {
	switch {
	case v == nil, *v == doc.Version:
		return nil
	case doc.Version == 0 && *v == 1:
		return nil
	case doc.Version == 0:
		return invalid("Invalid version")
	}
	return ErrVersionConflict
}
