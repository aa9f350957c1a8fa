package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/otad/otad/agent/disk"
	"github.com/otad/otad/pkg/signing"
)

// maxRootsPerRefresh ends a walk along roots that a server makes up without end.
const maxRootsPerRefresh = 1024

// trustStore is pkg/signing's state machine with what it accepted kept on the
// disk. It starts from the newest root it ever stored, so that a server can not
// take a device back to a key that was rotated out.
type trustStore struct {
	trust *signing.Trust
	alarm string // why it had to start from an older root, for people
	// expired: the chain is over and the last refresh failed; says why.
	expired string

	root, timestamp, snapshot, targets, clock trustFile
}

// trustFile is one stored file and what it holds now.
type trustFile struct {
	twin
	content []byte
}

// openTrust loads what is stored in dir. Files other than the root that are
// damaged are fetched again; a damaged root falls back to its other copy, and
// then to the factory root with an alarm.
func openTrust(fsys disk.FS, dir string, factory []byte, notOlder time.Time) (*trustStore, error) {
	if err := fsys.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	file := func(name string, limit int64) trustFile {
		return trustFile{twin: twin{fsys: fsys, dir: dir, name: name, limit: limit}}
	}
	s := &trustStore{
		root:      file("root", signing.MaxRootBytes),
		timestamp: file("timestamp", signing.MaxTimestampBytes),
		snapshot:  file("snapshot", signing.MaxSnapshotBytes),
		targets:   file("targets", signing.MaxTargetsBytes),
		clock:     file("clock", 64),
	}
	floor, err := s.loadClock(notOlder)
	if err != nil {
		return nil, err
	}
	if err := s.loadRoot(factory, floor); err != nil {
		return nil, err
	}
	for _, f := range []*trustFile{&s.timestamp, &s.snapshot, &s.targets} {
		bodies, _, err := f.load()
		if err != nil {
			return nil, err
		}
		if len(bodies) > 0 && len(bodies[0]) > 0 {
			f.content = bodies[0]
		}
	}
	if err := s.trust.Restore(s.timestamp.content, s.snapshot.content, s.targets.content); err != nil {
		return nil, err
	}
	return s, nil
}

// alarms is all that a person should look at, empty when there is nothing.
func (s *trustStore) alarms() string {
	if s.alarm != "" && s.expired != "" {
		return s.alarm + "; " + s.expired
	}
	return s.alarm + s.expired
}

func (s *trustStore) loadClock(notOlder time.Time) (time.Time, error) {
	bodies, _, err := s.clock.load()
	if err != nil || len(bodies) == 0 {
		return notOlder, err
	}
	at, err := time.Parse(time.RFC3339, string(bodies[0]))
	if err != nil || at.Before(notOlder) {
		return notOlder, nil // a damaged floor is rebuilt by the next refresh
	}
	return at, nil
}

func (s *trustStore) loadRoot(factory []byte, floor time.Time) error {
	bodies, damaged, err := s.root.load()
	if err != nil {
		return err
	}
	for i, b := range bodies {
		if s.trust, err = signing.NewTrust(b, floor); err == nil {
			s.root.content = b
			if i > 0 {
				s.alarm = "the newest stored root is not valid: started from the one before"
			}
			return nil
		}
		damaged = true
	}
	if s.trust, err = signing.NewTrust(factory, floor); err != nil {
		return fmt.Errorf("factory root: %w", err)
	}
	if damaged {
		s.alarm = "no stored root is valid: started from the factory root"
	}
	return nil
}

// refresh brings the chain up to date. An error that the server's files cause is
// a doubt; others are the source's or the disk's.
func (s *trustStore) refresh(ctx context.Context, src Source, now time.Time) error {
	if err := s.refreshRoot(ctx, src); err != nil {
		return err
	}
	err := s.take(ctx, src, "timestamp.json", &s.timestamp, func(b []byte) error { return s.trust.UpdateTimestamp(b, now) })
	if err != nil {
		return err
	}
	if !s.trust.SnapshotCurrent() {
		name := fmt.Sprintf("%d.snapshot.json", s.trust.SnapshotVersion())
		if err := s.take(ctx, src, name, &s.snapshot, func(b []byte) error { return s.trust.UpdateSnapshot(b, now) }); err != nil {
			return err
		}
	}
	if !s.trust.TargetsCurrent() {
		name := fmt.Sprintf("%d.targets.json", s.trust.TargetsVersion())
		if err := s.take(ctx, src, name, &s.targets, func(b []byte) error { return s.trust.UpdateTargets(b, now) }); err != nil {
			return err
		}
	}
	return s.putClock()
}

func (s *trustStore) refreshRoot(ctx context.Context, src Source) error {
	for range maxRootsPerRefresh {
		name := fmt.Sprintf("%d.root.json", s.trust.RootVersion()+1)
		err := s.take(ctx, src, name, &s.root, s.updateRoot)
		if errors.Is(err, ErrNoSuchFile) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return doubtful("more than %d new roots in one refresh", maxRootsPerRefresh)
}

// updateRoot takes the next root. What it made the trust forget is off the disk
// before take stores the root itself: a power cut in between is a root to be
// fetched again, and never a new root beside a clock floor, or versions, that it
// was made to get rid of.
func (s *trustStore) updateRoot(b []byte) error {
	if err := s.trust.UpdateRoot(b); err != nil {
		return err
	}
	if s.trust.SnapshotVersion() == 0 {
		if err := errors.Join(s.timestamp.forget(), s.snapshot.forget()); err != nil {
			return err
		}
	}
	return s.putClock()
}

func (s *trustStore) putClock() error {
	return s.clock.put([]byte(s.trust.ClockFloor().UTC().Format(time.RFC3339)))
}

// take fetches one file, has it verified, and stores it.
func (s *trustStore) take(ctx context.Context, src Source, name string, f *trustFile, verify func([]byte) error) error {
	b, err := src.Metadata(ctx, name, f.limit)
	if errors.Is(err, ErrNoSuchFile) {
		return doubtful("the server lacks signed metadata: %s: %w", name, err)
	}
	if err != nil {
		return fmt.Errorf("fetch %s: %w", name, err)
	}
	if err := verify(b); isDisk(err) {
		return err
	} else if err != nil {
		return doubtful("%s: %w", name, err)
	}
	return f.put(b)
}

// put stores b unless it is there already.
func (f *trustFile) put(b []byte) error {
	if bytes.Equal(f.content, b) {
		return nil
	}
	if err := f.store(b); err != nil {
		return diskError{err}
	}
	f.content = bytes.Clone(b)
	return nil
}

// forget leaves nothing to restore, in either copy.
func (f *trustFile) forget() error {
	if f.content == nil {
		return nil
	}
	for range 2 {
		if err := f.store(nil); err != nil {
			return diskError{err}
		}
	}
	f.content = nil
	return nil
}
