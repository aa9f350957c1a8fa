package main

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"time"

	"github.com/otad/otad/pkg/image"
	"github.com/otad/otad/pkg/ota"
)

const (
	downloadBytes  = 512 * mib
	downloadRuns   = 5
	downloadTarget = 0.65 // of the faster curl

	streamBytes   = 2 * gib
	streamLevel   = 1 // quick to make; the agent's memory does not depend on it
	agentMemory   = 25_000_000
	memoryLook    = 20 * time.Millisecond
	serverMemory  = 60_000_000
	idleSettle    = 5 * time.Second
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

// download races the agent against curl and zstd for the same object of the
// same server: an image of downloadBytes, encoded at the default level.
func (r *runner) download() error {
	s, err := r.newOperatedSite("download")
	if err != nil {
		return err
	}
	defer s.stop()
	r.say("making and uploading an image of %s", showMB(downloadBytes))
	if err := r.content(r.path("download.img"), downloadBytes); err != nil {
		return err
	}
	digest, share, err := s.upload(r.path("download.img"))
	if err != nil {
		return err
	}
	race := race{site: s, url: s.at.Device + "/images/" + digest}
	if err := race.run(); err != nil {
		return err
	}
	race.enter(&r.table, share)
	return errors.Join(os.Remove(r.path("download.img")), os.RemoveAll(s.dir))
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

// race is the agent against its peers, in turn.
type race struct {
	site *site
	url  string

	agent, readBack []time.Duration
	peers           [2][]time.Duration // as peerNames
}

var (
	peerNames = [2]string{"curl --http1.1", "curl --http2"}
	peerFlags = [2]string{"--http1.1", "--http2"}
)

func (c *race) run() error {
	devices := make([]string, downloadRuns)
	for i := range devices {
		devices[i] = fmt.Sprintf("racer-%d", i+1)
		if err := c.site.enroll(devices[i]); err != nil {
			return err
		}
	}
	if err := c.site.rollOut(); err != nil {
		return err
	}
	for _, id := range devices {
		u, err := c.site.update(id)
		if err != nil {
			return err
		}
		c.agent, c.readBack = append(c.agent, u.fetch), append(c.readBack, u.readBack)
		for i, flag := range peerFlags {
			took, err := c.peer(id, flag)
			if err != nil {
				return err
			}
			c.peers[i] = append(c.peers[i], took)
		}
		if err := os.RemoveAll(c.site.path(id)); err != nil {
			return err
		}
	}
	return nil
}

// peer is the same job by curl, zstd and one fsync at the end; nothing is
// verified and no power cut survived.
func (c *race) peer(id, flag string) (time.Duration, error) {
	const script = `set -o pipefail; curl -sSf "$1" --cert "$2/device.crt" --key "$2/device.key" --cacert "$2/ca.pem" "$3" | zstd -dqf -o "$4" && sync "$4"`
	out := c.site.path("peer.img")
	began := time.Now()
	cmd := exec.CommandContext(c.site.r.ctx, "bash", "-c", script, "bash", flag, c.site.path(id), c.url, out)
	if text, err := cmd.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("curl and zstd: %w: %s", err, text)
	}
	took := time.Since(began)
	info, err := os.Stat(out)
	if err == nil && info.Size() != downloadBytes {
		err = fmt.Errorf("curl and zstd wrote %d bytes", info.Size())
	}
	return took, errors.Join(err, os.Remove(out))
}

func (c *race) enter(t *table, share float64) {
	fetch := median(c.agent)
	best, name := median(c.peers[0]), peerNames[0]
	if other := median(c.peers[1]); other < best {
		best, name = other, peerNames[1]
	}
	ratio := best.Seconds() / fetch.Seconds()
	t.add(figure{
		what:     fmt.Sprintf("Agent: download, verify, write %s (object %.0f %%)", showMB(downloadBytes), 100*share),
		measured: fmt.Sprintf("%s (%s)", showRate(rate(downloadBytes, fetch)), spread(c.agent, showSeconds)),
		target:   fmt.Sprintf(">= %.2fx curl+zstd", downloadTarget), met: ratio >= downloadTarget,
		peer: fmt.Sprintf("%.2fx %s | zstd -d, fsync (%s; %s)", ratio, name, showRate(rate(downloadBytes, best)), spread(c.peers[0], showSeconds)),
	})
	t.add(figure{
		what: "Agent: slot read back and hashed", measured: showRate(rate(downloadBytes, median(c.readBack))),
	})
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
