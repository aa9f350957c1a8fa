// Package s3 keeps blobs in a bucket of an S3-compatible object store (AWS S3,
// MinIO, Ceph, versitygw and the like).
//
// A body shorter than one part is one PUT; a longer one is a multipart upload
// that is completed at the end of the body and aborted on any error. Memory is
// one part per Put, whatever the size. A process that is killed leaves an
// incomplete upload in the bucket: give the bucket a lifecycle rule
// AbortIncompleteMultipartUpload (one day is plenty).
package s3

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/otad/otad/internal/blob"
)

const (
	// MaxLinkTTL is the longest life of a presigned URL that S3 knows.
	MaxLinkTTL = 7 * 24 * time.Hour
	// MinLinkTTL is the shortest: S3 counts in seconds.
	MinLinkTTL = time.Second

	defaultRegion = "us-east-1"
)

// Config says where the bucket is.
type Config struct {
	Endpoint  string // host:port, without scheme
	Bucket    string
	Prefix    string // put before every key with a "/"; empty: none
	AccessKey string
	SecretKey string
	Region    string // empty: us-east-1
	TLS       bool   // https; plain http is for loopback and trusted networks
	// CreateBucket makes New create the bucket when it does not exist.
	CreateBucket bool
	// Transport carries the requests; nil: the default of minio-go.
	Transport http.RoundTripper
}

// Store is a blob.Store and blob.Linker in a bucket.
type Store struct {
	core   minio.Core
	bucket string
	prefix string // empty or with a "/" at the end
}

var (
	_ blob.Store  = (*Store)(nil)
	_ blob.Linker = (*Store)(nil)
)

// New connects to the bucket and checks that it is there.
func New(ctx context.Context, c Config) (*Store, error) {
	region := cmp.Or(c.Region, defaultRegion)
	client, err := minio.New(c.Endpoint, &minio.Options{
		Creds:     credentials.NewStaticV4(c.AccessKey, c.SecretKey, ""),
		Secure:    c.TLS,
		Region:    region,
		Transport: c.Transport,
	})
	if err != nil {
		return nil, fmt.Errorf("s3 endpoint %q: %w", c.Endpoint, err)
	}
	s := &Store{core: minio.Core{Client: client}, bucket: c.Bucket}
	if p := strings.Trim(c.Prefix, "/"); p != "" {
		s.prefix = p + "/"
	}
	if err := s.ensureBucket(ctx, c.CreateBucket, region); err != nil {
		return nil, fmt.Errorf("s3 bucket %s at %s: %w", c.Bucket, c.Endpoint, err)
	}
	return s, nil
}

func (s *Store) ensureBucket(ctx context.Context, create bool, region string) error {
	ok, err := s.core.BucketExists(ctx, s.bucket)
	if err != nil || ok {
		return err
	}
	if !create {
		return errors.New("does not exist; create it or allow otad to")
	}
	err = s.core.MakeBucket(ctx, s.bucket, minio.MakeBucketOptions{Region: region})
	if code(err) == minio.BucketAlreadyOwnedByYou { // another replica was faster
		return nil
	}
	return err
}

// Open implements blob.Store.
func (s *Store) Open(ctx context.Context, key string, offset, length int64) (io.ReadCloser, error) {
	if err := blob.ValidateKey(key); err != nil {
		return nil, err
	}
	if offset < 0 {
		return nil, fmt.Errorf("open object %s: offset %d is negative", key, offset)
	}
	if length == 0 { // no Range header can say this
		_, err := s.Stat(ctx, key)
		return http.NoBody, err
	}
	opts, err := rangeOf(offset, length)
	if err != nil {
		return nil, fmt.Errorf("open object %s: %w", key, err)
	}
	body, _, _, err := s.core.GetObject(ctx, s.bucket, s.prefix+key, opts)
	if code(err) == minio.InvalidRange {
		return http.NoBody, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open object %s: %w", key, notFound(err))
	}
	return body, nil
}

func rangeOf(offset, length int64) (minio.GetObjectOptions, error) {
	var opts minio.GetObjectOptions
	switch {
	case length < 0 && offset == 0:
		return opts, nil
	case length < 0 || length > math.MaxInt64-offset:
		return opts, opts.SetRange(offset, 0)
	}
	return opts, opts.SetRange(offset, offset+length-1)
}

// Stat implements blob.Store.
func (s *Store) Stat(ctx context.Context, key string) (blob.Info, error) {
	if err := blob.ValidateKey(key); err != nil {
		return blob.Info{}, err
	}
	st, err := s.core.StatObject(ctx, s.bucket, s.prefix+key, minio.StatObjectOptions{})
	if err != nil {
		return blob.Info{}, fmt.Errorf("stat object %s: %w", key, notFound(err))
	}
	return blob.Info{Key: key, Size: st.Size, Modified: st.LastModified}, nil
}

// Delete implements blob.Store.
func (s *Store) Delete(ctx context.Context, key string) error {
	if err := blob.ValidateKey(key); err != nil {
		return err
	}
	err := s.core.RemoveObject(ctx, s.bucket, s.prefix+key, minio.RemoveObjectOptions{})
	if err = notFound(err); err != nil && !errors.Is(err, blob.ErrNotFound) {
		return fmt.Errorf("delete object %s: %w", key, err)
	}
	return nil
}

// Link implements blob.Linker. ttl is MinLinkTTL to MaxLinkTTL. Whether the
// object exists is found out by who follows the link.
func (s *Store) Link(ctx context.Context, key string, ttl time.Duration) (string, error) {
	if err := blob.ValidateKey(key); err != nil {
		return "", err
	}
	if ttl < MinLinkTTL || ttl > MaxLinkTTL {
		return "", fmt.Errorf("link to object %s: life of %v; S3 allows %v to %v", key, ttl, MinLinkTTL, MaxLinkTTL)
	}
	u, err := s.core.PresignedGetObject(ctx, s.bucket, s.prefix+key, ttl, url.Values{})
	if err != nil {
		return "", fmt.Errorf("link to object %s: %w", key, err)
	}
	return u.String(), nil
}

func code(err error) string { return minio.ToErrorResponse(err).Code }

func notFound(err error) error {
	if code(err) == minio.NoSuchKey {
		return blob.ErrNotFound
	}
	return err
}
