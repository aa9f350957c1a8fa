package fleet

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/url"
	"strconv"
	"time"

	"github.com/otad/otad/pkg/ota"
)

// Bounds of Config.LinkLife.
const (
	MinLinkLife = time.Minute
	MaxLinkLife = 24 * time.Hour
)

// Link is the permission to fetch one raw image that a URL carries, for clients
// that show no certificate when they download.
type Link struct {
	Digest  string // lower-case hex sha256 of the raw image
	Device  string // to whom it was given
	Expires int64  // epoch seconds
	MAC     string // unpadded base64url
}

// JobDocument is what the device of the execution is told to do: of an install
// with links to the files when Config.LinkLife says so, of a command with where to
// put what is collected.
func (s *Service) JobDocument(ctx context.Context, e ota.Execution) (ota.OpenDocument, error) {
	d := ota.OpenDocument{JobDocument: ota.JobOf(e)}
	if c := d.Command; c != nil {
		if c.Name == ota.CommandCollectLogs {
			c.UploadURL = s.UploadURL(e)
		}
		return d, nil
	}
	if s.LinkLife == 0 {
		return d, nil
	}
	r, err := s.Store.Release(ctx, e.Release)
	if err != nil {
		return d, fmt.Errorf("job document of %s: %w", e.Release, err)
	}
	l := Link{Digest: r.ImageDigest, Device: e.DeviceID, Expires: s.Now().Add(s.LinkLife).Unix()}
	if l.MAC, err = s.mac(l); err != nil {
		return d, err
	}
	d.PackageName = r.Name
	d.Files = []ota.JobFile{ota.NewJobFile(r, l.url(s.DeviceURL))}
	return d, nil
}

func (l Link) url(base string) string {
	q := url.Values{"device": {l.Device}, "expires": {strconv.FormatInt(l.Expires, 10)}, "mac": {l.MAC}}
	return base + "/files/" + l.Digest + "?" + q.Encode()
}

// mac signs the other fields. The key is one that all replicas can derive and
// nobody else: a signature by the timestamp key over a text that is no metadata.
func (s *Service) mac(l Link) (string, error) {
	key, err := s.OnlineKeys.Timestamp.Sign([]byte("otad download link 1"))
	if err != nil {
		return "", fmt.Errorf("download link: %w", err)
	}
	m := hmac.New(sha256.New, key)
	fmt.Fprintf(m, "%s\n%s\n%d", l.Digest, l.Device, l.Expires)
	return base64.RawURLEncoding.EncodeToString(m.Sum(nil)), nil
}

// LinkedImage opens the raw image of a link. ErrDenied when links are not given,
// and for a link that was not made here, has expired or belongs to a device that
// is no longer let in.
func (s *Service) LinkedImage(ctx context.Context, l Link) (StreamFile, error) {
	if s.LinkLife == 0 {
		return StreamFile{}, fmt.Errorf("%w: this server gives no download links", ErrDenied)
	}
	want, err := s.mac(l)
	if err != nil {
		return StreamFile{}, err
	}
	if !hmac.Equal([]byte(want), []byte(l.MAC)) {
		return StreamFile{}, fmt.Errorf("%w: this download link was not made by this server", ErrDenied)
	}
	if s.Now().Unix() >= l.Expires {
		return StreamFile{}, fmt.Errorf("%w: this download link has expired; ask for the job again", ErrDenied)
	}
	if err := s.Known(ctx, l.Device); err != nil {
		return StreamFile{}, err
	}
	r, err := s.releaseOf(ctx, l.Digest)
	if err != nil {
		return StreamFile{}, err
	}
	return s.streamFile(ctx, r, StreamImage)
}
