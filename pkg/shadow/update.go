package shadow

import "time"

// Patch is what an update says about one section.
// The zero value leaves the section alone.
type Patch struct {
	// Set is whether the request names the section.
	Set bool
	// Object is merged into the section; nil with Set drops the section.
	Object map[string]any
}

// Update is a parsed update request.
type Update struct {
	Desired, Reported Patch
	// Version, when set, must equal the version of the stored document.
	Version     *int64
	ClientToken string
}

func ParseUpdate(payload []byte) (Update, error) { return Update{}, nil }

func NewUpdate(desired, reported map[string]any) Update { return Update{} }

// Result is an accepted update.
type Result struct {
	Document Document
	// Accepted is the payload of the update/accepted topic.
	Accepted []byte
	// Delta is the payload of the update/delta topic, nil when there is none.
	Delta []byte
	// Changed is false when the update left every value as it was.
	Changed bool

	previous    Document
	clientToken string
	now         time.Time
}

// DocumentsPayload returns the payload of the update/documents topic.
func (r Result) DocumentsPayload() []byte { return nil }

func Apply(doc Document, u Update, now time.Time) (Result, error) { return Result{}, nil }

func Merge(base, patch map[string]any) map[string]any { return nil }

func Delta(desired, reported map[string]any) map[string]any { return nil }

func ClientToken(payload []byte) string { return "" }

func ValidateName(name string) error { return nil }
