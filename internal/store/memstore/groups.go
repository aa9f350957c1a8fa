package memstore

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/selector"
)

// group is a group; the members of a dynamic one are found when they are asked
// for.
type group struct {
	fleet.Group
	sel     selector.Selector
	members map[string]bool
}

func (s *Store) membersOf(g group) map[string]bool {
	if !g.Dynamic {
		return g.members
	}
	members := map[string]bool{}
	for id := range s.devices {
		if g.sel.Match(fleet.Facts(s.ungrouped(id))) {
			members[id] = true
		}
	}
	return members
}

func (s *Store) groupsOf(id string) (names []string) {
	for _, name := range slices.Sorted(maps.Keys(s.groups)) {
		if s.membersOf(s.groups[name])[id] {
			names = append(names, name)
		}
	}
	return names
}

// CreateGroup implements fleet.GroupStore.
func (s *Store) CreateGroup(ctx context.Context, g fleet.Group, members []string) error {
	sel, err := fleet.ParseGroupSelector(g.Selector)
	if err != nil {
		return err
	}
	return s.locked(ctx, func() error {
		if by := s.askedBy(g.Name); by != "" {
			return fleet.FollowedGroup(g.Name, by)
		}
		dynamic := 0
		for _, other := range s.groups {
			if other.Dynamic {
				dynamic++
			}
		}
		if err := fleet.RoomForGroup(g, len(s.groups), dynamic); err != nil {
			return err
		}
		if _, ok := s.groups[g.Name]; ok {
			return fmt.Errorf("group %s exists: %w", g.Name, fleet.ErrConflict)
		}
		g.CreatedAt, g.Members = stored(g.CreatedAt), 0
		made := group{g, sel, map[string]bool{}}
		if g.Dynamic {
			members = nil
		}
		if err := s.change(made, members, nil); err != nil {
			return err
		}
		s.groups[g.Name] = made
		return nil
	})
}

// change changes the members of a static group, or nothing.
func (s *Store) change(g group, add, remove []string) error {
	for _, id := range add {
		if _, ok := s.devices[id]; !ok {
			return notFound("device %s", id)
		}
	}
	members := maps.Clone(g.members)
	for _, id := range remove {
		delete(members, id)
	}
	for _, id := range add {
		members[id] = true
	}
	if err := fleet.RoomForMembers(g.Name, len(members)); err != nil {
		return err
	}
	clear(g.members)
	maps.Copy(g.members, members)
	return nil
}

// FillGroup implements fleet.GroupStore: members are found when they are asked for.
func (s *Store) FillGroup(ctx context.Context, name string) (whole bool, err error) {
	_, err = s.Group(ctx, name)
	return err == nil, err
}

// DeleteGroup implements fleet.GroupStore.
func (s *Store) DeleteGroup(ctx context.Context, name string) error {
	return s.locked(ctx, func() error {
		if _, ok := s.groups[name]; !ok {
			return notFound("group %s", name)
		}
		if by := s.askedBy(name); by != "" {
			return fleet.FollowedGroup(name, by)
		}
		delete(s.groups, name)
		return nil
	})
}

// Group implements fleet.GroupStore.
func (s *Store) Group(ctx context.Context, name string) (g fleet.Group, err error) {
	err = s.locked(ctx, func() error {
		found, ok := s.groups[name]
		if !ok {
			return notFound("group %s", name)
		}
		g = found.Group
		g.Members = len(s.membersOf(found))
		return nil
	})
	return g, err
}

// Groups implements fleet.GroupStore.
func (s *Store) Groups(ctx context.Context) (list []fleet.Group, err error) {
	err = s.locked(ctx, func() error {
		for _, name := range slices.Sorted(maps.Keys(s.groups)) {
			g := s.groups[name]
			g.Members = len(s.membersOf(g))
			list = append(list, g.Group)
		}
		return nil
	})
	return list, err
}

// GroupMembers implements fleet.GroupStore.
func (s *Store) GroupMembers(ctx context.Context, name, after string, limit int) (ids []string, err error) {
	err = s.locked(ctx, func() error {
		g, ok := s.groups[name]
		if !ok {
			return notFound("group %s", name)
		}
		for _, id := range slices.Sorted(maps.Keys(s.membersOf(g))) {
			if id > after && len(ids) < limit {
				ids = append(ids, id)
			}
		}
		return nil
	})
	return ids, err
}

// ChangeMembers implements fleet.GroupStore.
func (s *Store) ChangeMembers(ctx context.Context, name string, add, remove []string) error {
	return s.locked(ctx, func() error {
		g, ok := s.groups[name]
		switch {
		case !ok:
			return notFound("group %s", name)
		case g.Dynamic:
			return fleet.DynamicMembers(name)
		}
		if err := s.change(g, add, remove); err != nil || s.askedBy(name) == "" {
			return err
		}
		for _, id := range slices.Concat(add, remove) {
			if _, ok := s.devices[id]; ok {
				s.markAnyway(id)
			}
		}
		return nil
	})
}

// DeviceGroups implements fleet.GroupStore.
func (s *Store) DeviceGroups(ctx context.Context, deviceID string) (names []string, err error) {
	err = s.locked(ctx, func() error {
		if _, ok := s.devices[deviceID]; !ok {
			return notFound("device %s", deviceID)
		}
		names = s.groupsOf(deviceID)
		return nil
	})
	return names, err
}
