package fleet

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/otad/otad/internal/rawimage"
	"github.com/otad/otad/pkg/ota"
)

// Files of a stream. A stream is named by a job: it holds what the device of
// that job needs to install the job's release and to verify it, for devices that
// have nothing but MQTT.
const (
	StreamImage     = 0 // the raw image, decoded here
	StreamIndex     = 1 // the artifact index, which is the TUF target
	StreamObject    = 2 // the image object as stored: smaller, for who can decode it
	StreamTimestamp = 3 // the newest of each role
	StreamSnapshot  = 4
	StreamTargets   = 5
	// StreamRoots + N is version N of the root role, up to MaxStreamFile.
	StreamRoots   = 15
	MaxStreamFile = 255
)

// MaxStreamReads is how many reads of stream files are under way at a time, so
// that slow storage or a crowd of small devices does not take the memory and the
// processors of everything else; who comes later waits.
const MaxStreamReads = 16

// StreamFile is one file that a device may read.
type StreamFile struct {
	ID   int
	Size int64 // bytes
	read func(ctx context.Context, p []byte, offset int64) (int, error)
}

// ReadAt fills p from offset; at the end of the file it returns what there is,
// and io.EOF.
func (f StreamFile) ReadAt(ctx context.Context, p []byte, offset int64) (int, error) {
	return f.read(ctx, p, offset)
}

// StreamFiles lists what the device may read under a job, and the release's name.
// ErrNotFound when the device has no such job, ErrDenied when its job is
// finished: only an unfinished execution of its own opens a stream.
func (s *Service) StreamFiles(ctx context.Context, deviceID, jobID string) (title string, files []StreamFile, err error) {
	r, err := s.streamRelease(ctx, deviceID, jobID)
	if err != nil {
		return "", nil, err
	}
	ids := []int{StreamImage, StreamIndex, StreamObject, StreamTimestamp, StreamSnapshot, StreamTargets}
	root, err := s.Store.Metadata(ctx, RoleRoot, 0)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return "", nil, err
	}
	for v := int64(1); v <= root.Version && StreamRoots+v <= MaxStreamFile; v++ {
		ids = append(ids, StreamRoots+int(v))
	}
	for _, id := range ids {
		f, err := s.streamFile(ctx, r, id)
		if errors.Is(err, ErrNotFound) {
			continue // nothing is signed yet
		} else if err != nil {
			return "", nil, err
		}
		files = append(files, f)
	}
	return r.ID().String(), files, nil
}

// StreamFile opens one of StreamFiles; ErrNotFound when there is no such file.
func (s *Service) StreamFile(ctx context.Context, deviceID, jobID string, file int) (StreamFile, error) {
	r, err := s.streamRelease(ctx, deviceID, jobID)
	if err != nil {
		return StreamFile{}, err
	}
	return s.streamFile(ctx, r, file)
}

// streamRelease is the release of the device's own, unfinished job.
func (s *Service) streamRelease(ctx context.Context, deviceID, jobID string) (ota.Release, error) {
	e, err := s.Store.Execution(ctx, jobID, deviceID)
	if err != nil {
		return ota.Release{}, err
	}
	if e.Status.Terminal() {
		return ota.Release{}, fmt.Errorf("%w: job %s is %s on this device; a stream lives as long as its job", ErrDenied, jobID, e.Status)
	}
	if e.Command != nil {
		return ota.Release{}, fmt.Errorf("%w: job %s is a command: it has no files", ErrDenied, jobID)
	}
	return s.Store.Release(ctx, e.Release)
}

func (s *Service) streamFile(ctx context.Context, r ota.Release, id int) (StreamFile, error) {
	switch id {
	case StreamImage:
		img := rawimage.Image{Object: imageKey(r.ImageDigest), Index: indexKey(r.IndexDigest), IndexDigest: r.IndexDigest}
		return s.limited(id, r.ImageSize, func(ctx context.Context, p []byte, offset int64) (int, error) {
			return s.images.ReadAt(ctx, img, p, offset)
		}), nil
	case StreamIndex:
		return s.limited(id, r.IndexSize, s.blobAt(indexKey(r.IndexDigest))), nil
	case StreamObject:
		return s.limited(id, r.ObjectSize, s.blobAt(imageKey(r.ImageDigest))), nil
	case StreamTimestamp:
		return s.metadataFile(ctx, id, RoleTimestamp, 0)
	case StreamSnapshot:
		return s.metadataFile(ctx, id, RoleSnapshot, 0)
	case StreamTargets:
		return s.metadataFile(ctx, id, RoleTargets, 0)
	}
	if id > StreamRoots && id <= MaxStreamFile {
		return s.metadataFile(ctx, id, RoleRoot, int64(id-StreamRoots))
	}
	return StreamFile{}, fmt.Errorf("%w: file %d of the stream", ErrNotFound, id)
}

// limited keeps the reads of a file within MaxStreamReads.
func (s *Service) limited(id int, size int64, read func(context.Context, []byte, int64) (int, error)) StreamFile {
	return StreamFile{ID: id, Size: size, read: func(ctx context.Context, p []byte, offset int64) (int, error) {
		select {
		case s.streaming <- struct{}{}:
			defer func() { <-s.streaming }()
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		return read(ctx, p, offset)
	}}
}

func (s *Service) blobAt(key string) func(context.Context, []byte, int64) (int, error) {
	return func(ctx context.Context, p []byte, offset int64) (int, error) {
		body, err := s.Blobs.Open(ctx, key, offset, int64(len(p)))
		if err != nil {
			return 0, err
		}
		defer func() { _ = body.Close() }()
		n, err := io.ReadFull(body, p)
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = io.EOF
		}
		return n, err
	}
}

func (s *Service) metadataFile(ctx context.Context, id int, role Role, version int64) (StreamFile, error) {
	m, err := s.Store.Metadata(ctx, role, version)
	if err != nil {
		return StreamFile{}, err
	}
	return StreamFile{ID: id, Size: int64(len(m.Bytes)), read: func(_ context.Context, p []byte, offset int64) (int, error) {
		if offset < 0 || offset >= int64(len(m.Bytes)) {
			return 0, io.EOF
		}
		n := copy(p, m.Bytes[offset:])
		if n < len(p) {
			return n, io.EOF
		}
		return n, nil
	}}, nil
}
