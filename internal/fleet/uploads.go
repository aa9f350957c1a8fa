package fleet

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"strconv"

	"github.com/otad/otad/internal/blob"
	"github.com/otad/otad/pkg/ota"
)

// MaxUploadBytes is the longest upload of a device, such as its collected logs.
const MaxUploadBytes = 64 << 20

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
// job, ErrConflict when the attempt is over or another one, blob.ErrTooLarge.
func (s *Service) PutUpload(ctx context.Context, rolloutID, deviceID string, attempt int, body io.Reader) error {
	e, err := s.Store.Execution(ctx, rolloutID, deviceID)
	if err != nil {
		return err
	}
	if e.Attempt != attempt || e.Status != ota.InProgress {
		return fmt.Errorf("%w: attempt %d of job %s is not in progress", ErrConflict, attempt, rolloutID)
	}
	info, err := s.Blobs.Put(ctx, uploadKey(rolloutID, deviceID, attempt), body, MaxUploadBytes)
	if err != nil {
		return fmt.Errorf("upload of device %s for job %s: %w", deviceID, rolloutID, err)
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
