package fleet

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/signing"
)

// TrustInfo is what an operator needs to sign.
type TrustInfo struct {
	Root, Targets, FirstRoot []byte // empty before InitTrust
	Snapshot, Timestamp      signing.PublicKey
}

// Trust returns the newest root and targets, and the online public keys.
func (s *Service) Trust(ctx context.Context) (TrustInfo, error) {
	info := TrustInfo{Snapshot: s.OnlineKeys.Snapshot.Public(), Timestamp: s.OnlineKeys.Timestamp.Public()}
	for _, f := range []struct {
		to      *[]byte
		role    Role
		version int64
	}{{&info.Root, RoleRoot, 0}, {&info.FirstRoot, RoleRoot, 1}, {&info.Targets, RoleTargets, 0}} {
		m, err := s.Store.Metadata(ctx, f.role, f.version)
		if errors.Is(err, ErrNotFound) {
			continue
		} else if err != nil {
			return TrustInfo{}, err
		}
		*f.to = m.Bytes
	}
	return info, nil
}

// InitTrust sets the first root and empty targets. ErrConflict when there is a
// root; ErrInvalid when the files do not hold together or the root does not
// name this server's online keys.
func (s *Service) InitTrust(ctx context.Context, root, targets []byte) error {
	if _, err := s.Store.Metadata(ctx, RoleRoot, 1); err == nil {
		return fmt.Errorf("%w: this server has a trust root already; a new one must be signed by the old one", ErrConflict)
	} else if !errors.Is(err, ErrNotFound) {
		return err
	}
	if err := s.checkRoot(root); err != nil {
		return err
	}
	now := s.Now()
	if listed, err := signing.VerifyTargets(root, nil, targets, now); err != nil {
		return fmt.Errorf("%w: targets: %w", ErrInvalid, err)
	} else if len(listed) > 0 {
		return fmt.Errorf("%w: the first targets must be empty", ErrInvalid)
	}
	snapshot, timestamp, err := s.OnlineKeys.Publish(nil, nil, targets, now)
	if err != nil {
		return fmt.Errorf("sign snapshot: %w", err)
	}
	files := []Metadata{{RoleRoot, 1, root}, {RoleTargets, 1, targets}, {RoleSnapshot, 1, snapshot}, {RoleTimestamp, 1, timestamp}}
	err = s.Store.PublishMetadata(ctx, files, nil, now)
	if errors.Is(err, ErrStale) {
		return fmt.Errorf("%w: this server has just got a trust root from somebody else", ErrConflict)
	}
	return err
}

func (s *Service) checkRoot(root []byte) error {
	if err := signing.VerifyRoot(root); err != nil {
		return fmt.Errorf("%w: root: %w", ErrInvalid, err)
	}
	snapshot, timestamp, err := signing.RootOnlineKeys(root)
	if err != nil {
		return fmt.Errorf("%w: root: %w", ErrInvalid, err)
	}
	for _, k := range []struct {
		role  string
		keys  []signing.PublicKey
		wants signing.PublicKey
	}{{"snapshot", snapshot, s.OnlineKeys.Snapshot.Public()}, {"timestamp", timestamp, s.OnlineKeys.Timestamp.Public()}} {
		if len(k.keys) != 1 || k.keys[0].ID() != k.wants.ID() {
			return fmt.Errorf("%w: the root's %s key is not this server's (%s)", ErrInvalid, k.role, k.wants.ID())
		}
	}
	return nil
}

// CheckOnlineKeys fails when there is a trust root that does not name this
// server's online keys: what they sign, no device would believe.
func (s *Service) CheckOnlineKeys(ctx context.Context) error {
	root, err := s.Store.Metadata(ctx, RoleRoot, 0)
	if errors.Is(err, ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	if err := s.checkRoot(root.Bytes); err != nil {
		return fmt.Errorf("%w; restore the online keys that the root was made for from a backup", err)
	}
	return nil
}

// PublishTargets stores the next targets with its snapshot and timestamp, and
// returns its version and the releases it signed anew. ErrStale when the
// version is not the newest plus one: read again and sign again. What is WITHDRAWN they
// must not list, and what is SIGNED they must: ErrInvalid.
func (s *Service) PublishTargets(ctx context.Context, next []byte) (int64, []ota.ReleaseID, error) {
	now := s.Now()
	p, err := s.nextTargets(ctx, next, ota.ReleaseID{}, now)
	if err != nil {
		return 0, nil, err
	}
	if err := s.Store.PublishMetadata(ctx, p.files, p.signed, now); err != nil {
		return p.version, p.signed, err
	}
	s.Look() // at who waits for a path that this opens
	return p.version, p.signed, nil
}

// publication is what it takes to publish the next targets.
type publication struct {
	version int64
	files   []Metadata      // them, and snapshot and timestamp over them
	signed  []ota.ReleaseID // drafts that they sign
}

// nextTargets checks the next targets, that are to be published without a release
// which is being withdrawn (zero: none is), and signs snapshot and timestamp over them.
func (s *Service) nextTargets(ctx context.Context, next []byte, withdrawing ota.ReleaseID, now time.Time) (p publication, err error) {
	info, err := s.Trust(ctx)
	if err != nil {
		return p, err
	}
	if info.Root == nil {
		return p, fmt.Errorf("%w: the server has no trust root yet, run 'otactl key init' first", ErrConflict)
	}
	if err := s.checkSuccession(info.Targets, next); err != nil {
		return p, err
	}
	targets, err := signing.VerifyTargets(info.Root, info.Targets, next, now)
	if err != nil {
		return p, fmt.Errorf("%w: targets: %w", ErrInvalid, err)
	}
	releases, err := s.Store.Releases(ctx)
	if err != nil {
		return p, err
	}
	for i, r := range releases {
		if r.ID() == withdrawing {
			releases[i].State, releases[i].Reason = ota.ReleaseWithdrawn, "with these targets"
		}
	}
	if p.signed, err = matchReleases(targets, releases); err != nil {
		return p, s.orStale(ctx, next, err)
	}
	if p.version, err = signing.Version(next); err != nil {
		return p, err
	}
	files, err := s.onlineFiles(ctx, next, now)
	p.files = append([]Metadata{{RoleTargets, p.version, next}}, files...)
	return p, err
}

// orStale is what is wrong with targets, unless others were published since those that
// they follow were read: then nothing is known of them.
func (s *Service) orStale(ctx context.Context, next []byte, wrong error) error {
	info, err := s.Trust(ctx)
	if err != nil {
		return err
	}
	if err := s.checkSuccession(info.Targets, next); err != nil {
		return err
	}
	return wrong
}

// checkSuccession tells a lost race (ErrStale) from a wrong file.
func (s *Service) checkSuccession(current, next []byte) error {
	have, err := signing.Version(current)
	if err != nil {
		return fmt.Errorf("stored targets: %w", err)
	}
	got, err := signing.Version(next)
	if err != nil {
		return fmt.Errorf("%w: targets: %w", ErrInvalid, err)
	}
	if got != have+1 {
		return fmt.Errorf("%w: targets version %d does not follow %d", ErrStale, got, have)
	}
	return nil
}

// matchReleases returns the drafts that the targets sign, and fails on a target that no
// release stands behind, that says something else, or that is withdrawn, and on a
// signed release that has no target any more.
func matchReleases(targets []signing.Target, releases []ota.Release) ([]ota.ReleaseID, error) {
	byPath := map[string]ota.Release{}
	for _, r := range releases {
		byPath[r.ID().TargetPath()] = r
	}
	listed := map[string]bool{}
	var signed []ota.ReleaseID
	for _, t := range targets {
		r, ok := byPath[t.Path]
		listed[t.Path] = true
		if !ok {
			return nil, fmt.Errorf("%w: target %s has no uploaded release", ErrInvalid, t.Path)
		}
		if r.State == ota.ReleaseWithdrawn {
			return nil, fmt.Errorf("%w: the targets list a release that must not be installed: %s; sign them without it, and upload a new version", ErrInvalid, r.WithdrawnText())
		}
		if err := matches(t, r); err != nil {
			return nil, err
		}
		if r.State == ota.ReleaseDraft {
			signed = append(signed, r.ID())
		}
	}
	for path, r := range byPath {
		if r.State == ota.ReleaseSigned && !listed[path] {
			return nil, fmt.Errorf("%w: the targets do not list %s, which is SIGNED: withdraw it with 'otactl firmware withdraw %[2]s', or sign them with it", ErrInvalid, r.ID())
		}
	}
	return signed, nil
}

func matches(t signing.Target, r ota.Release) error {
	m, err := ParseManifest(t.Custom)
	if err != nil {
		return fmt.Errorf("target %s: custom data: %w", t.Path, err)
	}
	same := r.SameContent(ota.Release{Manifest: m, IndexDigest: hex.EncodeToString(t.SHA256[:])})
	if !same || t.Length != r.IndexSize {
		return fmt.Errorf("%w: target %s differs from the uploaded release", ErrInvalid, t.Path)
	}
	return nil
}

func (s *Service) onlineFiles(ctx context.Context, targets []byte, now time.Time) ([]Metadata, error) {
	oldSnapshot, err := s.Store.Metadata(ctx, RoleSnapshot, 0)
	if err != nil {
		return nil, fmt.Errorf("snapshot: %w", err)
	}
	oldTimestamp, err := s.Store.Metadata(ctx, RoleTimestamp, 0)
	if err != nil {
		return nil, fmt.Errorf("timestamp: %w", err)
	}
	snapshot, timestamp, err := s.OnlineKeys.Publish(oldSnapshot.Bytes, oldTimestamp.Bytes, targets, now)
	if err != nil {
		return nil, fmt.Errorf("sign snapshot: %w", err)
	}
	return []Metadata{{RoleSnapshot, oldSnapshot.Version + 1, snapshot}, {RoleTimestamp, oldTimestamp.Version + 1, timestamp}}, nil
}

// TrustRefresh is how often snapshot and timestamp are signed anew: well within
// the timestamp's 24 hours, so that a device sees a freeze soon.
const TrustRefresh = 6 * time.Hour

// RefreshTrust signs snapshot and timestamp anew. Nothing happens before
// InitTrust.
func (s *Service) RefreshTrust(ctx context.Context) error {
	targets, err := s.Store.Metadata(ctx, RoleTargets, 0)
	if errors.Is(err, ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	now := s.Now()
	files, err := s.onlineFiles(ctx, targets.Bytes, now)
	if err != nil {
		return err
	}
	err = s.Store.PublishMetadata(ctx, files, nil, now)
	if errors.Is(err, ErrStale) {
		return nil // another replica or an operator was first
	}
	return err
}

// RunTrust refreshes at once and then every TrustRefresh until ctx ends. A
// failed refresh is tried again in a minute.
func (s *Service) RunTrust(ctx context.Context) error {
	for {
		wait := TrustRefresh
		if err := s.RefreshTrust(ctx); err != nil && ctx.Err() == nil {
			s.Log.Error("trust metadata was not refreshed, devices will refuse it when it expires", "error", err)
			wait = time.Minute
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
	}
}

// MetadataFile returns one metadata file for devices; version 0 is the newest.
func (s *Service) MetadataFile(ctx context.Context, role Role, version int64) ([]byte, error) {
	if !slices.Contains([]Role{RoleRoot, RoleTargets, RoleSnapshot, RoleTimestamp}, role) {
		return nil, fmt.Errorf("%w: role %q", ErrNotFound, role)
	}
	m, err := s.Store.Metadata(ctx, role, version)
	return m.Bytes, err
}
