package s3

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/otad/otad/internal/blob"
)

const (
	// PartSize is the bytes of one part, and so the memory of one Put. It grows
	// only when limit would need more than maxParts of them.
	PartSize = 8 << 20

	maxParts     = 10_000 // what S3 allows in one upload
	abortTimeout = 30 * time.Second
)

// Put implements blob.Store. The time in Info is zero when the object was
// stored but could not be looked up afterwards.
func (s *Store) Put(ctx context.Context, key string, r io.Reader, limit int64) (blob.Info, error) {
	if err := blob.ValidateKey(key); err != nil {
		return blob.Info{}, err
	}
	size, err := s.upload(ctx, s.prefix+key, blob.Limit(ctx, r, limit), partSize(limit))
	if err != nil {
		return blob.Info{}, fmt.Errorf("store object %s: %w", key, err)
	}
	info := blob.Info{Key: key, Size: size}
	if st, err := s.Stat(ctx, key); err == nil {
		info.Modified = st.Modified
	}
	return info, nil
}

func partSize(limit int64) int64 { return max(PartSize, limit/maxParts+1) }

// upload sends a body that fits into one part as one PUT and starts a
// multipart upload for a longer one.
func (s *Store) upload(ctx context.Context, object string, r io.Reader, part int64) (int64, error) {
	buf := make([]byte, part)
	n, err := fill(r, buf)
	if err != nil {
		return 0, err
	}
	if n < len(buf) {
		_, err := s.core.PutObject(ctx, s.bucket, object, bytes.NewReader(buf[:n]), int64(n), "", "", minio.PutObjectOptions{})
		return int64(n), err
	}
	id, err := s.core.NewMultipartUpload(ctx, s.bucket, object, minio.PutObjectOptions{})
	if err != nil {
		return 0, err
	}
	m := multipart{store: s, object: object, id: id}
	size, err := m.run(ctx, r, buf)
	if err != nil {
		return 0, errors.Join(err, m.abort(ctx))
	}
	return size, nil
}

// multipart is one upload under way.
type multipart struct {
	store  *Store
	object string
	id     string
	parts  []minio.CompletePart
}

// run sends the full buf, then r, through buf, and completes the upload.
func (m *multipart) run(ctx context.Context, r io.Reader, buf []byte) (int64, error) {
	var size int64
	for n := len(buf); n > 0; {
		if err := m.send(ctx, buf[:n]); err != nil {
			return 0, err
		}
		size += int64(n)
		var err error
		if n, err = fill(r, buf); err != nil {
			return 0, err
		}
	}
	_, err := m.store.core.CompleteMultipartUpload(ctx, m.store.bucket, m.object, m.id, m.parts, minio.PutObjectOptions{})
	return size, err
}

func (m *multipart) send(ctx context.Context, body []byte) error {
	number := len(m.parts) + 1
	p, err := m.store.core.PutObjectPart(ctx, m.store.bucket, m.object, m.id, number,
		bytes.NewReader(body), int64(len(body)), minio.PutObjectPartOptions{})
	if err != nil {
		return fmt.Errorf("part %d: %w", number, err)
	}
	m.parts = append(m.parts, minio.CompletePart{PartNumber: number, ETag: p.ETag})
	return nil
}

// abort frees the parts, also when ctx is what ended the upload.
func (m *multipart) abort(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), abortTimeout)
	defer cancel()
	if err := m.store.core.AbortMultipartUpload(ctx, m.store.bucket, m.object, m.id); err != nil {
		return fmt.Errorf("abort upload: %w", err)
	}
	return nil
}

// fill reads until buf is full or r ends. It is not io.ReadFull, which answers
// the end of r and a body cut short (io.ErrUnexpectedEOF of net/http) alike:
// that would store half an image as a whole one.
func fill(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var k int
		k, err = r.Read(buf[n:])
		n += k
	}
	if err == io.EOF { // only the bare value means the end
		err = nil
	}
	return n, err
}
