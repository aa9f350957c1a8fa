package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"time"

	"github.com/otad/otad/pkg/signing"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

// trusted is the server's signed metadata after it was checked under the local
// root: the only form in which it is extended or believed. Only checkTrust
// makes one.
type trusted struct {
	root    []byte // the newest, reached from the local one
	targets []byte // the newest, signed by that root's targets keys
	version int64
	expires time.Time // of targets
	list    []signing.Target
}

// fetchTrust reads the server's metadata and judges it by the local root.
func (c *client) fetchTrust(ctx context.Context, keys keyDir) (trusted, error) {
	local, err := keys.root()
	if err != nil {
		return trusted{}, err
	}
	// Read before the server is asked: what another otactl publishes in between
	// must not look like something that the server hides.
	last, err := keys.lastVersion()
	if err != nil {
		return trusted{}, err
	}
	resp, err := call(ctx, c.trust.GetTrust, &otadv1.GetTrustRequest{})
	if err != nil {
		return trusted{}, err
	}
	return checkTrust(c.server, local, resp, last)
}

// checkTrust follows the chain from the local root to the server's targets. The
// server's own word about the root counts for nothing, and targets older than
// the last that were published from here are refused.
func checkTrust(server string, local []byte, resp *otadv1.GetTrustResponse, last int64) (trusted, error) {
	if len(resp.GetRoot()) == 0 || len(resp.GetTargets()) == 0 {
		return trusted{}, hint(fail(exitFailed, "%s has no trusted root yet", server), "otactl key init sets it")
	}
	if len(resp.GetFirstRoot()) > 0 && !bytes.Equal(resp.GetFirstRoot(), local) {
		return trusted{}, otherRoot(server, sha256.Sum256(resp.GetFirstRoot()))
	}
	t := trusted{root: resp.GetRoot(), targets: resp.GetTargets()}
	if !bytes.Equal(t.root, local) {
		if err := signing.VerifyNextRoot(local, t.root); err != nil {
			return trusted{}, fail(exitDenied, "the server's newest root does not follow from the local one: %w", err)
		}
	}
	if err := signedBy(t.root, t.targets); err != nil {
		return trusted{}, fail(exitDenied, "the server's targets are not signed by the operators' keys: %w", err)
	}
	var err error
	if t.version, err = signing.Version(t.targets); err != nil {
		return trusted{}, err
	}
	if t.version < last {
		return trusted{}, hint(fail(exitDenied, "the server shows targets version %d, but version %d was published from here", t.version, last),
			"the server lost data or hides releases; if it was restored from a backup on purpose, remove %s from the key directory", targetsFile)
	}
	if t.list, err = signing.Targets(t.targets); err != nil {
		return trusted{}, err
	}
	t.expires, err = expiry(t.targets)
	return t, err
}

// signedBy checks the signatures of a targets file of any version under a root.
func signedBy(root, targets []byte) error {
	t, err := signing.NewTrust(root, time.Time{})
	if err != nil {
		return err
	}
	if err := t.Restore(nil, nil, targets); err != nil {
		return err
	}
	return t.Dropped()
}

// expiry reads the date from metadata that was verified.
func expiry(meta []byte) (time.Time, error) {
	var doc struct {
		Signed struct {
			Expires time.Time `json:"expires"`
		} `json:"signed"`
	}
	if err := json.Unmarshal(meta, &doc); err != nil {
		return time.Time{}, fmt.Errorf("read the expiry: %w", err)
	}
	return doc.Signed.Expires, nil
}

// target returns the signed target of a path, nil when there is none.
func (t trusted) target(path string) *signing.Target {
	for i := range t.list {
		if t.list[i].Path == path {
			return &t.list[i]
		}
	}
	return nil
}

// canonicalJSON writes JSON with sorted keys and no white space, so that two
// texts of the same value compare equal.
func canonicalJSON(raw []byte) ([]byte, error) {
	var v any
	if err := decodeNumbers(raw, &v); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte{'\n'}), nil
}

func sameJSON(a, b []byte) bool {
	x, errX := canonicalJSON(a)
	y, errY := canonicalJSON(b)
	return errX == nil && errY == nil && bytes.Equal(x, y)
}
