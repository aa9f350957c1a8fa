package sqlstore

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/otad/otad/pkg/ota"
)

// countKey names one count.
type countKey struct {
	rollout string
	stage   int
	status  ota.Status
	class   ota.Class
}

func (k countKey) compare(o countKey) int {
	return cmp.Or(strings.Compare(k.rollout, o.rollout), k.stage-o.stage, strings.Compare(string(k.status), string(o.status)), strings.Compare(string(k.class), string(o.class)))
}

// count is how many newest attempts there are, and of those, how many finished
// after the rollout was armed, and how many will be tried again.
type tally struct{ n, armed, retrying int64 }

func (t tally) plus(o tally) tally {
	return tally{t.n + o.n, t.armed + o.armed, t.retrying + o.retrying}
}

// countChanges is what became of counts. Of a rollout that is counted anew,
// nothing else matters.
type countChanges struct {
	by   map[countKey]tally
	anew map[string]bool
}

func (c *countChanges) add(k countKey, by tally) {
	if c.by == nil {
		c.by = map[countKey]tally{}
	}
	c.by[k] = c.by[k].plus(by)
}

func (c *countChanges) merge(o countChanges) {
	for k, by := range o.by {
		c.add(k, by)
	}
	for id := range o.anew {
		c.recount(id)
	}
}

func (c *countChanges) recount(rolloutID string) {
	if c.anew == nil {
		c.anew = map[string]bool{}
	}
	c.anew[rolloutID] = true
}

// counted notes n newest attempts that came to stand as e does, or, with a
// negative n, that no longer do.
func (t *tx) counted(e ota.Execution, n int64) error {
	by := tally{n: n}
	if !e.FinishedAt.IsZero() {
		armedAt, err := t.armedAt(e.RolloutID)
		if err != nil {
			return err
		}
		if stored(e.SettledAt()).After(armedAt) { // as the rows are, see countRows
			by.armed = n
		}
	}
	if !e.RetryAt.IsZero() {
		by.retrying = n
	}
	t.counting.add(countKey{e.RolloutID, e.Stage, e.Status, e.Class}, by)
	return nil
}

// recounted notes one that stood as before and stands as after, and tells of it.
func (t *tx) recounted(before, after ota.Execution) error {
	t.tellMoved(before, after)
	if before.Status == after.Status && before.Class == after.Class && before.RetryAt.IsZero() == after.RetryAt.IsZero() {
		return nil
	}
	if err := t.counted(before, -1); err != nil {
		return err
	}
	return t.counted(after, 1)
}

// armedAt is from when on the rollout's counts are armed, read once in a batch;
// flushCounts sees that it still is.
func (t *tx) armedAt(rolloutID string) (at time.Time, err error) {
	at, known := t.armed[rolloutID]
	if known {
		return at, nil
	}
	if err = t.row(`SELECT armed_at FROM armed_counts WHERE rollout_id = ?`, rolloutID).Scan(timeInto{&at}); err != nil {
		return at, fmt.Errorf("counts of rollout %s: %w", rolloutID, err)
	}
	if t.armed == nil {
		t.armed = map[string]time.Time{}
	}
	t.armed[rolloutID] = at
	return at, nil
}

const (
	selectArmed = `SELECT a.rollout_id, a.armed_at FROM {rows} JOIN armed_counts a ON a.rollout_id = v.rollout`
	addCounts   = `INSERT INTO execution_counts (rollout_id, stage, status, class, n, armed, retrying)
	SELECT v.rollout, v.stage, v.status, v.class, v.n, v.armed, v.retrying FROM {rows} WHERE 1 = 1
	ON CONFLICT (rollout_id, stage, status, class) DO UPDATE SET n = execution_counts.n + excluded.n,
	armed = execution_counts.armed + excluded.armed, retrying = execution_counts.retrying + excluded.retrying`

	rearmCounts  = `UPDATE armed_counts SET armed_at = (SELECT r.armed_at FROM rollouts r WHERE r.id = armed_counts.rollout_id) WHERE rollout_id = ?`
	deleteCounts = `DELETE FROM execution_counts WHERE rollout_id = ?`
	insertCounts = `INSERT INTO execution_counts (rollout_id, stage, status, class, n, armed, retrying) ` + countRows +
		` AND e.rollout_id = ? GROUP BY e.rollout_id, e.stage, e.status, e.class`
	// countRows is what the counts are of.
	countRows = `SELECT e.rollout_id, e.stage, e.status, e.class, COUNT(*) AS n,
	SUM(CASE WHEN e.finished_at IS NOT NULL AND (a.armed_at IS NULL OR COALESCE(e.drifted_at, e.finished_at) > a.armed_at) THEN 1 ELSE 0 END) AS armed,
	SUM(CASE WHEN e.retry_at IS NOT NULL THEN 1 ELSE 0 END) AS retrying
	FROM executions e JOIN armed_counts a ON a.rollout_id = e.rollout_id WHERE e.latest = 1`
)

// flushCounts writes what the batch did to the counts, as its last act: others
// that write those of the same rollout wait from here to the commit, and for
// nothing else. A rollout that another otad armed anew meanwhile has the batch
// begin again.
func (t *tx) flushCounts() error {
	c := t.counts
	maps.DeleteFunc(c.by, func(k countKey, by tally) bool { return by == tally{} || c.anew[k.rollout] })
	if len(c.by) == 0 && len(c.anew) == 0 {
		return nil
	}
	if err := t.lockCounts(c); err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(c.anew)) {
		for _, statement := range []string{rearmCounts, deleteCounts, insertCounts} {
			if _, err := t.write(statement, id); err != nil {
				return fmt.Errorf("count executions of rollout %s: %w", id, err)
			}
		}
	}
	keys := slices.SortedFunc(maps.Keys(c.by), countKey.compare)
	_, err := t.bulk(t.write, addCounts, len(keys), nil,
		texts("rollout", list(keys, func(k countKey) string { return k.rollout })),
		integers("stage", list(keys, func(k countKey) int64 { return int64(k.stage) })),
		texts("status", list(keys, func(k countKey) string { return string(k.status) })),
		texts("class", list(keys, func(k countKey) string { return string(k.class) })),
		integers("n", list(keys, func(k countKey) int64 { return c.by[k].n })),
		integers("armed", list(keys, func(k countKey) int64 { return c.by[k].armed })),
		integers("retrying", list(keys, func(k countKey) int64 { return c.by[k].retrying })))
	if err != nil {
		return fmt.Errorf("write %d counts: %w", len(keys), err)
	}
	return nil
}

// lockCounts holds the counts of the rollouts, in order, so that two otad do not
// wait for each other.
func (t *tx) lockCounts(c countChanges) error {
	if t.w.dialect.ForShare == "" {
		return nil // there are no others
	}
	of := maps.Clone(c.anew)
	if of == nil {
		of = map[string]bool{}
	}
	for k := range c.by {
		of[k.rollout] = true
	}
	ids := slices.Sorted(maps.Keys(of))
	return t.look(func(r row) error {
		var id string
		var at time.Time
		if err := r.Scan(&id, timeInto{&at}); err != nil {
			return err
		}
		if was, used := t.armed[id]; used && !c.anew[id] && !was.Equal(at) {
			return errRaced
		}
		return nil
	}, selectArmed+` ORDER BY a.rollout_id`+t.forUpdate("a"), len(ids), texts("rollout", ids))
}
