package fleet

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/otad/otad/internal/blob"
	"github.com/otad/otad/pkg/ota"
)

// Upload is what a device brought for one attempt at a command.
type Upload struct {
	RolloutID string
	DeviceID  string
	Attempt   int
	Bytes     int64 // UploadBegun: not all of it is there
	At        time.Time
}

// UploadBegun is the size of an upload that is under way, or was cut short.
const UploadBegun = -1

// Limits of uploads.
const (
	// MaxUploadBytes is the longest upload of a device, such as its collected logs.
	MaxUploadBytes = 64 << 20
	// UploadLife is how long an upload is kept, MaxUploadsKept how many of a device.
	UploadLife     = 30 * 24 * time.Hour
	MaxUploadsKept = 20
	// uploadSweep is how often a replica looks for those that go.
	uploadSweep = time.Hour
	// uploadsDropped is how many go in one look.
	uploadsDropped = 1000
)

// UploadFilter narrows Uploads; zero fields do not narrow.
type UploadFilter struct {
	RolloutID string
	DeviceID  string
	After     Upload // only those after this one, in the order of Uploads
}

// UploadStore keeps which uploads there are; the blobs have their bytes.
type UploadStore interface {
	// PutUpload remembers an upload; again for the same attempt replaces it.
	// ErrNotFound: there is no such attempt.
	PutUpload(ctx context.Context, u Upload) error
	// Uploads returns the first limit of those that are whole, by rollout, device
	// and attempt.
	Uploads(ctx context.Context, f UploadFilter, limit int) ([]Upload, error)
	// OldUploads returns up to limit that were brought at before or earlier, or that
	// are not among the newest kept ones of their device, whole or not.
	OldUploads(ctx context.Context, before time.Time, kept, limit int) ([]Upload, error)
	// DropUpload forgets one, unless it has been replaced meanwhile.
	DropUpload(ctx context.Context, u Upload) error
}

// UploadURL is where the device of an execution puts what it was told to collect.
func (s *Service) UploadURL(e ota.Execution) string {
	return s.DeviceURL + "/uploads/" + e.RolloutID + "/" + strconv.Itoa(e.Attempt)
}

// uploadKey is where the upload of one attempt lies. Ids of devices have letters
// that keys have not.
func uploadKey(rolloutID, deviceID string, attempt int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\n%s\n%d", rolloutID, deviceID, attempt))
	return "uploads/" + hex.EncodeToString(sum[:])
}

// PutUpload stores what a device brings for an execution of its own that is in
// progress; a second time replaces the first. ErrNotFound when it has no such
// job, ErrConflict when the attempt is over or another one, or the job asks for no
// upload, blob.ErrTooLarge.
func (s *Service) PutUpload(ctx context.Context, rolloutID, deviceID string, attempt int, body io.Reader) error {
	e, err := s.Store.Execution(ctx, rolloutID, deviceID)
	if err != nil {
		return err
	}
	if e.Attempt != attempt || e.Status != ota.InProgress {
		return fmt.Errorf("%w: attempt %d of job %s is not in progress", ErrConflict, attempt, rolloutID)
	}
	if e.Command == nil || e.Command.Name != ota.CommandCollectLogs {
		return fmt.Errorf("%w: job %s asks for no upload", ErrConflict, rolloutID)
	}
	// The record comes first, so that no bytes lie where nobody looks for them.
	u := Upload{RolloutID: rolloutID, DeviceID: deviceID, Attempt: attempt, Bytes: UploadBegun, At: s.Now()}
	if err := s.Store.PutUpload(ctx, u); err != nil {
		return err
	}
	info, err := s.Blobs.Put(ctx, uploadKey(rolloutID, deviceID, attempt), body, MaxUploadBytes)
	if err != nil {
		return fmt.Errorf("upload of device %s for job %s: %w", deviceID, rolloutID, err)
	}
	u.Bytes = info.Size
	if err := s.Store.PutUpload(ctx, u); err != nil {
		return err
	}
	s.logger(ctx).Info("upload stored", "rollout", rolloutID, "device", deviceID, "attempt", attempt, "bytes", info.Size)
	return nil
}

// Upload opens what a device brought for an attempt; blob.ErrNotFound when it
// brought nothing. The bytes are the device's: nobody has looked at them.
func (s *Service) Upload(ctx context.Context, rolloutID, deviceID string, attempt int) (blob.Info, io.ReadCloser, error) {
	key := uploadKey(rolloutID, deviceID, attempt)
	info, err := s.Blobs.Stat(ctx, key)
	if err != nil {
		return blob.Info{}, nil, fmt.Errorf("upload of device %s for job %s: %w", deviceID, rolloutID, err)
	}
	body, err := s.Blobs.Open(ctx, key, 0, -1)
	return info, body, err
}

// UploadPage returns up to limit uploads that the filter lets through, and whether
// there are more; ErrNotFound when there is no such device.
func (s *Service) UploadPage(ctx context.Context, f UploadFilter, limit int) (page []Upload, more bool, err error) {
	page, err = s.Store.Uploads(ctx, f, limit+1)
	if err == nil && len(page) == 0 && f.DeviceID != "" {
		_, err = s.Store.Device(ctx, f.DeviceID)
	}
	if len(page) > limit {
		return page[:limit], true, err
	}
	return page, false, err
}

// RunUploads drops uploads whose time is over until ctx ends. Several replicas may
// run it.
func (s *Service) RunUploads(ctx context.Context) error {
	tick := time.NewTicker(uploadSweep)
	defer tick.Stop()
	for {
		if err := s.SweepUploads(ctx); err != nil && ctx.Err() == nil {
			s.Log.Warn("old uploads were not dropped, trying again later", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// SweepUploads drops what is to go: what is older than UploadLife, and what is not
// among the newest MaxUploadsKept of its device. The record goes last: what a crash leaves is
// found again.
func (s *Service) SweepUploads(ctx context.Context) error {
	for {
		old, err := s.Store.OldUploads(ctx, s.Now().Add(-UploadLife), MaxUploadsKept, uploadsDropped)
		if err != nil {
			return err
		}
		for _, u := range old {
			if err := s.Blobs.Delete(ctx, uploadKey(u.RolloutID, u.DeviceID, u.Attempt)); err != nil {
				return err
			}
			if err := s.Store.DropUpload(ctx, u); err != nil {
				return err
			}
		}
		if len(old) < uploadsDropped {
			return nil
		}
	}
}
