package agent

import (
	"encoding/json"
	"fmt"

	"github.com/otad/otad/pkg/ota"
)

// MaxHistory is how many verdicts are remembered; the oldest is forgotten first.
const MaxHistory = 64

const maxHistoryBytes = 256 << 10

// verdict is how one attempt at a job ended on this device.
type verdict struct {
	JobID   string            `json:"jobId"`
	Attempt int               `json:"attempt"`
	Digest  string            `json:"digest,omitempty"` // of the image that was tried; empty: it did not come so far
	Status  ota.Status        `json:"status"`
	Details map[string]string `json:"details,omitempty"`
	// Quarantined: the image itself failed here, and is not tried again unless the
	// server means it, as blocks says.
	Quarantined bool `json:"quarantined,omitempty"`
}

// brief is the verdict as it is remembered: without a command's output.
func (v verdict) brief() verdict {
	d := map[string]string{}
	for _, k := range []string{ota.DetailBytes, ota.DetailDigest, ota.DetailReason, ota.DetailClass} {
		if text, ok := v.Details[k]; ok {
			d[k] = text
		}
	}
	v.Details = d
	return v
}

// history remembers verdicts, so that a replayed job installs nothing and a bad
// image is not tried for ever.
type history struct {
	file     twin
	verdicts []verdict // oldest first
}

// openHistory loads what is there; damaged copies are the same as none.
func openHistory(file twin) (*history, error) {
	h := &history{file: file}
	h.file.limit = maxHistoryBytes
	bodies, _, err := h.file.load()
	if err != nil {
		return nil, err
	}
	for _, b := range bodies {
		var v []verdict
		if json.Unmarshal(b, &v) == nil {
			h.verdicts = v
			break
		}
	}
	return h, nil
}

// of returns the verdict on an attempt at a job.
func (h *history) of(jobID string, attempt int) (verdict, bool) {
	for _, v := range h.verdicts {
		if v.JobID == jobID && v.Attempt == attempt {
			return v, true
		}
	}
	return verdict{}, false
}

// blocks returns the verdict that keeps the image of a job from being tried: the
// newest one on it is a quarantine. It does not keep a job from it that lets in
// quarantined devices, nor a further attempt at a job that has tried it: each attempt
// at a job tries an image once. Attempts at different jobs say nothing of each other.
func (h *history) blocks(job Record) (newest verdict, blocked bool) {
	for i := len(h.verdicts) - 1; i >= 0; i-- {
		v := h.verdicts[i]
		if v.Digest != job.ToDigest {
			continue
		}
		if newest.Digest == "" {
			newest = v
		}
		if !newest.Quarantined || v.JobID == job.JobID {
			return newest, newest.Quarantined && job.Attempt <= v.Attempt
		}
	}
	return newest, newest.Quarantined && !job.Quarantined
}

// quarantined lists the images that are blocked.
func (h *history) quarantined() []string {
	var out []string
	seen := map[string]bool{}
	for i := len(h.verdicts) - 1; i >= 0; i-- {
		v := h.verdicts[i]
		if v.Digest == "" || seen[v.Digest] {
			continue
		}
		seen[v.Digest] = true
		if v.Quarantined {
			out = append(out, v.Digest)
		}
	}
	return out
}

// add remembers a verdict; the first one on an attempt stands.
func (h *history) add(v verdict) error {
	if _, known := h.of(v.JobID, v.Attempt); known {
		return nil
	}
	next := append(h.verdicts[:len(h.verdicts):len(h.verdicts)], v)
	if len(next) > MaxHistory {
		next = next[len(next)-MaxHistory:]
	}
	b, err := json.Marshal(next)
	if err != nil {
		return fmt.Errorf("encode history: %w", err)
	}
	if err := h.file.store(b); err != nil {
		return err
	}
	h.verdicts = next
	return nil
}
