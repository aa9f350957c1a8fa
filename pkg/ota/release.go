package ota

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// ErrInvalid is the class of every error about a value that breaks a rule of
// this package; its text names the value and the remedy.
var ErrInvalid = errors.New("invalid")

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}

// ReleaseID names a release: a product line and a version of it.
type ReleaseID struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

var (
	// Names become TUF target paths and topic payloads: no slash, no dot-dot.
	namePattern    = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_-]{0,62}$`)
	versionPattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._+~-]{0,62}$`)
	wordPattern    = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$`)
)

// ParseReleaseID reads "name@version".
func ParseReleaseID(s string) (ReleaseID, error) {
	name, version, ok := strings.Cut(s, "@")
	if !ok {
		return ReleaseID{}, invalid("release %q: write it as NAME@VERSION", s)
	}
	id := ReleaseID{Name: name, Version: version}
	return id, id.Validate()
}

// String returns "name@version", and nothing for none.
func (id ReleaseID) String() string {
	if id == (ReleaseID{}) {
		return ""
	}
	return id.Name + "@" + id.Version
}

// TargetPath is the name of the release's artifact index among the TUF targets.
func (id ReleaseID) TargetPath() string { return id.Name + "/" + id.Version + ".idx" }

// Validate reports a name or version outside the allowed alphabet.
func (id ReleaseID) Validate() error {
	if !namePattern.MatchString(id.Name) {
		return invalid("firmware name %q: 1 to 63 of a-z A-Z 0-9 _ -, starting with a letter or digit", id.Name)
	}
	if !versionPattern.MatchString(id.Version) || strings.Contains(id.Version, "..") {
		return invalid("firmware version %q: 1 to 63 of a-z A-Z 0-9 . _ + ~ -, starting with a letter or digit", id.Version)
	}
	return nil
}

// ValidateDeviceID reports an id that could not stand in a topic, a certificate
// or a path: it must match [a-zA-Z0-9][a-zA-Z0-9:_-]{0,127}.
func ValidateDeviceID(id string) error {
	if !deviceID(id) {
		return invalid("device id %q: 1 to 128 of a-z A-Z 0-9 : _ -, starting with a letter or digit (no /, +, # or dot)", id)
	}
	return nil
}

// deviceID is no regular expression: every message of a device asks for it.
func deviceID(id string) bool {
	if id == "" || len(id) > 128 || !alphanumeric(id[0]) {
		return false
	}
	for i := range len(id) {
		if c := id[i]; !alphanumeric(c) && c != ':' && c != '_' && c != '-' {
			return false
		}
	}
	return true
}

func alphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

// ValidateWord reports a hardware model, tag key or installer name outside
// [a-zA-Z0-9][a-zA-Z0-9._-]{0,62}; what names the kind of word in the error.
func ValidateWord(what, s string) error {
	if !wordPattern.MatchString(s) {
		return invalid("%s %q: 1 to 63 of a-z A-Z 0-9 . _ -, starting with a letter or digit", what, s)
	}
	return nil
}

// ReleaseState says how far a release has come.
type ReleaseState string

// A DRAFT has an image but no signature and can not be rolled out; a SIGNED one
// stands in the signed targets; a WITHDRAWN one is never offered again, see Withdraw.
const (
	ReleaseDraft     ReleaseState = "DRAFT"
	ReleaseSigned    ReleaseState = "SIGNED"
	ReleaseWithdrawn ReleaseState = "WITHDRAWN"
)

// Installers that this version knows.
const (
	// InstallImage writes the raw image into the inactive slot.
	InstallImage = "image"
	// InstallBinary writes one executable into the inactive slot and runs it.
	InstallBinary = "binary"
)

// Manifest is the signed description of a release: the custom data of its TUF
// target. Nothing that decides whether or how a device installs stands outside
// it.
type Manifest struct {
	Name            string          `json:"name"`
	Version         string          `json:"version"`
	HardwareIDs     []string        `json:"hardwareIds"`
	SecurityVersion int64           `json:"securityVersion"`
	MinVersion      string          `json:"minVersion,omitempty"` // of the same firmware, that a device must run to take the release
	Requires        []ReleaseID     `json:"requires,omitempty"`   // other firmware that it must run instead, or a newer version of it
	Installer       string          `json:"installer"`
	ImageDigest     string          `json:"imageDigest"` // lower-case hex sha256 of the raw image
	ImageSize       int64           `json:"imageSize"`   // bytes of the raw image
	ObjectSize      int64           `json:"objectSize"`  // bytes of the chunked, compressed object
	Run             []string        `json:"run,omitempty"`
	Health          json.RawMessage `json:"health,omitempty"` // the agent's health contract, see pkg/health
}

// ID returns the release the manifest describes.
func (m Manifest) ID() ReleaseID { return ReleaseID{Name: m.Name, Version: m.Version} }

var digestPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)

// ValidateDigest reports a string that is not 64 lower-case hex digits.
func ValidateDigest(s string) error {
	if !digestPattern.MatchString(s) {
		return invalid("digest %q: want 64 lower-case hex digits (sha256)", s)
	}
	return nil
}

// Limits of a manifest.
const (
	MaxHardwareIDs  = 64
	MaxHealthBytes  = 16 << 10
	MaxImageBytes   = 64 << 30
	MaxRunArguments = 64
)

// Validate reports the first value outside its range.
func (m Manifest) Validate() error {
	if err := m.ID().Validate(); err != nil {
		return err
	}
	if len(m.HardwareIDs) == 0 || len(m.HardwareIDs) > MaxHardwareIDs {
		return invalid("release %s names %d hardware models: want 1 to %d", m.ID(), len(m.HardwareIDs), MaxHardwareIDs)
	}
	for _, h := range m.HardwareIDs {
		if err := ValidateWord("hardware model", h); err != nil {
			return err
		}
	}
	if m.SecurityVersion < 0 {
		return invalid("security version %d: must not be negative", m.SecurityVersion)
	}
	if m.Installer != InstallImage && m.Installer != InstallBinary {
		return invalid("installer %q: want %s or %s", m.Installer, InstallImage, InstallBinary)
	}
	if err := ValidateDigest(m.ImageDigest); err != nil {
		return err
	}
	if m.ImageSize <= 0 || m.ImageSize > MaxImageBytes || m.ObjectSize <= 0 || m.ObjectSize > MaxImageBytes {
		return invalid("image of %d bytes in an object of %d: want 1 to %d", m.ImageSize, m.ObjectSize, int64(MaxImageBytes))
	}
	if len(m.Health) > MaxHealthBytes {
		return invalid("health contract of %d bytes: at most %d", len(m.Health), MaxHealthBytes)
	}
	if len(m.Health) > 0 && !json.Valid(m.Health) {
		return invalid("health contract is not JSON")
	}
	if len(m.Run) > MaxRunArguments {
		return invalid("run has %d arguments: at most %d", len(m.Run), MaxRunArguments)
	}
	return m.validateNeeds()
}

// Fits reports whether a device of this hardware model may install the release.
func (m Manifest) Fits(hardware string) bool { return slices.Contains(m.HardwareIDs, hardware) }

// Release is what the server knows of a release: its manifest and where it stands.
type Release struct {
	Manifest
	State       ReleaseState
	IndexDigest string // lower-case hex sha256 of the artifact index, the TUF target
	IndexSize   int64
	CreatedAt   time.Time
	SignedAt    time.Time // zero until it was SIGNED
	WithdrawnAt time.Time // zero unless WITHDRAWN
	Reason      string    // why it was withdrawn
}

// SameContent reports whether two releases would install the same bytes in the
// same way; uploading such a release again is not a conflict.
func (r Release) SameContent(o Release) bool {
	a, errA := json.Marshal(r.Manifest)
	b, errB := json.Marshal(o.Manifest)
	return errA == nil && errB == nil && string(a) == string(b) && r.IndexDigest == o.IndexDigest
}
