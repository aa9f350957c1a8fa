package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"github.com/otad/otad/internal/fleet"
)

const selectGroup = `SELECT g.name, g.dynamic, g.selector, g.created_at, CASE WHEN g.filled_to IS NULL THEN 0 ELSE 1 END,
	(SELECT COUNT(*) FROM group_members m WHERE m.group_name = g.name) FROM device_groups g`

func scanGroup(r row) (fleet.Group, error) {
	var g fleet.Group
	err := r.Scan(&g.Name, &g.Dynamic, &g.Selector, timeInto{&g.CreatedAt}, &g.Building, &g.Members)
	return g, err
}

// CreateGroup implements fleet.GroupStore.
func (s *Store) CreateGroup(ctx context.Context, g fleet.Group, members []string) error {
	var filled any
	if g.Dynamic {
		if _, err := fleet.ParseGroupSelector(g.Selector); err != nil {
			return err
		}
		filled, members = "", nil
	}
	return s.writer.doAlone(ctx, func(t *tx) error {
		if err := t.mayChange(g); err != nil {
			return err
		}
		if err := t.roomForGroup(g); err != nil {
			return err
		}
		n, err := t.exec(`INSERT INTO device_groups (name, dynamic, selector, created_at, filled_to) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
			g.Name, truth(g.Dynamic), g.Selector, micros(g.CreatedAt), filled)
		if err == nil && n == 0 {
			return fmt.Errorf("group %s exists: %w", g.Name, fleet.ErrConflict)
		}
		if err != nil {
			return err
		}
		if g.Dynamic {
			return nil
		}
		return t.addMembers(g.Name, members)
	})
}

func truth(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

func (t *tx) roomForGroup(g fleet.Group) error {
	var all, dynamic int
	if err := t.row(`SELECT COUNT(*), COALESCE(SUM(dynamic), 0) FROM device_groups`).Scan(&all, &dynamic); err != nil {
		return err
	}
	return fleet.RoomForGroup(g, all, dynamic)
}

func (t *tx) addMembers(group string, ids []string) error {
	members := list(ids, func(id string) membership { return membership{group, id} })
	_, err := t.changeMembers(t.exec, addMembers, members)
	if errors.Is(err, errForeignKey) {
		return t.firstUnknown(ids)
	}
	if err != nil {
		return err
	}
	var n int
	if err := t.row(`SELECT COUNT(*) FROM group_members WHERE group_name = ?`, group).Scan(&n); err != nil {
		return err
	}
	return fleet.RoomForMembers(group, n)
}

// firstUnknown names the device that a group can not have. The statement that
// failed left PostgreSQL unable to look for it, so without a look all are named.
func (t *tx) firstUnknown(ids []string) error {
	if len(ids) == 1 {
		return notFound("device %s", ids[0])
	}
	return notFound("one of the devices %s to %s", ids[0], ids[len(ids)-1])
}

// DeleteGroup implements fleet.GroupStore.
func (s *Store) DeleteGroup(ctx context.Context, name string) error {
	return s.writer.doAlone(ctx, func(t *tx) error {
		g, err := t.group(name)
		if err != nil {
			return err
		}
		if err := t.mayChange(g); err != nil {
			return err
		}
		n, err := t.exec(`DELETE FROM device_groups WHERE name = ?`, name)
		if err == nil && n == 0 {
			return notFound("group %s", name)
		}
		return err
	})
}

func (t *tx) group(name string) (fleet.Group, error) {
	g, err := scanGroup(t.row(selectGroup+` WHERE g.name = ?`, name))
	if errors.Is(err, sql.ErrNoRows) {
		return g, notFound("group %s", name)
	}
	return g, err
}

// Group implements fleet.GroupStore.
func (s *Store) Group(ctx context.Context, name string) (fleet.Group, error) {
	g, err := scanGroup(s.row(ctx, selectGroup+` WHERE g.name = ?`, name))
	if errors.Is(err, sql.ErrNoRows) {
		return fleet.Group{}, notFound("group %s", name)
	}
	return g, err
}

// Groups implements fleet.GroupStore.
func (s *Store) Groups(ctx context.Context) ([]fleet.Group, error) {
	var list []fleet.Group
	err := s.rows(ctx, func(r row) error {
		g, err := scanGroup(r)
		list = append(list, g)
		return err
	}, selectGroup+` ORDER BY g.name`)
	if err != nil {
		return nil, fmt.Errorf("read groups: %w", err)
	}
	return list, nil
}

// GroupMembers implements fleet.GroupStore.
func (s *Store) GroupMembers(ctx context.Context, name, after string, limit int) ([]string, error) {
	ids, err := s.names(ctx, `SELECT device_id FROM group_members WHERE group_name = ? AND device_id > ? ORDER BY device_id LIMIT ?`, name, after, limit)
	if err != nil {
		return nil, fmt.Errorf("members of group %s: %w", name, err)
	}
	if len(ids) == 0 {
		if _, err := s.Group(ctx, name); err != nil {
			return nil, err
		}
	}
	return ids, nil
}

// DeviceGroups implements fleet.GroupStore.
func (s *Store) DeviceGroups(ctx context.Context, deviceID string) ([]string, error) {
	groups, err := s.names(ctx, `SELECT group_name FROM group_members WHERE device_id = ? ORDER BY group_name`, deviceID)
	if err == nil && len(groups) == 0 {
		_, err = s.Device(ctx, deviceID)
	}
	return groups, err
}

func (s *Store) names(ctx context.Context, query string, args ...any) (names []string, err error) {
	err = s.rows(ctx, func(r row) error {
		var name string
		err := r.Scan(&name)
		names = append(names, name)
		return err
	}, query, args...)
	return names, err
}

// ChangeMembers implements fleet.GroupStore.
func (s *Store) ChangeMembers(ctx context.Context, name string, add, remove []string) error {
	return s.writer.do(ctx, func(t *tx) error {
		g, err := t.group(name)
		if err != nil {
			return err
		}
		if g.Dynamic {
			return fleet.DynamicMembers(name)
		}
		gone := list(remove, func(id string) membership { return membership{name, id} })
		if _, err := t.changeMembers(t.exec, removeMembers, gone); err != nil {
			return err
		}
		t.remembered = append(t.remembered, memberChange{name, slices.Concat(add, remove)})
		return t.addMembers(name, add)
	})
}

// memberChange is who was named when members of a static group changed.
type memberChange struct {
	group   string
	devices []string
}

// flushMembers marks them if a continuous rollout asks for the group. It is done at
// the end of a batch, as whatever else holds on to the dynamic groups: who changes
// these would have to wait for others that wait for it.
func (t *tx) flushMembers() error {
	for _, c := range t.remembered {
		by, err := t.askedBy(c.group)
		if err != nil {
			return err
		}
		if by == "" {
			continue
		}
		for _, id := range c.devices {
			t.markAnyway(id)
		}
	}
	return nil
}

// mayChange announces that the group comes or goes. It fails if a continuous rollout
// asks for it.
func (t *tx) mayChange(g fleet.Group) error {
	if g.Dynamic {
		if err := t.regroups(); err != nil {
			return err
		}
	}
	by, err := t.askedBy(g.Name)
	if err == nil && by != "" {
		err = fleet.FollowedGroup(g.Name, by)
	}
	if g.Dynamic {
		t.groups = nil // it is read without the change
	}
	return err
}

// askedBy returns a continuous rollout that asks for the group, if there is one, and
// keeps it so until the transaction ends.
func (t *tx) askedBy(group string) (rollout string, err error) {
	set, err := t.dynamicGroups()
	if err != nil {
		return "", err
	}
	for _, i := range set.grouped {
		if g := set.list[i]; fleet.AsksGroup(g.sel, group) {
			return g.name, nil
		}
	}
	return "", nil
}
