package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"slices"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/selector"
)

// fillDevices is how many devices one transaction holds against a new group:
// those who change devices wait for it.
const fillDevices = 1000

// FillGroup implements fleet.GroupStore. The database finds the members of a
// range of devices in one statement; devices in doubt are looked at.
func (s *Store) FillGroup(ctx context.Context, name string) (whole bool, err error) {
	g, err := s.Group(ctx, name)
	if err != nil || !g.Building {
		return err == nil, err
	}
	sel, err := fleet.ParseGroupSelector(g.Selector)
	if err != nil {
		return false, err
	}
	p, err := s.plan(ctx, fleet.DeviceQuery{Selector: sel})
	if err != nil {
		return false, err
	}
	err = s.writer.doAlone(ctx, func(t *tx) error {
		whole, err = t.fillNext(g, p)
		return err
	})
	return whole, err
}

// fillNext holds the next devices against the group. Who changes devices is kept
// out meanwhile: what is found stays so until it is written.
func (t *tx) fillNext(g fleet.Group, p plan) (whole bool, err error) {
	var generation int64
	if err := t.row(`SELECT generation FROM group_generation WHERE one = 1` + t.forUpdate("group_generation")).Scan(&generation); err != nil {
		return false, err
	}
	var expr string
	var filled sql.NullString
	err = t.row(`SELECT selector, filled_to FROM device_groups WHERE name = ?`, g.Name).Scan(&expr, &filled)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return false, notFound("group %s", g.Name)
	case err != nil:
		return false, err
	case !filled.Valid:
		return true, nil
	case expr != g.Selector:
		return false, nil // another one has taken its name
	}
	var last sql.NullString
	err = t.row(`SELECT id FROM devices WHERE id > ? ORDER BY id LIMIT 1 OFFSET ?`, filled.String, fillDevices-1).Scan(&last)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return false, err
	}
	if err := t.fill(g.Name, p.within(filled.String, last)); err != nil {
		return false, err
	}
	if t.filled == nil {
		t.filled = map[string]bool{}
	}
	t.filled[g.Name] = true
	var to any
	if last.Valid {
		to = last.String
	}
	_, err = t.exec(`UPDATE device_groups SET filled_to = ? WHERE name = ?`, to, g.Name)
	return !last.Valid, err
}

// within is the plan for the devices after one, up to another if there is one.
func (p plan) within(after string, last sql.NullString) plan {
	p.parts = slices.Clone(p.parts)
	for i, q := range p.parts {
		p.parts[i].lead = both(Say("("+q.id+" > ?)", after), q.lead)
		if last.Valid {
			p.parts[i].lead = both(Say("("+q.id+" <= ?)", last.String), p.parts[i].lead)
		}
	}
	return p
}

// fill makes members of all devices that the plan means.
func (t *tx) fill(group string, p plan) error {
	for _, q := range p.parts {
		c := Say("INSERT INTO group_members (group_name, device_id) SELECT CAST(? AS TEXT), d.id FROM "+q.from+" WHERE ? AND ? ON CONFLICT DO NOTHING", group, q.lead, q.Lower)
		if _, err := t.exec(c.SQL, c.Args...); err != nil {
			return err
		}
	}
	var more []membership
	for p, after := p.doubtful(), ""; len(p.parts) > 0; {
		c, n := p.page(after, pageRows), 0
		err := t.rows(func(r row) error {
			v, err := scanView(r)
			if n++; err == nil && p.query.Match(v) {
				more = append(more, membership{group, v.ID})
			}
			after = v.ID
			return err
		}, c.SQL, c.Args...)
		if err != nil {
			return err
		}
		if n < pageRows {
			break
		}
	}
	_, err := t.changeMembers(t.exec, addMembers, more)
	return err
}

// wholeGroups reports a group that the selector asks for and that has not all of
// its members yet.
func (s *Store) wholeGroups(ctx context.Context, sel selector.Selector) error {
	building, err := s.names(ctx, `SELECT name FROM device_groups WHERE filled_to IS NOT NULL ORDER BY name`)
	if err != nil {
		return err
	}
	for _, name := range building {
		if fleet.AsksGroup(sel, name) {
			return fleet.BuildingGroup(name)
		}
	}
	return nil
}
