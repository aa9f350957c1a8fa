package sqlstore

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

const (
	countTurns = `SELECT COUNT(*) FROM candidates WHERE rollout_id = ? AND line = ? AND turn >= ? AND turn < ?`

	// insertTurns makes first attempts for a part of a line in one statement: the
	// rows never leave the database. Keys in ascending order go into an index
	// fastest; what all rows share is added when they are sorted.
	insertTurns = `INSERT INTO executions
	(rollout_id, device_id, attempt, latest, stage, status, class, version, queued_at, updated_at, details, expires_at, expires_as, lane, from_digest, via)
	SELECT CAST(? AS TEXT), q.device_id, 1, 1, CAST(? AS BIGINT), CAST(? AS TEXT), '', 1, CAST(? AS BIGINT), CAST(? AS BIGINT), '{}',
	CAST(? AS BIGINT), CAST(? AS TEXT), q.lane, q.digest, q.via FROM (SELECT c.device_id, c.lane, d.firmware_digest AS digest, `
	viaNone = `'' AS via
	FROM candidates c JOIN devices d ON d.id = c.device_id`
	// viaWays keeps devices that stand where a way begins.
	viaWays = `v.via
	FROM candidates c JOIN devices d ON d.id = c.device_id JOIN {rows} ON v.hardware = d.hardware AND v.digest = d.firmware_digest`
	// whereTurns says of standing what PostgreSQL can estimate, or it would look for
	// each device by itself.
	whereTurns = `
	WHERE c.rollout_id = ? AND c.line = ? AND c.turn >= ? AND c.turn < ?
	AND (c.standing IS NULL OR c.standing = 1) AND d.revoked_at IS NULL AND (d.firmware_digest = '' OR d.firmware_digest <> ?)`
	ordered = ` ORDER BY c.device_id) AS q WHERE 1 = 1`
	// butThose leaves what exists as it is.
	butThose = ` ON CONFLICT (rollout_id, device_id, attempt) DO NOTHING`

	// notSuperseded leaves out the devices for which a rollout that supersedes this
	// one has work, or had. It is asked only where there is such a rollout.
	notSuperseded = ` AND NOT EXISTS (SELECT 1 FROM executions e WHERE e.device_id = c.device_id AND e.status NOT IN ('CANCELED', 'REMOVED')
	AND e.rollout_id IN (SELECT o.id FROM rollouts o WHERE ` + superseding + `))`
	// superseding is so for a rollout o that supersedes the given one.
	superseding      = `o.id <> ? AND o.release_name = ? AND o.priority >= ? AND (o.created_at > ? OR o.created_at = ? AND o.id > ?)`
	countSuperseding = `SELECT COUNT(*) FROM rollouts o WHERE ` + superseding

	// selectSuperseded are the rollouts that the given one supersedes, and that may
	// have something QUEUED.
	selectSuperseded = `SELECT o.id FROM rollouts o WHERE ` + superseded + ` AND o.ended_at IS NULL ORDER BY o.id`
	superseded       = `o.id <> ? AND o.release_name = ? AND o.priority <= ? AND (o.created_at < ? OR o.created_at = ? AND o.id < ?)`

	// updateSuperseded looks at the status again: another process may have started
	// one meanwhile.
	updateSuperseded = `UPDATE executions SET status = ?, class = ?, details = ?, version = version + 1, updated_at = ?, finished_at = ?,
	expires_at = NULL, expires_as = '' WHERE status = 'QUEUED' AND latest = 1 AND rollout_id = ? AND device_id IN
	(SELECT c.device_id FROM candidates c JOIN executions n ON n.rollout_id = c.rollout_id AND n.device_id = c.device_id AND n.attempt = 1
	WHERE c.rollout_id = ? AND c.line = ? AND c.turn >= ? AND c.turn < ?) RETURNING stage`
)

// open gives candidates their turn. Carefully is with butThose.
func (t *tx) open(r ota.Rollout, o fleet.Opening, now time.Time, carefully bool) error {
	if o.Stage < 0 || o.Stage >= len(r.Stages) {
		return fmt.Errorf("%w: stage index %d of rollout %s with %d stages", fleet.ErrInvalid, o.Stage, r.ID, len(r.Stages))
	}
	var n int
	if err := t.row(countTurns, r.ID, r.Line, o.From, o.To).Scan(&n); err != nil {
		return err
	}
	if n != o.To-o.From {
		return fleet.NoTurn(r, o)
	}
	e := ota.Queue(ota.Execution{RolloutID: r.ID, Stage: o.Stage, Timers: r.Terms.Timers}, now)
	values := []any{r.ID, o.Stage, e.Status, micros(e.QueuedAt), micros(e.UpdatedAt), micros(e.Expires), e.ExpiresAs}
	statement, args := whereTurns, []any{r.ID, r.Line, o.From, o.To, o.Digest}
	if o.Only != nil {
		statement += ` AND d.firmware_digest IN (''` + strings.Repeat(", ?", len(o.Only)) + ")"
		for _, digest := range o.Only {
			args = append(args, digest)
		}
	}
	by := superseders(r)
	if err := t.row(countSuperseding, by...).Scan(&n); err != nil {
		return err
	}
	if n > 0 {
		statement, args = statement+notSuperseded, append(args, by...)
	}
	statement += ordered
	if carefully {
		statement += butThose
	}
	made, err := t.insertTurns(statement, o.Ways, values, args)
	if err != nil {
		return err
	}
	if err := t.counted(e, made); err != nil {
		return err
	}
	t.tell(ota.MovedTogether("", e, int(made), now))
	return t.supersede(r, o, by, now)
}

// insertTurns runs the end of an insert of turns, once or for the ways that devices
// go.
func (t *tx) insertTurns(statement string, ways []ota.Way, values, args []any) (made int64, err error) {
	if ways == nil {
		return t.exec(insertTurns+viaNone+statement, append(values, args...)...)
	}
	columns := []Column{
		texts("hardware", list(ways, func(w ota.Way) string { return w.Hardware })),
		texts("digest", list(ways, func(w ota.Way) string { return w.Digest })),
		texts("via", list(ways, func(w ota.Way) string { return viaText(w.Via) })),
	}
	err = t.chunks(insertTurns+viaWays+statement, len(ways), values, columns, func(text string, before []any) error {
		n, err := t.exec(text, append(slices.Clip(before), args...)...)
		made += n
		return err
	})
	return made, err
}

// superseders are the arguments of superseding for a rollout.
func superseders(r ota.Rollout) []any {
	return []any{r.ID, r.Release.Name, r.Priority, micros(r.CreatedAt), micros(r.CreatedAt), r.ID}
}

// supersede cancels what older rollouts have QUEUED on the devices that were just
// reached.
func (t *tx) supersede(r ota.Rollout, o fleet.Opening, by []any, now time.Time) error {
	var older []string
	err := t.rows(func(r row) error {
		var id string
		err := r.Scan(&id)
		older = append(older, id)
		return err
	}, selectSuperseded, by...)
	if err != nil || len(older) == 0 {
		return err
	}
	e, _ := ota.Supersede(ota.Execution{Status: ota.Queued}, r.ID, now)
	details, err := mapText(e.Details)
	if err != nil {
		return err
	}
	for _, id := range older {
		err := t.unqueued(id, e, updateSuperseded, e.Status, e.Class, details, micros(e.UpdatedAt), micros(e.FinishedAt), id, r.ID, r.Line, o.From, o.To)
		if err != nil {
			return err
		}
	}
	return nil
}
