package signing

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
)

// VerifiedTarget is a target that the operators signed and the newest metadata
// still names. Only Trust makes one that any content can match.
type VerifiedTarget struct{ t Target }

// Target returns the target of a path. It fails with ErrIncomplete unless the
// last Updates left a whole, living chain (TargetsCurrent), and with
// ErrUnknownTarget when the operators signed no such path.
func (t *Trust) Target(path string) (VerifiedTarget, error) {
	if !t.TargetsCurrent() {
		return VerifiedTarget{}, fmt.Errorf("%w: refresh timestamp, snapshot and targets first", ErrIncomplete)
	}
	f, ok := t.targets.Signed.Targets[path]
	if !ok {
		return VerifiedTarget{}, fmt.Errorf("%w %.*q", ErrUnknownTarget, MaxPathBytes, path)
	}
	return VerifiedTarget{targetOf(path, f)}, nil
}

// Path is the signed path.
func (v VerifiedTarget) Path() string { return v.t.Path }

// Length is the signed length in bytes: fetch no more.
func (v VerifiedTarget) Length() int64 { return v.t.Length }

// SHA256 is the signed digest of the content.
func (v VerifiedTarget) SHA256() [sha256.Size]byte { return v.t.SHA256 }

// Custom is a copy of the signed JSON object about the target, nil when there
// is none.
func (v VerifiedTarget) Custom() json.RawMessage { return bytes.Clone(v.t.Custom) }

// Check returns content as verified when it has the signed length and digest,
// else ErrMismatch. It keeps a copy, so a later change of content is no matter.
func (v VerifiedTarget) Check(content []byte) (VerifiedBytes, error) {
	if int64(len(content)) != v.t.Length {
		return VerifiedBytes{}, fmt.Errorf("target %s: %w: %d bytes, want %d", v.t.Path, ErrMismatch, len(content), v.t.Length)
	}
	own := bytes.Clone(content)
	if sha256.Sum256(own) != v.t.SHA256 {
		return VerifiedBytes{}, fmt.Errorf("target %s: %w: digest differs", v.t.Path, ErrMismatch)
	}
	return VerifiedBytes{own}, nil
}

// VerifiedBytes is content that matched a VerifiedTarget; the zero value is
// empty.
type VerifiedBytes struct{ b []byte }

// Bytes returns the content, which the caller does not change.
func (v VerifiedBytes) Bytes() []byte { return v.b }
