package shadow

import "time"

// Document is one shadow. The zero value is a shadow that never existed.
type Document struct {
	// Desired and Reported are JSON objects: their values are nil, bool,
	// json.Number, string, []any and map[string]any. A nil map means the
	// section is absent.
	Desired, Reported map[string]any
	// DesiredMeta and ReportedMeta mirror the sections with a Stamp in place
	// of every leaf; an array has a []any of the same.
	DesiredMeta, ReportedMeta map[string]any
	// Version is 0 when the shadow never existed, and rises by one with every
	// accepted update. It survives deletion: the store keeps a document with
	// only Version set.
	Version   int64
	UpdatedAt time.Time
}

// Stamp is when a leaf was last written, in seconds since the Unix epoch. It
// is a type of its own, so that user data {"timestamp":1} is never taken for
// one.
type Stamp int64

// Exists reports whether d is a live shadow, neither absent nor deleted.
func (d Document) Exists() bool { return false }

// Deleted returns the tombstone of d: only its version.
func (d Document) Deleted() Document { return Document{Version: d.Version} }

func (d Document) Delta() map[string]any { return nil }

func (d Document) MarshalJSON() ([]byte, error) { return nil, nil }

func (d *Document) UnmarshalJSON(b []byte) error { return nil }

func (d Document) GetAccepted(clientToken string, now time.Time) []byte { return nil }

func DeleteAccepted(deleted Document, clientToken string, now time.Time) []byte { return nil }
