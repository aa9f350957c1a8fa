package signing

import (
	"crypto/sha256"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/theupdateframework/go-tuf/v2/metadata"
)

const (
	snapshotFile = RoleSnapshot + ".json"
	targetsFile  = RoleTargets + ".json"
	sha256Name   = "sha256"
	// MaxPathBytes is the longest target path.
	MaxPathBytes = 255
)

// checkBody holds the rules of each kind that go-tuf does not check, or checks
// by a panic.
func checkBody[T metadata.Roles](m *metadata.Metadata[T]) error {
	switch s := any(&m.Signed).(type) {
	case *metadata.RootType:
		return checkRoot(s)
	case *metadata.TimestampType:
		return checkMeta(s.Meta, snapshotFile)
	case *metadata.SnapshotType:
		return checkMeta(s.Meta, targetsFile)
	case *metadata.TargetsType:
		return checkTargets(s.Targets)
	}
	return nil
}

// checkRoot: every key is ed25519 and stands under one id only; every role has
// distinct known keys and a threshold they can reach.
func checkRoot(s *metadata.RootType) error {
	owner := map[PublicKey]string{}
	for id, k := range s.Keys {
		p, err := publicOf(k)
		if err != nil {
			return fmt.Errorf("key %.80q: %w", id, err)
		}
		if other, ok := owner[p]; ok {
			return fmt.Errorf("%w: one public key under two ids, %.80q and %.80q", ErrFormat, other, id)
		}
		owner[p] = id
	}
	for _, role := range metadata.TOP_LEVEL_ROLE_NAMES {
		if err := checkRole(role, s.Roles[role], s.Keys); err != nil {
			return err
		}
	}
	if len(s.Roles) != len(metadata.TOP_LEVEL_ROLE_NAMES) {
		return fmt.Errorf("%w: roles other than root, targets, snapshot and timestamp", ErrFormat)
	}
	return nil
}

func checkRole(name string, r *metadata.Role, keys map[string]*metadata.Key) error {
	if r == nil {
		return fmt.Errorf("%w: role %s is missing", ErrFormat, name)
	}
	for i, id := range r.KeyIDs {
		if _, ok := keys[id]; !ok || slices.Contains(r.KeyIDs[:i], id) {
			return fmt.Errorf("%w: role %s: key id %.80q is unknown or listed twice", ErrFormat, name, id)
		}
	}
	if r.Threshold < 1 || r.Threshold > len(r.KeyIDs) {
		return fmt.Errorf("%w: role %s: threshold %d of %d keys", ErrFormat, name, r.Threshold, len(r.KeyIDs))
	}
	return nil
}

func checkMeta(meta map[string]*metadata.MetaFiles, required string) error {
	if meta[required] == nil {
		return fmt.Errorf("%w: no entry for %s", ErrFormat, required)
	}
	for name, f := range meta {
		if f == nil || f.Version < 1 || f.Version > MaxVersion || f.Length < 0 {
			return fmt.Errorf("%w: entry %.80q has no valid version or length", ErrFormat, name)
		}
		if err := checkHashes(f.Hashes); err != nil {
			return fmt.Errorf("entry %.80q: %w", name, err)
		}
	}
	return nil
}

func checkTargets(targets map[string]*metadata.TargetFiles) error {
	for path, t := range targets {
		if t == nil || t.Length < 0 || t.Hashes[sha256Name] == nil {
			return fmt.Errorf("%w: target %.80q has no valid length or sha256", ErrFormat, path)
		}
		if err := checkHashes(t.Hashes); err != nil {
			return fmt.Errorf("target %.80q: %w", path, err)
		}
	}
	return nil
}

// checkHashes allows one algorithm, sha256.
func checkHashes(h metadata.Hashes) error {
	for name, sum := range h {
		if name != sha256Name || len(sum) != sha256.Size {
			return fmt.Errorf("%w: hash %.20q of %d bytes: only sha256 is accepted", ErrFormat, name, len(sum))
		}
	}
	return nil
}

var segmentPattern = regexp.MustCompile(`^[A-Za-z0-9._+~-]+$`)

// checkPath holds for every path an operator signs or a server takes: segments
// of a plain alphabet, none of them a dot or dot-dot.
func checkPath(path string) error {
	if path == "" || len(path) > MaxPathBytes {
		return fmt.Errorf("%w target path of %d bytes: from 1 to %d", ErrInvalid, len(path), MaxPathBytes)
	}
	for _, seg := range strings.Split(path, "/") {
		if seg == "." || strings.Contains(seg, "..") || !segmentPattern.MatchString(seg) {
			return fmt.Errorf("%w target path %q: a-z A-Z 0-9 . _ + ~ - between single slashes, no dot-dot", ErrInvalid, path)
		}
	}
	return nil
}
