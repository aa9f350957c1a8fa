package sqlstore

import (
	"cmp"
	"database/sql"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

// executionKey names the newest attempt of a rollout on a device.
type executionKey struct{ rollout, device string }

func keyOf(e ota.Execution) executionKey { return executionKey{e.RolloutID, e.DeviceID} }

func (k executionKey) compare(o executionKey) int {
	return cmp.Or(strings.Compare(k.device, o.device), strings.Compare(k.rollout, o.rollout))
}

// cachedExecution is an execution as it stands within a batch, held until its end.
type cachedExecution struct {
	ota.Execution
	details string // as text, once it is changed
	changed bool   // since it was written last
}

// executions are what the batch knows of executions: read together, and written
// together at its end. Only operations that read nothing else of executions keep
// them here, see reading.keepsExecutions; before any other they are written.
type executions struct {
	newest  map[executionKey]*cachedExecution
	next    map[string]*cachedExecution // by device, what it shall work on
	changed []*cachedExecution
}

func (t *tx) keepExecution(e ota.Execution) *cachedExecution {
	c := &cachedExecution{Execution: e}
	if t.executions.newest == nil {
		t.executions.newest = map[executionKey]*cachedExecution{}
	}
	t.executions.newest[keyOf(e)] = c
	return c
}

// changeExecution has c stand as to.
func (t *tx) changeExecution(c *cachedExecution, to ota.Execution) error {
	details, err := mapText(to.Details)
	if err != nil {
		return err
	}
	if err := t.recounted(c.Execution, to); err != nil {
		return err
	}
	if !c.changed {
		t.executions.changed = append(t.executions.changed, c)
	}
	c.Execution, c.details, c.changed = to, details, true
	delete(t.executions.next, to.DeviceID)
	return nil
}

// forgetExecutions writes what was changed, and has others find it.
func (t *tx) forgetExecutions() {
	t.writeExecutions()
	t.executions = executions{}
}

const (
	updateExecution = `UPDATE executions SET status = ?, class = ?, version = ?, started_at = ?, step_at = ?, updated_at = ?, finished_at = ?,
	details = ?, step = ?, expires_at = ?, expires_as = ?, retry_at = ?, drifted_at = ?, runs = ?, via = ?
	WHERE rollout_id = ? AND device_id = ? AND attempt = ?`
	updateExecutions = `UPDATE executions SET status = v.status, class = v.class, version = v.version, started_at = v.started, step_at = v.step_at,
	updated_at = v.updated, finished_at = v.finished, details = v.details, step = v.step, expires_at = v.expires, expires_as = v.expires_as,
	retry_at = v.retry, drifted_at = v.drifted, runs = v.runs, via = v.via
	FROM {rows} WHERE executions.rollout_id = v.rollout AND executions.device_id = v.device AND executions.attempt = v.attempt`
)

// writeExecutions writes what was changed. If it can not, the batch is broken.
func (t *tx) writeExecutions() {
	changed := t.executions.changed
	t.executions.changed = nil
	if len(changed) == 0 || t.broken != nil {
		return
	}
	if err := t.updateExecutions(changed); err != nil && t.broken == nil {
		t.broken = fmt.Errorf("write %d executions: %w", len(changed), err)
	}
	for _, c := range changed {
		c.changed = false
	}
}

func (t *tx) updateExecutions(changed []*cachedExecution) error {
	if t.w.dialect.Chunks != nil { // see updateShadow
		for _, c := range changed {
			if _, err := t.write(updateExecution, executionValues(c.Execution, c.details)...); err != nil {
				return err
			}
		}
		return nil
	}
	_, err := t.bulk(t.write, updateExecutions, len(changed), nil, executionColumns(changed)...)
	return err
}

// executionValues are the arguments of updateExecution.
func executionValues(e ota.Execution, details string) []any {
	return []any{
		e.Status, e.Class, e.Version, micros(e.StartedAt), micros(e.StepAt), micros(e.UpdatedAt), micros(e.FinishedAt),
		details, e.Step(), micros(e.Expires), e.ExpiresAs, micros(e.RetryAt), micros(e.DriftedAt), e.Runs, viaText(e.Via),
		e.RolloutID, e.DeviceID, e.Attempt,
	}
}

func executionColumns(changed []*cachedExecution) []Column {
	text := func(name string, of func(c *cachedExecution) string) Column { return texts(name, list(changed, of)) }
	number := func(name string, of func(c *cachedExecution) int64) Column { return integers(name, list(changed, of)) }
	at := func(name string, of func(c *cachedExecution) time.Time) Column { return times(name, list(changed, of)) }
	return []Column{
		text("rollout", func(c *cachedExecution) string { return c.RolloutID }),
		text("device", func(c *cachedExecution) string { return c.DeviceID }),
		number("attempt", func(c *cachedExecution) int64 { return int64(c.Attempt) }),
		text("status", func(c *cachedExecution) string { return string(c.Status) }),
		text("class", func(c *cachedExecution) string { return string(c.Class) }),
		number("version", func(c *cachedExecution) int64 { return int64(c.Version) }),
		at("started", func(c *cachedExecution) time.Time { return c.StartedAt }),
		at("step_at", func(c *cachedExecution) time.Time { return c.StepAt }),
		at("updated", func(c *cachedExecution) time.Time { return c.UpdatedAt }),
		at("finished", func(c *cachedExecution) time.Time { return c.FinishedAt }),
		text("details", func(c *cachedExecution) string { return c.details }),
		text("step", func(c *cachedExecution) string { return string(c.Step()) }),
		at("expires", func(c *cachedExecution) time.Time { return c.Expires }),
		text("expires_as", func(c *cachedExecution) string { return string(c.ExpiresAs) }),
		at("retry", func(c *cachedExecution) time.Time { return c.RetryAt }),
		at("drifted", func(c *cachedExecution) time.Time { return c.DriftedAt }),
		text("runs", func(c *cachedExecution) string { return c.Runs }),
		text("via", func(c *cachedExecution) string { return viaText(c.Via) }),
	}
}

const (
	prefetchLocks   = `SELECT d.id FROM {rows} JOIN devices d ON d.id = v.device ORDER BY d.id`
	prefetchReports = `SELECT p.* FROM {rows} CROSS JOIN LATERAL (` + selectExecution + `
	WHERE e.rollout_id = v.rollout AND e.device_id = v.device AND e.latest = 1 ORDER BY e.attempt DESC LIMIT 1`
	// prefetchNext names what devices shall work on, unless its rollout bounds what
	// is in flight: who starts one of that counts, one after the other.
	prefetchNext = `SELECT p.device_id, p.rollout_id, p.attempt FROM {rows} CROSS JOIN LATERAL (
	SELECT e.device_id, e.rollout_id, e.attempt, r.max_in_flight, r.max_per_lane FROM executions e JOIN rollouts r ON r.id = e.rollout_id
	WHERE e.device_id = v.device` + pending + `1) AS p WHERE p.max_in_flight = 0 AND p.max_per_lane = 0`
	prefetchStarts = `SELECT p.* FROM {rows} CROSS JOIN LATERAL (` + selectExecution + `
	WHERE e.rollout_id = v.rollout AND e.device_id = v.device AND e.attempt = v.attempt
	AND (e.status = 'IN_PROGRESS' OR e.status = 'QUEUED' AND r.state = 'RUNNING')`
)

// orderStarts has a batch that starts something wait for one of another otad, or
// writer, that stops a rollout, and the other way round: nothing starts after that is
// committed. It comes before any other lock.
func (t *tx) orderStarts(batch []*operation) error {
	if slices.ContainsFunc(batch, func(o *operation) bool { return o.reads.stops }) {
		return t.keepOut(t.w.dialect.Stop)
	}
	if slices.ContainsFunc(batch, func(o *operation) bool { return o.reads.begins }) {
		return t.keepOut(t.w.dialect.Start)
	}
	return nil
}

// prefetchExecutions reads and holds the executions that the batch begins with, on
// a database where each query costs its way: devices first, as everybody who starts
// one does, in order. What it does not find, an operation reads by itself.
func (t *tx) prefetchExecutions(batch []*operation) error {
	if t.w.dialect.Chunks != nil || len(batch) < 2 {
		return nil
	}
	var reported []executionKey
	var locked, asking []string
	for _, o := range batch {
		switch r := o.reads; {
		case r.execution == executionKey{}:
			continue
		case r.execution.rollout == "":
			asking = append(asking, r.execution.device)
		default:
			reported = append(reported, r.execution)
		}
		if o.reads.begins {
			locked = append(locked, o.reads.execution.device)
		}
	}
	locked, asking = sortedOnce(locked, strings.Compare), sortedOnce(asking, strings.Compare)
	reported = sortedOnce(reported, executionKey.compare)
	err := t.look(func(r row) error { return r.Scan(new(string)) }, prefetchLocks+t.forUpdate("d"), len(locked), texts("device", locked))
	if err == nil {
		_, err = t.holdExecutions(prefetchReports, reported)
	}
	if err != nil || len(asking) == 0 {
		return err
	}
	return t.prefetchNext(asking)
}

func (t *tx) prefetchNext(devices []string) error {
	var keys []executionKey
	var attempts []int64
	err := t.look(func(r row) error {
		var k executionKey
		var attempt int64
		err := r.Scan(&k.device, &k.rollout, &attempt)
		keys, attempts = append(keys, k), append(attempts, attempt)
		return err
	}, prefetchNext, len(devices), texts("device", devices))
	if err != nil {
		return err
	}
	held, err := t.holdExecutions(prefetchStarts, keys, integers("attempt", attempts))
	t.executions.next = make(map[string]*cachedExecution, len(held))
	for _, c := range held {
		t.executions.next[c.DeviceID] = c
	}
	return err
}

// holdExecutions reads executions, which others can not change from then on.
func (t *tx) holdExecutions(query string, keys []executionKey, more ...Column) (held []*cachedExecution, err error) {
	columns := append([]Column{
		texts("rollout", list(keys, func(k executionKey) string { return k.rollout })),
		texts("device", list(keys, func(k executionKey) string { return k.device })),
	}, more...)
	err = t.look(func(r row) error {
		e, err := scanExecution(r)
		held = append(held, t.keepExecution(e))
		return err
	}, query+t.forUpdate("e")+`) AS p`, len(keys), columns...)
	return held, err
}

func sortedOnce[T comparable](list []T, compare func(a, b T) int) []T {
	slices.SortFunc(list, compare)
	return slices.Compact(list)
}

// newestExecution returns the newest attempt, held. sql.ErrNoRows or
// fleet.ErrNotFound: there is none.
func (t *tx) newestExecution(key executionKey, begins bool) (*cachedExecution, error) {
	if c, ok := t.executions.newest[key]; ok {
		return c, nil
	}
	// Whoever starts an execution holds the device first, here as in nextExecution. What
	// one that was deleted had has ended, and says so.
	if begins {
		if err := t.lockDevice(key.device); err != nil && !errors.Is(err, fleet.ErrNotFound) {
			return nil, err
		}
	}
	e, err := scanExecution(t.row(selectNewest+t.forUpdate("e"), key.rollout, key.device))
	if err != nil {
		return nil, err
	}
	return t.keepExecution(e), nil
}

// nextExecution is Store.NextExecution with the device held, so that two can not
// start two executions on it. The execution that stood first when it was read may
// have been cancelled before it was locked: then there is no row, and another one may
// stand first now.
func (t *tx) nextExecution(deviceID string) (*cachedExecution, error) {
	if c, ok := t.executions.next[deviceID]; ok {
		return c, nil
	}
	t.writeExecutions()
	if err := t.lockDevice(deviceID); err != nil {
		return nil, err
	}
	for {
		seen, err := scanExecution(t.row(selectNext, deviceID))
		if errors.Is(err, sql.ErrNoRows) {
			return nil, notFound("next execution of device %s", deviceID)
		}
		if err == nil && seen.Status == ota.Queued {
			err = t.lockLimited(seen.RolloutID)
		}
		if err != nil {
			return nil, err
		}
		e, err := scanExecution(t.row(selectNext+t.forUpdate("e"), deviceID))
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return nil, err
		}
		if err == nil && (e.RolloutID == seen.RolloutID || e.Status != ota.Queued) {
			return t.keepExecution(e), nil
		}
	}
}
