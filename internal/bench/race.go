package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"
)

const (
	downloadBytes  = 512 * mib
	downloadRuns   = 5
	downloadTarget = 0.65 // of the faster peer
)

// download races the agent against curl and zstd for the same object of the
// same server: an image of downloadBytes, encoded at the default level.
func (r *runner) download() error {
	s, err := r.newOperatedSite("download")
	if err != nil {
		return err
	}
	defer s.stop()
	raw := r.path("download.img")
	r.say("making and uploading an image of %s", showMB(downloadBytes))
	if err := r.content(raw, downloadBytes); err != nil {
		return err
	}
	digest, share, err := s.upload(raw)
	if err != nil {
		return err
	}
	oneFrame, err := s.uploadOneFrame(raw)
	if err != nil {
		return err
	}
	c := race{site: s}
	c.peers = []peer{
		{name: "curl | zstd -d", digest: digest},
		{name: "curl --http1.1 | zstd -d --no-asyncio", digest: digest, curl: "--http1.1", zstd: "--no-asyncio"},
		{name: "curl --http1.1 | zstd -d", digest: oneFrame, curl: "--http1.1"},
	}
	if err := c.run(); err != nil {
		return err
	}
	c.enter(&r.table, share)
	return errors.Join(os.Remove(raw), os.RemoveAll(s.dir))
}

// uploadOneFrame puts the image as zstd alone would compress it on the server,
// which knows it under the digest of that file: an object that no release has.
// It is what the chunks cost a plain decompressor, not what a device gets.
func (s *site) uploadOneFrame(raw string) (digest string, err error) {
	object := s.path("one.zst")
	if out, err := exec.CommandContext(s.r.ctx, "zstd", "-9", "-T0", "-q", raw, "-o", object).CombinedOutput(); err != nil {
		return "", fmt.Errorf("zstd: %w: %s", err, out)
	}
	f, err := os.Open(object)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	digest = hex.EncodeToString(h.Sum(nil))
	return digest, errors.Join(s.put(digest, f), os.Remove(object))
}

// race is the agent against its peers, in turn.
type race struct {
	site            *site
	agent, readBack []time.Duration
	peers           []peer // the last has an object of its own
}

// peer is a way to do the same with curl and zstd.
type peer struct {
	name       string
	digest     string // of the object's image
	curl, zstd string // a flag of each; empty: none
	took       []time.Duration
}

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
		for i := range c.peers {
			if err := c.site.runPeer(&c.peers[i], id); err != nil {
				return err
			}
		}
		if err := os.RemoveAll(c.site.path(id)); err != nil {
			return err
		}
	}
	return nil
}

// runPeer does the job with the certificate of a device and one fsync at the
// end; nothing is verified and no power cut is prepared for.
func (s *site) runPeer(p *peer, id string) error {
	const script = `set -o pipefail; curl -sSf $5 --cert "$1/device.crt" --key "$1/device.key" --cacert "$1/ca.pem" "$2" | zstd -dqf $4 -o "$3" && sync "$3"`
	out := s.path("peer.img")
	began := time.Now()
	cmd := exec.CommandContext(s.r.ctx, "bash", "-c", script, "bash", s.path(id), s.at.Device+"/images/"+p.digest, out, p.zstd, p.curl)
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", p.name, err, text)
	}
	p.took = append(p.took, time.Since(began))
	info, err := os.Stat(out)
	if err == nil && info.Size() != downloadBytes {
		err = fmt.Errorf("%s wrote %d bytes", p.name, info.Size())
	}
	return errors.Join(err, os.Remove(out))
}

func (c *race) enter(t *table, share float64) {
	fetch := median(c.agent)
	same, oneFrame := c.peers[:len(c.peers)-1], c.peers[len(c.peers)-1]
	best := same[0]
	for _, p := range same {
		if median(p.took) < median(best.took) {
			best = p
		}
	}
	ratio := median(best.took).Seconds() / fetch.Seconds()
	t.add(figure{
		what:     fmt.Sprintf("Agent: download, verify, write %s (object %.0f %%)", showMB(downloadBytes), 100*share),
		measured: fmt.Sprintf("%s (%s)", showRate(rate(downloadBytes, fetch)), spread(c.agent, showSeconds)),
		target:   fmt.Sprintf(">= %.2fx curl and zstd", downloadTarget), met: ratio >= downloadTarget,
		peer: best.describe(fetch),
	})
	for _, p := range same {
		if p.name != best.name {
			t.add(figure{what: "  against the slower way with the same object", peer: p.describe(fetch)})
		}
	}
	t.add(figure{what: "  against the same image as one zstd frame", peer: oneFrame.describe(fetch)})
	t.add(figure{
		what: "Agent: slot read back and hashed after that", measured: showRate(rate(downloadBytes, median(c.readBack))),
	})
}

func (p peer) describe(agent time.Duration) string {
	m := median(p.took)
	return fmt.Sprintf("%.2fx `%s` (%s; %s)", m.Seconds()/agent.Seconds(), p.name, showRate(rate(downloadBytes, m)), spread(p.took, showSeconds))
}
