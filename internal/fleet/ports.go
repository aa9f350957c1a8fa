package fleet

import (
	"cmp"
	"context"
	"time"

	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/selector"
	"github.com/otad/otad/pkg/shadow"
)

// Store is everything otad remembers. Each method is one whole operation: it
// happens entirely or, on an error or a cancelled context, not at all, and when
// it returns nil its effect is durable. All methods may be called concurrently.
// Times are kept to the microsecond, in UTC. Unknown ids give ErrNotFound.
type Store interface {
	DeviceStore
	PresenceStore
	CredentialStore
	CertificateStore
	TokenStore
	ShadowStore
	GroupStore
	ReleaseStore
	TrustStore
	RolloutStore
	ExecutionStore
	HealthStore
	EventStore
	UploadStore
	LookStore
	FeedStore
	WebhookStore
	CourierStore
	// Check returns every broken invariant in words, none when all is well.
	Check(ctx context.Context) ([]string, error)
	// Ping says whether the store answers.
	Ping(ctx context.Context) error
	Close() error
}

// DeviceStore keeps devices.
type DeviceStore interface {
	// Enroll uses the token once and creates the device with the token's
	// hardware (unless empty) and tags. The same id with the same key again is
	// not an error, uses nothing and returns the device as stored; with another
	// key it is ErrConflict. ErrDenied: no token has the secret, or
	// EnrollmentToken.Admit refuses; then nothing is used. A revoked device is
	// ErrDenied. Without the secret of a stored token nobody learns from the
	// answer whether an id is taken.
	Enroll(ctx context.Context, d Device, secretHash [32]byte, now time.Time) (Device, error)
	Device(ctx context.Context, id string) (Device, error)
	// Devices calls f for each device in ascending order of id, after the given
	// one ("" for all), until f returns false. f must not call the store. Memory
	// stays flat however many there are.
	Devices(ctx context.Context, after string, f func(DeviceView) bool) error
	// SelectDevices is Devices for those that the query is about. It calls f with
	// exactly the devices for which DeviceQuery.Match holds. ErrConflict: it asks
	// for a group that is Building.
	SelectDevices(ctx context.Context, q DeviceQuery, f func(DeviceView) bool) error
	// Survey is SelectDevices without what most rollouts need not know: documents
	// are not read unless the selector asks for them, and of the tags only those
	// with the given keys.
	Survey(ctx context.Context, q DeviceQuery, tags []string, f func(Surveyed) bool) error
	// CountDevices is how many devices SelectDevices would call f with.
	CountDevices(ctx context.Context, q DeviceQuery) (int, error)
	// IndexFields keeps an index on these fields and on no others, so that
	// selectors that compare them are fast. It may take long; others can read and,
	// where the database is shared, write meanwhile. ErrInvalid: see Indexable.
	IndexFields(ctx context.Context, fields []selector.Field) error
	// Provision is Enroll by the token with this id, and makes the certificate
	// stand for the device, and one that it was given, see PutCertificate. Again with the same device it changes nothing;
	// a certificate that stands for another one is ErrDenied. Certificates that
	// stood for the device ProvisionLife ago or longer no longer do.
	Provision(ctx context.Context, d Device, c BoundCertificate, tokenID string, now time.Time) (Device, error)
	// ProvisionedDevice returns the device that a certificate stands for.
	ProvisionedDevice(ctx context.Context, certificateID string) (Device, error)
	// RevokeDevice marks it, and ota.Remove ends its unfinished executions, so
	// that no rollout waits for it; again is not an error.
	RevokeDevice(ctx context.Context, id string, now time.Time) error
	// DeleteDevice drops the device with all that is its own: shadows, tags, groups,
	// credentials, presence, events and marks. What it has not finished is REMOVED with
	// ota.DeletedReason and not tried again; what it finished stays, without the device.
	// It leaves continuous rollouts, and no rollout that compares devices waits for
	// it: its pairs are PairAlone. Its certificates are RevokedCertificates until
	// they end, and until then its key lets nobody Enroll or be Provisioned:
	// ErrDenied. Its uploads are OldUploads of 1970. It makes an Eviction that is
	// later than any other one of the device, and kept for DeletionMemory. ErrConflict: see Deletion.Refuses.
	DeleteDevice(ctx context.Context, d Deletion, now time.Time) error
	// CreateDevice creates a device that has no key; ErrConflict: the id exists.
	CreateDevice(ctx context.Context, d Device) error
	// ChangeTags sets the tags and removes those with the given keys, whether the
	// device has them or not; dynamic groups follow in the same transaction.
	// ErrInvalid: see MergeTags.
	ChangeTags(ctx context.Context, id string, set map[string]string, remove []string) error
}

// PresenceStore keeps who is connected and when a device was last heard of.
type PresenceStore interface {
	// SeenDevices raises LastSeen; unknown ids and older times are passed over.
	SeenDevices(ctx context.Context, seen map[string]time.Time) error
	// SaveConnections writes what a replica has heard. Unknown ids are passed over,
	// and so is what Connection.Overrides does not let pass.
	SaveConnections(ctx context.Context, heard map[string]Connection) error
	// EndConnections has every device that is stored as connected gone at now, for
	// reason; Began stays, so that what is newer counts.
	EndConnections(ctx context.Context, reason string, now time.Time) error
	// Beat says that the replica lives, and forgets those that did not for
	// ReplicaMemory.
	Beat(ctx context.Context, replica string, now time.Time) error
	// Replicas returns when each was last heard of.
	Replicas(ctx context.Context) (map[string]time.Time, error)
}

// CredentialStore keeps what devices may prove their ids with.
type CredentialStore interface {
	// PutCredential stores a credential and, of kind password, drops the one that
	// the device has, with an Eviction. ErrNotFound: no such device, or a revoked
	// one. ErrConflict: the id exists, or the device has the key, or
	// MaxCredentials.
	PutCredential(ctx context.Context, c Credential) error
	// Credentials returns those of the device, oldest first; none of one that does
	// not exist.
	Credentials(ctx context.Context, deviceID string) ([]Credential, error)
	// DeleteCredential drops one, with an Eviction.
	DeleteCredential(ctx context.Context, deviceID, id string, now time.Time) error
	// Evictions returns the newest of each device at since or later. RevokeDevice
	// makes one too, when it revokes, and so does DeleteDevice.
	Evictions(ctx context.Context, since time.Time) ([]Eviction, error)
	// CreateIssuer fails with ErrConflict when the name exists or there are
	// MaxIssuers.
	CreateIssuer(ctx context.Context, i Issuer) error
	Issuers(ctx context.Context) ([]Issuer, error) // in order of their names
	DeleteIssuer(ctx context.Context, name string) error
}

// CertificateStore keeps which certificates devices were given, for the list of
// those that are revoked.
type CertificateStore interface {
	// PutCertificate remembers one; a serial number that is there already changes
	// nothing. Those of the device that have ended at now are forgotten.
	// ErrNotFound: no such device. A revoked one is taken: it may have been revoked
	// while the certificate was made.
	PutCertificate(ctx context.Context, c Certificate, now time.Time) error
	// PutClaimCertificate remembers the certificate of an enrollment token; DeviceID
	// does not count. Those that have ended at now are forgotten. ErrNotFound: no
	// such token.
	PutClaimCertificate(ctx context.Context, tokenID string, c Certificate, now time.Time) error
	// RevokedCertificates returns those of revoked and deleted devices and of revoked tokens that have not ended at
	// now, in order of the device and the hexadecimal serial number.
	RevokedCertificates(ctx context.Context, now time.Time) ([]RevokedCertificate, error)
}

// TokenStore keeps enrollment and API tokens, hashed.
type TokenStore interface {
	CreateEnrollmentToken(ctx context.Context, t EnrollmentToken) error // ErrConflict: id exists
	EnrollmentToken(ctx context.Context, id string) (EnrollmentToken, error)
	EnrollmentTokens(ctx context.Context) ([]EnrollmentToken, error) // newest first
	RevokeEnrollmentToken(ctx context.Context, id string, now time.Time) error
	CreateAPIToken(ctx context.Context, t APIToken) error // ErrConflict: id exists
	APIToken(ctx context.Context, id string) (APIToken, error)
}

// ShadowStore keeps shadows; name "" is the classic one. The version of a
// shadow never goes back, not even over a delete.
type ShadowStore interface {
	// Shadow returns ErrNotFound when the device does not exist, and NoShadow when
	// only the shadow does not. So does DeleteShadow.
	Shadow(ctx context.Context, deviceID, name string) (shadow.Document, error)
	// UpdateShadow reads, applies shadow.Apply and writes. Errors of
	// shadow.Apply (*shadow.Error) come back unwrapped and nothing is stored.
	UpdateShadow(ctx context.Context, deviceID, name string, u shadow.Update, now time.Time) (shadow.Result, error)
	// DeleteShadow returns the document that was deleted.
	DeleteShadow(ctx context.Context, deviceID, name string, now time.Time) (shadow.Document, error)
}

// ReleaseStore keeps releases.
type ReleaseStore interface {
	// CreateRelease stores a DRAFT. The same content again (ota.Release.SameContent)
	// returns what is stored; other content under the id is ErrConflict.
	CreateRelease(ctx context.Context, r ota.Release) (ota.Release, error)
	Release(ctx context.Context, id ota.ReleaseID) (ota.Release, error)
	Releases(ctx context.Context) ([]ota.Release, error) // newest first
	// Withdraw does what ota.Withdraw does to a release, publishes metadata as
	// PublishMetadata does, and stops what would bring the release to devices, all in
	// one: of every rollout what ota.Abandon says, and of every execution of another one
	// that GoesOn what ota.Reroute says; such a rollout gets a new Revision and is not
	// Idle any more. Of a release that is WITHDRAWN
	// already only the metadata is published.
	Withdraw(ctx context.Context, w Withdrawal) (Withdrawn, error)
}

// Withdrawal takes a release out of use.
type Withdrawal struct {
	Release ota.ReleaseID
	Reason  string
	Policy  ota.AbortPolicy // of rollouts that end; empty: what each says
	Files   []Metadata      // to publish; none: the signed targets stay as they are
	Signed  []ota.ReleaseID // by Files
	Now     time.Time
}

// Withdrawn is what a Withdrawal did.
type Withdrawn struct {
	Release  ota.Release
	Rollouts []Abandoned     // in order of their ids
	Rerouted []ota.Execution // by rollout and device: RolloutID, DeviceID, Stage, Status, QueuedAt and StartedAt are set
}

// Abandoned is a rollout before it was aborted, and after.
type Abandoned struct{ Before, After ota.Rollout }

// TrustStore keeps the signed TUF metadata.
type TrustStore interface {
	// Metadata returns one version; 0 means the newest. ErrNotFound for what was
	// never published or is superseded for good, see PublishMetadata.
	Metadata(ctx context.Context, role Role, version int64) (Metadata, error)
	// PublishMetadata stores the files in one transaction and marks the releases
	// SIGNED at now. Each file's version must be the newest stored version of its
	// role + 1 (1 for the first), else ErrStale and nothing is stored. A release
	// that is WITHDRAWN or unknown fails it too.
	//
	// Of snapshot and timestamp, which are signed anew every few hours for ever,
	// the newest KeptMetadata versions stay; older ones are dropped in the same
	// transaction, since a client asks only for the snapshot that a timestamp of
	// moments ago names. Every root and targets stays. So the stored versions of
	// a role have no gap; of root and targets they begin with 1.
	PublishMetadata(ctx context.Context, files []Metadata, signed []ota.ReleaseID, now time.Time) error
}

// KeptMetadata is how many versions of snapshot and of timestamp a store keeps.
const KeptMetadata = 16

// RolloutStore keeps rollouts.
type RolloutStore interface {
	CreateRollout(ctx context.Context, r ota.Rollout) error // ErrConflict: id exists
	Rollout(ctx context.Context, id string) (ota.Rollout, error)
	Rollouts(ctx context.Context) ([]ota.Rollout, error) // newest first
	// Moving returns the ids of the rollouts whose state moves by itself and that are
	// not Idle, in order.
	Moving(ctx context.Context) ([]string, error)
	// Progress counts the executions by stage: for each device the newest attempt
	// only. Armed counts those that finished after the stored rollout's ArmedAt. Of
	// those that are due at most ota.MaxTaken are counted.
	Progress(ctx context.Context, r ota.Rollout, now time.Time) (ota.Progress, error)
	// Advance writes the step. ErrStale when the stored Revision is not the
	// given one; otherwise the Revision becomes one higher. When the rollout
	// becomes RUNNING, claim timers of what is QUEUED start anew; when it stops
	// running they are taken off. An attempt after the first takes the RetryAt of
	// the one before it, and is not made on a device for which a rollout that
	// supersedes this one has work, or had. What is inserted for a device that is revoked is REMOVED at
	// once, as RevokeDevice would have done: it was decided before. Nor is one made, or
	// repeated, on a device that has Left the line (see Place). An attempt after the
	// first is not made on a device that was deleted, and nothing of one is repeated.
	// ErrStale too when one would be made of a release that is WITHDRAWN meanwhile. When a rollout that
	// Follows begins, the devices that it remembers are marked, see LookStore.Settle.
	// ErrInvalid: the line does not have the turns of Open.
	Advance(ctx context.Context, a Advance) error
	// Openings returns the rollouts that are ota.Rollout.Opening, in order of their ids.
	Openings(ctx context.Context) ([]ota.Rollout, error)
	// Due reports whether a device is about to have its turn: its last one in the line is
	// of ota.Rollout.OpenTurns of this rollout, as it was read, and no attempt is there.
	Due(ctx context.Context, r ota.Rollout, deviceID string) (bool, error)
	// TakeTurns gives devices that ask the turn that they are about to have, one of
	// ota.Rollout.OpenTurns, as Open of Advance would give it to them; From and To of o
	// do not count. It passes by devices without such a turn or with an attempt, and does
	// nothing to a rollout that is not Opening any more, or another stage. The turn comes
	// to them again, and is then theirs already. ErrStale: as with Advance, when the
	// release is WITHDRAWN meanwhile. ErrNotFound: there is no such rollout.
	TakeTurns(ctx context.Context, rolloutID string, o Opening, devices []string, now time.Time) error
	// Cancel does what ota.Cancel does, with the rollout's Reason, to at most limit of
	// its executions, those at work first; if it is FINISHING to those QUEUED only.
	// None: there is nothing to cancel.
	Cancel(ctx context.Context, r ota.Rollout, now time.Time, limit int) (Cancelled, error)
	// PutCandidates stores a part of a line, whose first has the given turn. Of
	// ota.Candidate, only DeviceID and Lane are kept.
	PutCandidates(ctx context.Context, rolloutID, line string, turn int, list []ota.Candidate) error
	// Candidates returns those of a line from the given turn on, in order, at most
	// limit.
	Candidates(ctx context.Context, rolloutID, line string, turn, limit int) ([]ota.Candidate, error)
	// Turn returns the last turn that a device has in a line; ok is false when it has
	// none.
	Turn(ctx context.Context, rolloutID, line, deviceID string) (turn int, ok bool, err error)
	// DropCandidates forgets up to limit candidates of lines of the rollout that
	// are not this one, and says whether there may be more.
	DropCandidates(ctx context.Context, rolloutID, keep string, limit int) (more bool, err error)
}

// MaxExpired is how many executions one call of Expire ends; a few more when they
// are due at the same moment.
const MaxExpired = 1000

// ExecutionFilter narrows Executions; zero fields do not narrow.
type ExecutionFilter struct {
	RolloutID string
	DeviceID  string
	After     ExecutionKey // only those that come after it
	Stage     *int
	Active    bool      // QUEUED and IN_PROGRESS only
	Latest    bool      // the newest attempt of each (rollout, device) only
	RetryDue  time.Time // those with a RetryAt up to this moment only
}

// ExecutionKey names an execution. Executions come in ascending order of it:
// by rollout, then device, then attempt.
type ExecutionKey struct {
	RolloutID, DeviceID string
	Attempt             int
}

// KeyOf is the key of an execution.
func KeyOf(e ota.Execution) ExecutionKey { return ExecutionKey{e.RolloutID, e.DeviceID, e.Attempt} }

// Compare orders keys.
func (k ExecutionKey) Compare(o ExecutionKey) int {
	return cmp.Or(cmp.Compare(k.RolloutID, o.RolloutID), cmp.Compare(k.DeviceID, o.DeviceID), k.Attempt-o.Attempt)
}

// ExecutionStore keeps executions.
type ExecutionStore interface {
	// NextExecution returns what the device shall work on: an IN_PROGRESS
	// execution first, else the QUEUED one that ota.Before has first: a command
	// before an install, then that of the rollout with the highest priority, then
	// the oldest. QUEUED ones of a rollout that is not RUNNING, or
	// has as many in flight as its terms allow, are held back. ErrNotFound when
	// there is none.
	NextExecution(ctx context.Context, deviceID string) (ota.Execution, error)
	// Pending returns the first limit of what the device may work on: the one
	// IN_PROGRESS, then the QUEUED ones in the order that NextExecution would give
	// them, as ota.Before has it. What NextExecution holds back is not in it. A
	// device that is unknown has none.
	Pending(ctx context.Context, deviceID string, limit int) ([]ota.Execution, error)
	// Busy returns the devices, with ids after the given one, that have an execution
	// QUEUED or IN_PROGRESS, in order, at most limit.
	Busy(ctx context.Context, after string, limit int) ([]string, error)
	// Unfinished calls f for each device on which the rollout has an execution that is
	// QUEUED or IN_PROGRESS, in order, until f returns false; a rollout that is unknown
	// has none. f must not call the store. It reads no more of them than that, so it is
	// for a whole fleet.
	Unfinished(ctx context.Context, rolloutID string, f func(deviceID string) bool) error
	// WentBack calls f for each attempt of the rollout that ota.Execution.WentBack, ordered by
	// attempt, device, until f returns false. f must not call the store. It reads none
	// of those that went well.
	WentBack(ctx context.Context, rolloutID string, f func(ota.Execution) bool) error
	// StartNext is NextExecution followed by ota.Start, in one.
	StartNext(ctx context.Context, deviceID string, s ota.Starting, now time.Time) (ota.Execution, error)
	// Report applies ota.Apply to the newest attempt. On an error of ota.Apply the
	// execution comes back as it stands, with that error; but what ota.Late takes of the
	// attempt that the report is about is kept. A QUEUED execution that
	// NextExecution holds back can not be started: ota.ErrTransition.
	Report(ctx context.Context, r ota.Report, now time.Time) (ota.Execution, error)
	// Expire ends what is due at now, as ota.Expire does, those due first first;
	// but what is QUEUED and held back by terms gets its claim timer anew:
	// about MaxExpired of them, so that others get a turn. It returns them as they
	// stand then, in that order, and when the next of the rest is due; zero: none
	// is. A time that is not after now asks for another call.
	Expire(ctx context.Context, now time.Time) (expired []ota.Execution, next time.Time, err error)
	// Execution returns the newest attempt.
	Execution(ctx context.Context, rolloutID, deviceID string) (ota.Execution, error)
	// Executions calls f for each, ordered by rollout, device, attempt, until f
	// returns false. f must not call the store.
	Executions(ctx context.Context, filter ExecutionFilter, f func(ota.Execution) bool) error
	// Passed returns the releases that the rollout has devices pass through, or had,
	// in order.
	Passed(ctx context.Context, rolloutID string) ([]ota.ReleaseID, error)
	// Failures returns the limit attempts of a rollout that ended unsuccessfully
	// last, the newest first.
	Failures(ctx context.Context, rolloutID string, limit int) ([]ota.Execution, error)
	// AtWork returns the limit attempts of a rollout that are IN_PROGRESS and at their
	// step longest, by StepAt and device.
	AtWork(ctx context.Context, rolloutID string, limit int) ([]ota.Execution, error)
}
