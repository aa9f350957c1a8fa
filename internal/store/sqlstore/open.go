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
	// viaOne is for these turns only, of devices that go one way.
	viaOne = `CAST(? AS TEXT) AS via
	FROM {rows} CROSS JOIN candidates c CROSS JOIN devices d`
	// SQLite goes through the tables of a CROSS JOIN in their order.
	isThese    = ` AND c.turn = v.turn`
	whereThese = isThese + ` AND d.id = c.device_id`
	whereOne   = ` AND d.hardware = ? AND d.firmware_digest = ?`
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
	(SELECT c.device_id FROM `
	amongAll   = `candidates c`
	amongThese = `{rows} CROSS JOIN candidates c`
	reached    = ` CROSS JOIN executions n
	WHERE n.rollout_id = c.rollout_id AND n.device_id = c.device_id AND n.attempt = 1 AND c.rollout_id = ? AND c.line = ? AND c.turn >= ? AND c.turn < ?`
	returnStage = `) RETURNING stage`
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
	return t.give(r, o, nil, now, carefully)
}

// give makes the first attempts of an opening whose turns are there, of all or of these
// (nil: all), and has older rollouts make way for them.
func (t *tx) give(r ota.Rollout, o fleet.Opening, turns []int64, now time.Time, carefully bool) error {
	if err := t.keepOut(t.w.dialect.PlanAnew); err != nil {
		return err
	}
	e := ota.Queue(ota.Execution{RolloutID: r.ID, Stage: o.Stage, Timers: r.Terms.Timers}, now)
	values := []any{r.ID, o.Stage, e.Status, micros(e.QueuedAt), micros(e.UpdatedAt), micros(e.Expires), e.ExpiresAs}
	where, args := whereTurns, []any{r.ID, r.Line, o.From, o.To, o.Digest}
	if o.Only != nil {
		where += ` AND d.firmware_digest IN (''` + strings.Repeat(", ?", len(o.Only)) + ")"
		for _, digest := range o.Only {
			args = append(args, digest)
		}
	}
	by, n := superseders(r), 0
	if err := t.row(countSuperseding, by...).Scan(&n); err != nil {
		return err
	}
	if n > 0 {
		where, args = where+notSuperseded, append(args, by...)
	}
	end := ordered
	if carefully {
		end += butThose
	}
	insert := t.insertTurns
	if turns != nil {
		insert = func(where, end string, ways []ota.Way, values, args []any) (int64, error) {
			return t.insertThese(turns, where+whereThese, end, ways, values, args)
		}
	}
	made, err := insert(where, end, o.Ways, values, args)
	if err != nil {
		return err
	}
	if err := t.counted(e, made); err != nil {
		return err
	}
	if made > 0 || turns == nil {
		t.tell(ota.MovedTogether("", e, int(made), now))
	}
	return t.supersede(r, o, turns, by, now)
}

// insertTurns inserts once, or for the ways that devices go.
func (t *tx) insertTurns(where, end string, ways []ota.Way, values, args []any) (made int64, err error) {
	if ways == nil {
		return t.exec(insertTurns+viaNone+where+end, append(values, args...)...)
	}
	columns := []Column{
		texts("hardware", list(ways, func(w ota.Way) string { return w.Hardware })),
		texts("digest", list(ways, func(w ota.Way) string { return w.Digest })),
		texts("via", list(ways, func(w ota.Way) string { return viaText(w.Via) })),
	}
	err = t.chunks(insertTurns+viaWays+where+end, len(ways), values, columns, func(text string, before []any) error {
		n, err := t.exec(text, append(slices.Clip(before), args...)...)
		made += n
		return err
	})
	return made, err
}

// insertThese inserts for few turns, way by way.
func (t *tx) insertThese(turns []int64, where, end string, ways []ota.Way, values, args []any) (made int64, err error) {
	insert := func(via, where string, args []any) error {
		return t.chunks(insertTurns+viaOne+where+end, len(turns), append(slices.Clip(values), via), []Column{integers("turn", turns)}, func(text string, before []any) error {
			n, err := t.exec(text, append(slices.Clip(before), args...)...)
			made += n
			return err
		})
	}
	if ways == nil {
		err = insert(viaText(nil), where, args)
		return made, err
	}
	for _, w := range ways {
		if err := insert(viaText(w.Via), where+whereOne, append(slices.Clip(args), w.Hardware, w.Digest)); err != nil {
			return made, err
		}
	}
	return made, nil
}

// superseders are the arguments of superseding for a rollout.
func superseders(r ota.Rollout) []any {
	return []any{r.ID, r.Release.Name, r.Priority, micros(r.CreatedAt), micros(r.CreatedAt), r.ID}
}

// supersede cancels what older rollouts have QUEUED on the devices that were just
// reached, all or those with these turns.
func (t *tx) supersede(r ota.Rollout, o fleet.Opening, turns []int64, by []any, now time.Time) error {
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
		values, given := []any{e.Status, e.Class, details, micros(e.UpdatedAt), micros(e.FinishedAt), id}, []any{r.ID, r.Line, o.From, o.To}
		if turns == nil {
			err = t.unqueued(id, e, updateSuperseded+amongAll+reached+returnStage, append(values, given...)...)
		} else {
			err = t.chunks(updateSuperseded+amongThese+reached+isThese+returnStage, len(turns), values, []Column{integers("turn", turns)}, func(text string, before []any) error {
				return t.unqueued(id, e, text, append(slices.Clip(before), given...)...)
			})
		}
		if err != nil {
			return err
		}
	}
	return nil
}
