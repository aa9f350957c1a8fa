package sqlstore

import (
	"cmp"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/otad/otad/pkg/shadow"
)

// shadow reads a shadow, once in a batch.
func (t *tx) shadow(key shadowKey) (*cachedShadow, error) {
	if c, ok := t.shadows[key]; ok {
		return c, nil
	}
	c, err := t.readShadow(key)
	if err != nil {
		return nil, err
	}
	t.keep(c)
	return c, nil
}

func (t *tx) keep(c *cachedShadow) {
	if t.shadows == nil {
		t.shadows = map[shadowKey]*cachedShadow{}
	}
	t.shadows[c.key] = c
}

const selectShadow = `SELECT version, deleted_at, document FROM shadows WHERE device_id = ? AND name = ?`

func (t *tx) readShadow(key shadowKey) (*cachedShadow, error) {
	c := &cachedShadow{key: key}
	err := c.scan(t.row(selectShadow+t.forUpdate("shadows"), key.device, key.name))
	if errors.Is(err, sql.ErrNoRows) {
		return c, t.deviceExists(key.device)
	}
	return c, err
}

// scan reads what selectShadow selects, after the given other columns.
func (c *cachedShadow) scan(r row, before ...any) error {
	var version int64
	var text string
	if err := r.Scan(append(before, &version, timeInto{&c.deletedAt}, &text)...); err != nil {
		return err
	}
	c.known = true
	if len(text) == 0 {
		c.doc = shadow.Document{Version: version}
		return nil
	}
	var err error
	if c.doc, err = shadow.ParseDocument(text); err != nil {
		return fmt.Errorf("shadow %q of device %s: %w", c.key.name, c.key.device, err)
	}
	return nil
}

const prefetchShadows = `SELECT s.device_id, s.name, s.version, s.deleted_at, s.document
	FROM {rows} JOIN shadows s ON s.device_id = v.device AND s.name = v.name`

const prefetchDevices = `SELECT d.id FROM {rows} JOIN devices d ON d.id = v.device`

// prefetch reads the shadows that the batch begins with in few queries, where
// each would cost its share. They are locked in order, so that two
// processes do not wait for each other. What a batch finds missing is left out:
// the operation reads it by itself and says so.
func (t *tx) prefetch(batch []*operation) error {
	keys := wanted(batch)
	if len(keys) < 2 {
		return nil
	}
	lock := t.forUpdate("s")
	if lock != "" {
		lock = ` ORDER BY s.device_id, s.name` + lock
	}
	err := t.look(func(r row) error {
		c := &cachedShadow{}
		if err := c.scan(r, &c.key.device, &c.key.name); err != nil {
			return err
		}
		t.keep(c)
		return nil
	}, prefetchShadows+lock, len(keys),
		texts("device", list(keys, func(k shadowKey) string { return k.device })),
		texts("name", list(keys, func(k shadowKey) string { return k.name })))
	if err != nil {
		return err
	}
	return t.prefetchNew(keys)
}

// prefetchNew notes the shadows that are still to be made, of devices that
// exist. There is no shadow to hold, so these devices are, in order too.
func (t *tx) prefetchNew(keys []shadowKey) error {
	missing := map[string][]shadowKey{}
	for _, k := range keys {
		if _, ok := t.shadows[k]; !ok {
			missing[k.device] = append(missing[k.device], k)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	var devices []string
	for d := range missing {
		devices = append(devices, d)
	}
	lock := t.forUpdate("d")
	if lock != "" {
		lock = ` ORDER BY d.id` + lock
	}
	return t.look(func(r row) error {
		var device string
		if err := r.Scan(&device); err != nil {
			return err
		}
		for _, k := range missing[device] {
			t.keep(&cachedShadow{key: k})
		}
		return nil
	}, prefetchDevices+lock, len(devices), texts("device", devices))
}

// wanted returns the shadows that the batch begins with, each once.
func wanted(batch []*operation) []shadowKey {
	var keys []shadowKey
	for _, o := range batch {
		if o.reads.shadow != nil {
			keys = append(keys, *o.reads.shadow)
		}
	}
	return sortedOnce(keys, shadowKey.compare)
}

func (k shadowKey) compare(other shadowKey) int {
	return cmp.Or(strings.Compare(k.device, other.device), strings.Compare(k.name, other.name))
}

func list[T, V any](from []T, of func(T) V) []V {
	out := make([]V, len(from))
	for i, v := range from {
		out[i] = of(v)
	}
	return out
}

func (t *tx) deviceExists(id string) error {
	var one int
	err := t.row(`SELECT 1 FROM devices WHERE id = ?`, id).Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		return notFound("device %s", id)
	}
	return err
}

// change sets what c is to be when the batch is committed.
func (t *tx) change(c *cachedShadow, to cachedShadow) {
	if !c.changed {
		t.dirty = append(t.dirty, c)
		c.before = c.doc
	}
	c.doc, c.text, c.deletedAt, c.changed = to.doc, to.text, to.deletedAt, true
}

// updateShadow is for databases that take rows one by one: they would put
// updateShadows together in a table of its own first, for half as much again.
const (
	updateShadow  = `UPDATE shadows SET version = ?, deleted_at = ?, document = ?, opaque = ? WHERE device_id = ? AND name = ?`
	updateShadows = `UPDATE shadows SET version = v.version, deleted_at = v.deleted, document = v.document, opaque = v.opaque
	FROM {rows} WHERE shadows.device_id = v.device AND shadows.name = v.name`
)

// insertShadows leaves alone what another process made meanwhile, whose content
// this one has not seen.
const insertShadows = `INSERT INTO shadows (device_id, name, version, deleted_at, document, opaque)
	SELECT v.device, v.name, v.version, v.deleted, v.document, v.opaque FROM {rows} WHERE 1 = 1 ON CONFLICT (device_id, name) DO NOTHING`

// errRaced stands for a row that another process wrote after it was read.
var errRaced = errors.New("another otad wrote the same at the same time")

// flushShadows writes the shadows that the batch changed.
func (t *tx) flushShadows() error {
	var known, fresh []*cachedShadow
	for _, c := range t.dirty {
		if c.known {
			known = append(known, c)
		} else {
			fresh = append(fresh, c)
		}
	}
	if err := t.updateShadows(known); err != nil {
		return err
	}
	slices.SortFunc(fresh, func(a, b *cachedShadow) int { return a.key.compare(b.key) })
	n, err := t.putShadows(insertShadows, fresh)
	if err == nil && n < int64(len(fresh)) {
		err = errRaced
	}
	if err != nil {
		return err
	}
	return t.flushDigests()
}

func (t *tx) updateShadows(known []*cachedShadow) error {
	if t.w.dialect.Chunks == nil {
		_, err := t.putShadows(updateShadows, known)
		return err
	}
	for _, c := range known {
		if _, err := t.write(updateShadow, c.doc.Version, micros(c.deletedAt), c.text, opaque(c.text), c.key.device, c.key.name); err != nil {
			return fmt.Errorf("write shadow %q of device %s: %w", c.key.name, c.key.device, err)
		}
	}
	return nil
}

func (t *tx) putShadows(statement string, dirty []*cachedShadow) (int64, error) {
	n, err := t.bulk(t.write, statement, len(dirty), nil,
		texts("device", list(dirty, func(c *cachedShadow) string { return c.key.device })),
		texts("name", list(dirty, func(c *cachedShadow) string { return c.key.name })),
		integers("version", list(dirty, func(c *cachedShadow) int64 { return c.doc.Version })),
		times("deleted", list(dirty, func(c *cachedShadow) time.Time { return c.deletedAt })),
		texts("document", list(dirty, func(c *cachedShadow) string { return c.text })),
		integers("opaque", list(dirty, func(c *cachedShadow) int64 { return opaque(c.text) })))
	if err != nil {
		return 0, fmt.Errorf("write %d shadows: %w", len(dirty), err)
	}
	return n, nil
}
