package main

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"github.com/otad/otad/pkg/image"
	"github.com/otad/otad/pkg/ota"
)

const (
	streamBytes = 2 * gib
	streamLevel = 1 // quick to make; the agent's memory does not depend on it

	agentMemory  = 25_000_000
	memoryLook   = 20 * time.Millisecond
	serverMemory = 60_000_000
	idleSettle   = 5 * time.Second

	bundleName    = "bench"
	bundleVersion = "1.0.0"
	createRelease = "otad.v1.FirmwareService/CreateRelease"
)

// idle measures a server that has started and has nothing to do.
func (r *runner) idle() error {
	s, err := r.newSite("idle")
	if err != nil {
		return err
	}
	defer s.stop()
	if err := r.settle(idleSettle); err != nil {
		return err
	}
	m, err := s.server.memory()
	if err != nil {
		return err
	}
	r.table.add(figure{
		what: "otad resident, idle", measured: showMB(m.resident), target: "<= 60 MB", met: m.resident <= serverMemory,
	})
	return nil
}

// upload makes a signed release of an image as an operator would.
func (s *site) upload(path string) (digest string, share float64, err error) {
	out, err := s.ctl("firmware", "upload", path, "--name", bundleName, "--version", bundleVersion, "--hardware", hardware, "-o", "json", "-q")
	if err != nil {
		return "", 0, err
	}
	var release struct {
		ImageSHA256           string
		ImageSize, ObjectSize int64
	}
	if err := json.Unmarshal([]byte(out), &release); err != nil || release.ImageSize == 0 {
		return "", 0, fmt.Errorf("otactl firmware upload: %w: %s", err, out)
	}
	return release.ImageSHA256, float64(release.ObjectSize) / float64(release.ImageSize), nil
}

// rollOut offers the release to every device.
func (s *site) rollOut() error {
	_, err := s.ctl("rollout", "create", "--firmware", bundleName+"@"+bundleVersion, "--stages", "100%", "--soak", "0s", "-q")
	return err
}

// update is what one agent's update took.
type update struct {
	fetch    time.Duration // from entering FETCH until the slot is complete and synced
	readBack time.Duration // until it was read from the disk, hashed and sealed
	peak     int64         // resident bytes, the most until then
}

// change is a line of the agent's log.
var change = regexp.MustCompile(`time=(\S+) .*msg=state from=\S+ to=(\S+)`)

// update runs the agent of a directory until its slot is sealed, then ends it.
func (s *site) update(id string) (update, error) {
	log := s.path(id + ".log")
	p, err := start(log, filepath.Join(s.r.bin, "otagent"), "run", "--dir", s.path(id), "--log-format", "text")
	if err != nil {
		return update{}, err
	}
	defer p.stop()
	var u update
	entered := map[string]time.Time{}
	err = s.r.until(id+" to seal its slot", memoryLook, func() (bool, error) {
		raw, err := os.ReadFile(log)
		if err != nil {
			return false, err
		}
		for _, m := range change.FindAllStringSubmatch(string(raw), -1) {
			at, err := time.Parse(time.RFC3339, m[1])
			if err != nil {
				return false, err
			}
			entered[m[2]] = at
		}
		if _, failed := entered["FAILED"]; failed {
			return false, fmt.Errorf("the update failed: %s", raw)
		}
		if _, sealed := entered["ARM"]; sealed { // a new process image follows, with a memory of its own
			return true, nil
		}
		m, err := p.memory()
		u.peak = max(u.peak, m.peak)
		return false, errors.Join(err, p.ended())
	})
	u.fetch = entered["STAGED"].Sub(entered["FETCH"])
	u.readBack = entered["ARM"].Sub(entered["STAGED"])
	return u, err
}

// stream measures the agent's memory while a large image goes through it.
func (r *runner) stream() error {
	s, err := r.newOperatedSite("stream")
	if err != nil {
		return err
	}
	defer s.stop()
	r.say("making and uploading an image of %s", showMB(streamBytes))
	if err := s.uploadQuick(); err != nil {
		return err
	}
	if err := s.enroll("streamer"); err != nil {
		return err
	}
	if err := s.rollOut(); err != nil {
		return err
	}
	u, err := s.update("streamer")
	if err != nil {
		return err
	}
	r.table.add(figure{
		what:     fmt.Sprintf("Agent: most resident memory, image of %s", showMB(streamBytes)),
		measured: fmt.Sprintf("%s (%s)", showMB(u.peak), showRate(rate(streamBytes, u.fetch))),
		target:   "<= 25 MB", met: u.peak <= agentMemory,
	})
	return os.RemoveAll(s.dir)
}

// uploadQuick is upload of a large image at a low level, by the API.
func (s *site) uploadQuick() error {
	raw, object := s.path("stream.img"), s.path("stream.obj")
	if err := s.r.content(raw, streamBytes); err != nil {
		return err
	}
	ix, err := s.encodeTo(raw, object)
	if err != nil {
		return err
	}
	f, err := os.Open(object)
	if err != nil {
		return err
	}
	defer f.Close()
	digest := hex.EncodeToString(ix.RawDigest[:])
	if err := s.put(digest, f); err != nil {
		return err
	}
	if err := errors.Join(os.Remove(raw), os.Remove(object)); err != nil {
		return err
	}
	return s.release(ix, digest)
}

func (s *site) encodeTo(raw, object string) (*image.Index, error) {
	in, err := os.Open(raw)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	out, err := os.Create(object)
	if err != nil {
		return nil, err
	}
	w := bufio.NewWriterSize(out, mib)
	ix, err := image.Encode(s.r.ctx, w, in, image.EncodeOptions{Level: streamLevel, SizeHint: streamBytes})
	return ix, errors.Join(err, w.Flush(), out.Close())
}

// release makes a signed release of an object that the server has.
func (s *site) release(ix *image.Index, digest string) error {
	encoded, err := ix.MarshalBinary()
	if err != nil {
		return err
	}
	manifest, err := json.Marshal(ota.Manifest{
		Name: bundleName, Version: bundleVersion, HardwareIDs: []string{hardware}, Installer: ota.InstallImage,
		ImageDigest: digest, ImageSize: ix.RawSize, ObjectSize: ix.ObjectSize(),
	})
	if err != nil {
		return err
	}
	err = s.call(createRelease, struct {
		Manifest []byte `json:"manifest"`
		Index    []byte `json:"index"`
	}{manifest, encoded})
	if err != nil {
		return err
	}
	_, err = s.ctl("firmware", "sign", bundleName+"@"+bundleVersion, "--yes", "-q")
	return err
}
