package fleet

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/otad/otad/internal/blob"
	"github.com/otad/otad/pkg/image"
	"github.com/otad/otad/pkg/ota"
)

func imageKey(digest string) string { return "images/" + digest }
func indexKey(digest string) string { return "indexes/" + digest }

// UploadImage stores the object of a raw image with this digest. The bytes are
// not believed: CreateRelease verifies them. ErrConflict when a release stands
// on the object already, so that an upload can never damage it; ErrBusy while
// another upload or CreateRelease works on it.
func (s *Service) UploadImage(ctx context.Context, digest string, object io.Reader) (int64, error) {
	if err := ota.ValidateDigest(digest); err != nil {
		return 0, err
	}
	release, err := s.claims.upload(digest)
	if err != nil {
		return 0, err
	}
	defer release()
	if r, err := s.releaseOf(ctx, digest); err == nil {
		return 0, fmt.Errorf("%w: the image is stored already, release %s uses it", ErrConflict, r.ID())
	} else if !errors.Is(err, ErrNotFound) {
		return 0, err
	}
	info, err := s.Blobs.Put(ctx, imageKey(digest), object, ota.MaxImageBytes)
	return info.Size, err
}

// Image returns the index and object size of a verified image. ErrNotFound
// when no release has it.
func (s *Service) Image(ctx context.Context, digest string) (index []byte, objectSize int64, err error) {
	if err := ota.ValidateDigest(digest); err != nil {
		return nil, 0, err
	}
	r, err := s.releaseOf(ctx, digest)
	if err != nil {
		return nil, 0, err
	}
	index, err = s.Index(ctx, r.IndexDigest)
	return index, r.ObjectSize, err
}

// Index returns an artifact index by its digest.
func (s *Service) Index(ctx context.Context, digest string) ([]byte, error) {
	if err := ota.ValidateDigest(digest); err != nil {
		return nil, err
	}
	body, err := s.Blobs.Open(ctx, indexKey(digest), 0, -1)
	if errors.Is(err, blob.ErrNotFound) {
		return nil, fmt.Errorf("%w: index %s", ErrNotFound, digest)
	} else if err != nil {
		return nil, err
	}
	defer func() { _ = body.Close() }()
	b, err := io.ReadAll(io.LimitReader(body, image.MaxIndexBytes+1))
	if err == nil && len(b) > image.MaxIndexBytes {
		err = fmt.Errorf("index %s: over %d bytes", digest, image.MaxIndexBytes)
	}
	return b, err
}

func (s *Service) releaseOf(ctx context.Context, imageDigest string) (ota.Release, error) {
	releases, err := s.Store.Releases(ctx)
	if err != nil {
		return ota.Release{}, err
	}
	for _, r := range releases {
		if r.ImageDigest == imageDigest {
			return r, nil
		}
	}
	return ota.Release{}, fmt.Errorf("%w: image %s", ErrNotFound, imageDigest)
}

// MaxVerifying is how many objects are read back and verified at a time. It
// takes a processor each; who comes later waits.
const MaxVerifying = 2

// CreateRelease makes a DRAFT from an uploaded object. The object is read back
// and every chunk is verified against the index first. ErrConflict when the
// version exists with other content, ErrBusy while the object is uploaded.
func (s *Service) CreateRelease(ctx context.Context, m ota.Manifest, index []byte) (ota.Release, error) {
	if err := m.Validate(); err != nil {
		return ota.Release{}, err
	}
	ix, err := image.ParseIndex(index)
	if err != nil {
		return ota.Release{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if hex.EncodeToString(ix.RawDigest[:]) != m.ImageDigest || ix.RawSize != m.ImageSize || ix.ObjectSize() != m.ObjectSize {
		return ota.Release{}, fmt.Errorf("%w: the index is not that of the image in the manifest", ErrInvalid)
	}
	sum := sha256.Sum256(index)
	r := ota.Release{
		Manifest: m, State: ota.ReleaseDraft, IndexDigest: hex.EncodeToString(sum[:]),
		IndexSize: int64(len(index)), CreatedAt: s.Now(),
	}
	if old, err := s.Store.Release(ctx, m.ID()); err == nil {
		if !old.SameContent(r) {
			return ota.Release{}, fmt.Errorf("%w: release %s exists with other content; choose a new version", ErrConflict, m.ID())
		}
		return old, nil
	} else if !errors.Is(err, ErrNotFound) {
		return ota.Release{}, err
	}
	release, err := s.claims.verify(m.ImageDigest)
	if err != nil {
		return ota.Release{}, err
	}
	defer release()
	if err := s.verifyObject(ctx, m, ix); err != nil {
		return ota.Release{}, err
	}
	if _, err := s.Blobs.Put(ctx, indexKey(r.IndexDigest), bytes.NewReader(index), image.MaxIndexBytes); err != nil {
		return ota.Release{}, fmt.Errorf("store index: %w", err)
	}
	return s.Store.CreateRelease(ctx, r)
}

func (s *Service) verifyObject(ctx context.Context, m ota.Manifest, ix *image.Index) error {
	select {
	case s.verifying <- struct{}{}:
		defer func() { <-s.verifying }()
	case <-ctx.Done():
		return ctx.Err()
	}
	object, err := s.Blobs.Open(ctx, imageKey(m.ImageDigest), 0, -1)
	if errors.Is(err, blob.ErrNotFound) {
		return fmt.Errorf("%w: image %s was not uploaded", ErrNotFound, m.ImageDigest)
	} else if err != nil {
		return err
	}
	defer func() { _ = object.Close() }()
	if err := image.Verify(ctx, ix, object); err != nil {
		return fmt.Errorf("%w: the uploaded object does not match its index, upload it again: %w", ErrInvalid, err)
	}
	return nil
}

// Release returns one release and its index.
func (s *Service) Release(ctx context.Context, id ota.ReleaseID) (ota.Release, []byte, error) {
	r, err := s.Store.Release(ctx, id)
	if err != nil {
		return ota.Release{}, nil, err
	}
	index, err := s.Index(ctx, r.IndexDigest)
	return r, index, err
}

// Releases returns the releases of a firmware, all for an empty name, newest
// first.
func (s *Service) Releases(ctx context.Context, name string) ([]ota.Release, error) {
	all, err := s.Store.Releases(ctx)
	if err != nil || name == "" {
		return all, err
	}
	var of []ota.Release
	for _, r := range all {
		if r.Name == name {
			of = append(of, r)
		}
	}
	return of, nil
}

// ParseManifest reads a manifest in JSON; unknown members are refused, since
// what is signed must be understood.
func ParseManifest(b []byte) (ota.Manifest, error) {
	var m ota.Manifest
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return m, fmt.Errorf("%w: manifest: %v", ErrInvalid, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return m, fmt.Errorf("%w: manifest: text after the object", ErrInvalid)
	}
	return m, m.Validate()
}
