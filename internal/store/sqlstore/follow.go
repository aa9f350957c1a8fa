package sqlstore

import (
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/ota"
)

const (
	selectRelooks = `SELECT device_id FROM relooks WHERE rollout_id = ? ORDER BY device_id`
	deleteRelooks = `DELETE FROM relooks WHERE rollout_id = ?`
	insertRelook  = `INSERT INTO relooks (rollout_id, device_id) VALUES (?, ?) ON CONFLICT DO NOTHING`

	countOlder = `SELECT COUNT(*) FROM rollouts o WHERE (o.follows = 1 OR o.state IN ('RUNNING', 'PAUSED')) AND ` + superseded

	// A lock on what is followed only: others are none of this transaction's business.
	selectFollowed = selectRollout + ` WHERE id = ? AND follows = 1`
	updateFollowed = `UPDATE rollouts SET stages = ?, population = ?, idle = 0, opening = ?, revision = revision + 1 WHERE id = ?`

	selectPlace   = `SELECT turn, standing FROM candidates WHERE rollout_id = ? AND line = ? AND device_id = ? AND standing IS NOT NULL`
	updatePlace   = `UPDATE candidates SET standing = ? WHERE rollout_id = ? AND line = ? AND device_id = ? AND standing IS NOT NULL`
	insertPlace   = `INSERT INTO candidates (rollout_id, line, turn, device_id, lane, standing) VALUES (?, ?, ?, ?, ?, 1)`
	selectReached = `SELECT 1 FROM executions WHERE rollout_id = ? AND device_id = ? LIMIT 1`
	selectPlaces  = `SELECT c.device_id, c.rollout_id, c.turn, c.standing FROM {rows} JOIN rollouts r ON r.follows = 1
	JOIN candidates c ON c.rollout_id = r.id AND c.line = r.line AND c.device_id = v.device AND c.standing IS NOT NULL ORDER BY c.device_id, c.rollout_id`
	selectLeft = `SELECT v.device FROM {rows} WHERE EXISTS (SELECT 1 FROM candidates c
	WHERE c.device_id = v.device AND c.standing = 0 AND c.rollout_id = ? AND c.line = ?)`
)

// following does what it takes that a rollout begins with the devices that changed
// while it was arranged, or ceases to follow and lets those go that await it.
func (t *tx) following(old, r ota.Rollout) error {
	if old.Follows != r.Follows {
		if err := t.refollow(r); err != nil {
			return err
		}
	}
	begins := r.Follows && old.StartedAt.IsZero() && !r.StartedAt.IsZero()
	if !begins && (r.Follows || !old.Follows) {
		return nil
	}
	err := t.rows(func(row row) error {
		var id string
		err := row.Scan(&id)
		t.markAnyway(id)
		return err
	}, selectRelooks, r.ID)
	if err != nil {
		return err
	}
	_, err = t.exec(deleteRelooks, r.ID)
	return err
}

// waitsOlder reports whether there is a rollout that goes on and that r supersedes: it
// may have passed by devices that lose what r had for them, or made way on them.
func (t *tx) waitsOlder(r ota.Rollout) (bool, error) {
	var n int
	err := t.row(countOlder, superseders(r)...).Scan(&n)
	return n > 0, err
}

// refollow announces that a rollout begins or ceases to follow its selector.
func (t *tx) refollow(r ota.Rollout) error {
	if err := fleet.Followable(r); err != nil {
		return err
	}
	return t.regroups()
}

// left adds to over the devices that have left the rollout.
func (t *tx) left(r ota.Rollout, n int, devices Column, over map[string]bool) error {
	return t.lookWith(func(row row) error {
		var id string
		err := row.Scan(&id)
		over[id] = true
		return err
	}, selectLeft, n, []any{r.ID, r.Line}, devices)
}

// followed are the rollouts that follow and that looks are about, held until the
// transaction ends. Whoever else writes one holds it before its executions too.
type followed map[string]*followedRollout

type followedRollout struct {
	ota.Rollout
	turns, devices int
	changed        bool
}

func (t *tx) lockFollowed(looks []fleet.Look) (followed, error) {
	ids := map[string]bool{}
	for _, l := range looks {
		for _, m := range l.Moves {
			ids[m.RolloutID] = true
		}
		for _, c := range l.Changed {
			ids[c.From.RolloutID] = true
		}
	}
	f := followed{}
	for _, id := range slices.Sorted(maps.Keys(ids)) {
		r, err := scanRollout(t.row(selectFollowed+t.forUpdate("rollouts"), id))
		if errors.Is(err, sql.ErrNoRows) {
			continue
		}
		if err != nil {
			return nil, err
		}
		f[id] = &followedRollout{Rollout: r}
	}
	return f, nil
}

// late reports whether a look has a device wait for what has come to pass.
func (f followed) late(l fleet.Look) bool {
	return slices.ContainsFunc(l.Moves, func(m fleet.Moved) bool {
		var r ota.Rollout // one that does not follow
		if held := f[m.RolloutID]; held != nil {
			r = held.Rollout
		}
		return m.Late(r)
	})
}

// overtaken reports whether a look by which a device leaves a rollout that follows
// has been overtaken, see fleet.Look. The rollout's row is held, so no turn is given
// meanwhile.
func (t *tx) overtaken(f followed, l fleet.Look) (bool, error) {
	for _, m := range l.Moves {
		if m.Move != ota.MoveLeave || f[m.RolloutID] == nil {
			continue
		}
		e, err := scanExecution(t.row(selectNewest, m.RolloutID, l.DeviceID))
		switch {
		case errors.Is(err, sql.ErrNoRows):
		case err != nil:
			return false, err
		case l.Overtaken(m, e):
			return true, nil
		}
	}
	return false, nil
}

// touch notes what settled looks did to the rollouts.
func (f followed) touch(l fleet.Look) {
	for _, c := range l.Changed {
		if r := f[c.From.RolloutID]; r != nil {
			r.changed = true
		}
	}
	for _, m := range l.Moves {
		if r := f[m.RolloutID]; r != nil && !r.StartedAt.IsZero() && m.Move != ota.MoveAwait {
			r.changed = true
		}
	}
}

func (t *tx) putFollowed(f followed) error {
	for _, id := range slices.Sorted(maps.Keys(f)) {
		r := f[id]
		if !r.changed {
			continue
		}
		next := ota.Joined(r.Rollout, r.turns, r.devices)
		p, err := planOf(next)
		if err != nil {
			return err
		}
		if _, err := t.exec(updateFollowed, p.stages, next.Population, flag(next.Opening()), id); err != nil {
			return err
		}
	}
	return nil
}

// sameMark reports whether nobody has marked the device anew, or looked at it, and
// keeps it so.
func (t *tx) sameMark(l fleet.Look) (bool, error) {
	var mark int64
	err := t.row(`SELECT mark FROM marks WHERE device_id = ?`+t.forUpdate("marks"), l.DeviceID).Scan(&mark)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return mark == l.Mark, err
}

// move makes a move of a device.
func (t *tx) move(f followed, deviceID string, m fleet.Moved) error {
	r := f[m.RolloutID]
	switch {
	case r == nil:
		return nil
	case r.StartedAt.IsZero() || m.Move == ota.MoveAwait:
		_, err := t.exec(insertRelook, r.ID, deviceID)
		return err
	case m.Move == ota.MoveLeave:
		_, err := t.exec(updatePlace, 0, r.ID, r.Line, deviceID)
		return err
	case m.Move == ota.MoveJoin:
		return t.join(r, deviceID, m.Lane)
	}
	return fmt.Errorf("%w: move %q in the line of rollout %s", fleet.ErrInvalid, m.Move, r.ID)
}

func (t *tx) join(r *followedRollout, deviceID, lane string) error {
	var turn, standing, one int
	err := t.row(selectPlace, r.ID, r.Line, deviceID).Scan(&turn, &standing)
	there := err == nil
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	err = t.row(selectReached, r.ID, deviceID).Scan(&one)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	if reached := err == nil; reached || there && turn >= r.Cursor {
		_, err := t.exec(updatePlace, 1, r.ID, r.Line, deviceID)
		return err
	}
	if there { // its turn has passed: it gets another, and the line no gap
		if _, err := t.exec(updatePlace, nil, r.ID, r.Line, deviceID); err != nil {
			return err
		}
	} else {
		r.devices++
	}
	end := r.Stages[len(r.Stages)-1].Target + r.turns
	r.turns++
	_, err = t.exec(insertPlace, r.ID, r.Line, end, deviceID, lane)
	return err
}

// markAnyway has a device looked at again, whatever stands on it.
func (t *tx) markAnyway(deviceID string) {
	t.mark(deviceID, time.Time{})
	m := t.marked[deviceID]
	m.anyway = true
	t.marked[deviceID] = m
}

// anyMark is a mark that a batch makes.
type anyMark struct {
	reported time.Time // when the device said what it runs; zero: it did not
	anyway   bool      // also where no execution is
}
