// Package fleet holds the use cases where devices, shadows, releases and
// rollouts meet, and the ports for what it needs: a store, blobs, a publisher.
// It decides nothing about rollouts by itself (pkg/ota does) and knows no SQL,
// HTTP or MQTT.
package fleet

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/shadow"
)

// Errors that every layer above maps to its own codes. Their wrapped texts name
// the object and, where there is one, the remedy.
var (
	ErrNotFound = errors.New("not found")
	ErrConflict = errors.New("conflict")
	ErrDenied   = errors.New("denied")
	ErrInvalid  = ota.ErrInvalid
	// ErrStale: a compare and set lost; read again and decide again.
	ErrStale = errors.New("changed meanwhile")
	// ErrUnavailable: the database does not answer. Nothing was stored.
	ErrUnavailable = errors.New("the database does not answer: nothing was stored, try again")
	// ErrDoubt: the database went away during a commit and did not come back in time.
	ErrDoubt = errors.New("the database went away during a commit: whether this was stored is not known, look before trying again")
)

// ErrNoShadow is the ErrNotFound of a device that is there without the shadow.
var ErrNoShadow = fmt.Errorf("shadow %w", ErrNotFound)

// NoShadow is the ErrNoShadow of a device that has no such shadow, in words for
// people.
func NoShadow(deviceID, name string) error {
	if name == "" {
		return noShadow("device " + deviceID + " has no shadow yet")
	}
	return noShadow(fmt.Sprintf("device %s has no shadow named %s yet", deviceID, name))
}

type noShadow string

func (e noShadow) Error() string { return string(e) }

// Is makes it an ErrNoShadow, which is an ErrNotFound.
func (noShadow) Is(target error) bool { return target == ErrNotFound || target == ErrNoShadow }

// Superseded returns the newest version of the role that a store drops when the
// given one is published; 0: none.
func Superseded(role Role, published int64) int64 {
	if role != RoleSnapshot && role != RoleTimestamp {
		return 0
	}
	return max(published-KeptMetadata, 0)
}

// Device is a managed unit.
type Device struct {
	ID             string
	Hardware       string // hardware model, matched against a release's hardwareIds
	Tags           map[string]string
	KeyFingerprint string // lower-case hex sha256 of the public key (SubjectPublicKeyInfo); empty: it has no certificate
	CreatedAt      time.Time
	LastSeen       time.Time // zero: never
	RevokedAt      time.Time // zero: not revoked
	Connection     Connection
}

// Revoked reports whether the device is no longer let in.
func (d Device) Revoked() bool { return !d.RevokedAt.IsZero() }

// RevokedReason is what a revoked device's executions end with.
const RevokedReason = "the device was revoked"

// Limits of a device record.
const (
	MaxTags          = 100
	MaxTagValueBytes = 256
)

// DeviceView is a device with the classic shadow that selectors and rollouts
// look at.
type DeviceView struct {
	Device
	Shadow shadow.Document // zero Version when the device has none
	Groups []string        // in order; only where a query asks for groups
}

// Firmware is the shadow's reported.firmware: what a device says it runs.
type Firmware struct {
	Name    string
	Version string
	Digest  string // lower-case hex sha256 of the raw image
}

// Firmware reads reported.firmware; every missing or foreign part is empty.
func (v DeviceView) Firmware() Firmware {
	firmware, _ := v.Shadow.Reported.Get("firmware")
	text := func(k string) string { v, _ := firmware.Object().Get(k); s, _ := v.Text(); return s }
	return Firmware{Name: text("name"), Version: text("version"), Digest: text("digest")}
}

// ReportedDigest is the digest of the image that the device says it runs; empty
// when it does not say, or says what is no lower-case hex sha256. Stores keep it
// beside the device.
func ReportedDigest(d shadow.Document) string {
	digest, _ := saidDigest(d).Text()
	if len(digest) != 64 || strings.Trim(digest, "0123456789abcdef") != "" {
		return ""
	}
	return digest
}

// SameDigest reports whether the ReportedDigest of both is the same.
func SameDigest(a, b shadow.Document) bool {
	return saidDigest(a).Equal(saidDigest(b)) || ReportedDigest(a) == ReportedDigest(b)
}

func saidDigest(d shadow.Document) shadow.Value {
	firmware, _ := d.Reported.Get("firmware")
	digest, _ := firmware.Object().Get("digest")
	return digest
}

// EnrollmentToken lets devices enroll.
type EnrollmentToken struct {
	ID         string
	SecretHash [32]byte // sha256 of the secret
	Uses       int      // how many devices may still enroll with it
	DeviceGlob string   // id pattern with *, empty: any
	Hardware   string   // the model every device gets and may not contradict, empty: the device says
	Tags       map[string]string
	CreatedAt  time.Time
	ExpiresAt  time.Time
	RevokedAt  time.Time
}

// Admit says whether the token lets in the device at now, as the device says it
// is; ErrDenied in words when not.
func (t EnrollmentToken) Admit(d Device, now time.Time) error {
	no := func(format string, args ...any) error {
		return fmt.Errorf("enrollment token %s %s: %w", t.ID, fmt.Sprintf(format, args...), ErrDenied)
	}
	if t.DeviceGlob != "" {
		if ok, err := path.Match(t.DeviceGlob, d.ID); err != nil || !ok {
			return no("does not let in %s, only %s", d.ID, t.DeviceGlob)
		}
	}
	if err := t.usable(now); err != nil {
		return err
	}
	if t.Hardware != "" && d.Hardware != "" && d.Hardware != t.Hardware {
		return no("is for hardware %s, the device says it is %s", t.Hardware, d.Hardware)
	}
	return nil
}

// usable says whether the token lets in any device at now.
func (t EnrollmentToken) usable(now time.Time) error {
	no := func(why string) error { return fmt.Errorf("enrollment token %s %s: %w", t.ID, why, ErrDenied) }
	switch {
	case !t.RevokedAt.IsZero():
		return no("is revoked")
	case !t.ExpiresAt.IsZero() && !now.Before(t.ExpiresAt):
		return no("has expired")
	case t.Uses <= 0:
		return no("is used up")
	}
	return nil
}

// APIToken lets an operator or a program in.
type APIToken struct {
	ID         string
	Name       string
	SecretHash [32]byte // sha256 of the secret
	CreatedAt  time.Time
	ExpiresAt  time.Time // zero: never
}

// Role names a TUF role.
type Role string

// The TUF roles.
const (
	RoleRoot      Role = "root"
	RoleTargets   Role = "targets"
	RoleSnapshot  Role = "snapshot"
	RoleTimestamp Role = "timestamp"
)

// Metadata is one signed TUF file, byte for byte.
type Metadata struct {
	Role    Role
	Version int64
	Bytes   []byte
}

// Advance is one step of a rollout, written in one transaction.
type Advance struct {
	Rollout ota.Rollout // as it shall stand; Revision is the one that was read
	// Insert are new executions, Attempt and Stage set, Status QUEUED. One whose
	// (rollout, device, attempt) exists is left as it is. One after the first may be
	// REJECTED, with the reason in its Details: then it is queued and ended in one, by
	// ota.Refuse, and its device is marked if the rollout Follows.
	Insert []ota.Execution
	// Open gives devices of the rollout's line their turn. Nil: none.
	Open *Opening
	// Create are new rollouts, as CreateRollout stores them.
	Create []ota.Rollout
	// Repeat makes what did not succeed in the stage with this index due for
	// another attempt. Nil: nothing.
	Repeat *int
	Now    time.Time
}

// Cancelled is what one step of cancelling did.
type Cancelled struct {
	Begun  []ota.Execution // those that were at work: RolloutID, DeviceID, Stage, Status, QueuedAt, StartedAt and FinishedAt are set
	Queued int             // how many waited
}

// Total is how many were cancelled.
func (c Cancelled) Total() int { return len(c.Begun) + c.Queued }

// Opening gives the candidates with the turns From <= turn < To a first attempt in
// a stage. One loses its turn that is revoked or gone, or has Left, that reports to run the
// image with this Digest (empty: none), or one that is not in Only (nil: all are),
// or that stands where none of Ways begins (nil: all go there at once), or for which a
// rollout that supersedes this one has work, or had. What older rollouts, which this one supersedes, have QUEUED
// on those of the devices that have an attempt then is cancelled as ota.Supersede
// does it.
type Opening struct {
	Stage    int // its index
	From, To int
	Digest   string
	Only     []string
	Ways     []ota.Way
}

// Way returns what a device passes through, and whether it keeps its turn.
func (o Opening) Way(at ota.Position) (via []ota.ReleaseID, ok bool) {
	i := slices.IndexFunc(o.Ways, func(w ota.Way) bool { return w.Position == at })
	if i < 0 {
		return nil, o.Ways == nil
	}
	return o.Ways[i].Via, true
}

// Surveyed is what there is to know of a device to say whether a rollout may
// reach it.
type Surveyed struct {
	ID, Hardware string
	Tags         map[string]string // those that were asked for
	Digest       string            // see ReportedDigest
}

// Survey is what a Surveyed says of a device.
func Survey(v DeviceView, tags []string) Surveyed {
	d := Surveyed{ID: v.ID, Hardware: v.Hardware, Digest: ReportedDigest(v.Shadow)}
	for _, key := range tags {
		if value, ok := v.Tags[key]; ok {
			if d.Tags == nil {
				d.Tags = map[string]string{}
			}
			d.Tags[key] = value
		}
	}
	return d
}

// NoTurn is the error of a step whose line does not have its turns.
func NoTurn(r ota.Rollout, o Opening) error {
	return fmt.Errorf("%w: the line %q of rollout %s does not have the turns %d to %d", ErrInvalid, r.Line, r.ID, o.From, o.To)
}

// Takes reports whether a device that says it runs an image keeps its turn; what
// does not say keeps it.
func (o Opening) Takes(digest string) bool {
	return digest == "" || digest != o.Digest && (o.Only == nil || slices.Contains(o.Only, digest))
}

// Brings reports that a step would make an execution of a release that is withdrawn, of
// the rollout or on the way there. It is one of the rules of Advance.
func Brings(r ota.Rollout, insert []ota.Execution, open *Opening, withdrawn []ota.ReleaseID) error {
	if len(withdrawn) == 0 || r.Command != nil {
		return nil
	}
	is := func(via []ota.ReleaseID) bool {
		next := ota.Execution{Via: via}.Under(r).Release
		return slices.Contains(withdrawn, next)
	}
	brings := slices.ContainsFunc(insert, func(e ota.Execution) bool { return e.Status == ota.Queued && is(e.Via) })
	if open != nil {
		brings = brings || open.Ways == nil && is(nil) || slices.ContainsFunc(open.Ways, func(w ota.Way) bool { return is(w.Via) })
	}
	if brings {
		return fmt.Errorf("step of rollout %s brings a release that is withdrawn meanwhile: %w", r.ID, ErrStale)
	}
	return nil
}

// ValidInsert reports an execution that may not be inserted by a step of the
// rollout, whatever the store holds. It is one of the rules of Advance.
func ValidInsert(r ota.Rollout, e ota.Execution) error {
	switch {
	case e.RolloutID != "" && e.RolloutID != r.ID:
		return fmt.Errorf("%w: execution of rollout %s in a step of %s", ErrInvalid, e.RolloutID, r.ID)
	case e.Release != (ota.ReleaseID{}) && e.Release != r.Release:
		return fmt.Errorf("%w: execution of release %s in a rollout of %s", ErrInvalid, e.Release, r.Release)
	case e.Status != ota.Queued && (e.Status != ota.Rejected || e.Attempt < 2 || e.Reason() == ""):
		return fmt.Errorf("%w: new execution on device %s is %s, not QUEUED, nor REJECTED after another for a reason", ErrInvalid, e.DeviceID, e.Status)
	case e.Stage < 0 || e.Stage >= len(r.Stages):
		return fmt.Errorf("%w: stage index %d of rollout %s with %d stages", ErrInvalid, e.Stage, r.ID, len(r.Stages))
	case len(e.Via) >= ota.MaxPath:
		return fmt.Errorf("%w: device %s would pass through %d releases: at most %d", ErrInvalid, e.DeviceID, len(e.Via), ota.MaxPath-1)
	case e.Attempt < 1:
		return fmt.Errorf("%w: attempt %d on device %s: counted from 1", ErrInvalid, e.Attempt, e.DeviceID)
	}
	return nil
}
