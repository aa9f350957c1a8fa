package signing

import (
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// Lives of what the server signs. A device that hears nothing newer for
// TimestampLife stops trusting; renew each at half its life or sooner.
const (
	TimestampLife = 24 * time.Hour
	SnapshotLife  = 7 * 24 * time.Hour
)

// Online signs what the server says is newest. The two keys may be one.
type Online struct{ Snapshot, Timestamp OnlineKey }

// Publish returns the snapshot and timestamp that make targets the newest, each
// one version after its predecessor (nil: version 1). Publishing the same
// targets again is how a snapshot is renewed. The caller has checked targets
// with VerifyTargets, and stores the timestamp last. It fails with ErrRollback
// when targets is older than what prevSnapshot names.
func (o Online) Publish(prevSnapshot, prevTimestamp, targets []byte, now time.Time) (snapshot, timestamp []byte, err error) {
	t, err := decode[metadata.TargetsType](targets)
	if err != nil {
		return nil, nil, err
	}
	s := &metadata.Metadata[metadata.SnapshotType]{Signed: metadata.SnapshotType{
		Type: RoleSnapshot, SpecVersion: metadata.SPECIFICATION_VERSION,
		Version: 1, Expires: date(now.Add(SnapshotLife)), UnrecognizedFields: issuedAt(now),
		Meta: map[string]*metadata.MetaFiles{targetsFile: metaOf(targets, t.Signed.Version)},
	}}
	if prevSnapshot != nil {
		prev, err := decode[metadata.SnapshotType](prevSnapshot)
		if err != nil {
			return nil, nil, err
		}
		if named := prev.Signed.Meta[targetsFile].Version; t.Signed.Version < named {
			return nil, nil, fmt.Errorf("publish: %w: targets version %d after %d", ErrRollback, t.Signed.Version, named)
		}
		if s.Signed.Version, err = next(prev.Signed.Version); err != nil {
			return nil, nil, err
		}
	}
	if err := sign(s, o.Snapshot.Signer); err != nil {
		return nil, nil, err
	}
	if snapshot, err = encode(s); err != nil {
		return nil, nil, err
	}
	timestamp, err = o.Refresh(prevTimestamp, snapshot, now)
	return snapshot, timestamp, err
}

// Refresh returns a timestamp for snapshot, one version after prevTimestamp
// (nil: version 1) and alive for TimestampLife from now. It fails with
// ErrRollback when snapshot is older than what prevTimestamp names.
func (o Online) Refresh(prevTimestamp, snapshot []byte, now time.Time) (timestamp []byte, err error) {
	s, err := decode[metadata.SnapshotType](snapshot)
	if err != nil {
		return nil, err
	}
	t := &metadata.Metadata[metadata.TimestampType]{Signed: metadata.TimestampType{
		Type: RoleTimestamp, SpecVersion: metadata.SPECIFICATION_VERSION,
		Version: 1, Expires: date(now.Add(TimestampLife)), UnrecognizedFields: issuedAt(now),
		Meta: map[string]*metadata.MetaFiles{snapshotFile: metaOf(snapshot, s.Signed.Version)},
	}}
	if prevTimestamp != nil {
		prev, err := decode[metadata.TimestampType](prevTimestamp)
		if err != nil {
			return nil, err
		}
		if named := prev.Signed.Meta[snapshotFile].Version; s.Signed.Version < named {
			return nil, fmt.Errorf("refresh: %w: snapshot version %d after %d", ErrRollback, s.Signed.Version, named)
		}
		if t.Signed.Version, err = next(prev.Signed.Version); err != nil {
			return nil, err
		}
	}
	if err := sign(t, o.Timestamp.Signer); err != nil {
		return nil, err
	}
	return encode(t)
}

// metaOf is how a parent names a file: version, length and digest.
func metaOf(b []byte, version int64) *metadata.MetaFiles {
	sum := sha256.Sum256(b)
	return &metadata.MetaFiles{Length: int64(len(b)), Hashes: metadata.Hashes{sha256Name: sum[:]}, Version: version}
}
