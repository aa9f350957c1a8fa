package sqlstore

import (
	"fmt"
	"slices"
	"strings"

	"github.com/otad/otad/internal/fleet"
)

// updateDigest is for databases that take rows one by one, as updateShadow.
const (
	updateDigest  = `UPDATE devices SET firmware_digest = ? WHERE id = ?`
	updateDigests = `UPDATE devices SET firmware_digest = v.digest FROM {rows} WHERE devices.id = v.device`
)

// flushDigests keeps beside the devices what they newly say they run.
func (t *tx) flushDigests() error {
	var changed []*cachedShadow
	for _, c := range t.dirty {
		if c.key.name == "" && !fleet.SameDigest(c.before, c.doc) {
			changed = append(changed, c)
		}
	}
	slices.SortFunc(changed, func(a, b *cachedShadow) int { return strings.Compare(a.key.device, b.key.device) })
	if t.w.dialect.Chunks != nil {
		for _, c := range changed {
			if _, err := t.write(updateDigest, fleet.ReportedDigest(c.doc), c.key.device); err != nil {
				return fmt.Errorf("write digest of device %s: %w", c.key.device, err)
			}
		}
		return nil
	}
	_, err := t.bulk(t.write, updateDigests, len(changed), nil,
		texts("device", list(changed, func(c *cachedShadow) string { return c.key.device })),
		texts("digest", list(changed, func(c *cachedShadow) string { return fleet.ReportedDigest(c.doc) })))
	if err != nil {
		return fmt.Errorf("write %d digests: %w", len(changed), err)
	}
	return nil
}
