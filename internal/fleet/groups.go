package fleet

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/selector"
)

// Limits of groups.
const (
	MaxGroups = 1000
	// MaxDynamicGroups bounds what one change of a device can cost.
	MaxDynamicGroups = 200
	// MaxGroupMembers is for static groups; a dynamic one has no bound.
	MaxGroupMembers = 100_000
	// MaxMemberChanges is how many devices one call adds and removes.
	MaxMemberChanges = 10_000
)

// Group is a named set of devices. Of a dynamic one the members are at every
// moment those that its selector means.
type Group struct {
	Name      string
	Dynamic   bool
	Selector  string // of a dynamic group
	CreatedAt time.Time
	Members   int // not set by who creates one
}

// GroupStore keeps groups. The members of a dynamic group change in the
// transaction that changes a device.
type GroupStore interface {
	// CreateGroup stores the group with the members, none for a dynamic one, whose
	// members are found by its selector. ErrConflict: the name is taken, or there
	// are MaxGroups, or MaxDynamicGroups. ErrNotFound: a member is no device.
	CreateGroup(ctx context.Context, g Group, members []string) error
	DeleteGroup(ctx context.Context, name string) error
	Group(ctx context.Context, name string) (Group, error)
	Groups(ctx context.Context) ([]Group, error) // by name
	// GroupMembers returns up to limit ids after the given one, in order.
	GroupMembers(ctx context.Context, name, after string, limit int) ([]string, error)
	// ChangeMembers adds and removes members of a static group; who is one already,
	// or is none, stays so. ErrConflict: the group is dynamic, or would have more
	// than MaxGroupMembers. ErrNotFound: no such group, or one to add is no device.
	ChangeMembers(ctx context.Context, name string, add, remove []string) error
	// DeviceGroups returns the names of the groups that a device is in, in order.
	DeviceGroups(ctx context.Context, deviceID string) ([]string, error)
}

// ParseGroupSelector reads the selector of a dynamic group, which may not ask
// for groups: they would depend on each other.
func ParseGroupSelector(expr string) (selector.Selector, error) {
	sel, err := selector.Parse(expr)
	if err != nil {
		return sel, err
	}
	if slices.ContainsFunc(sel.Fields(), func(f selector.Field) bool { return f.Source == selector.Groups }) {
		return sel, fmt.Errorf("%w: the selector of a group can not ask for groups: repeat what the other group asks for", ErrInvalid)
	}
	return sel, nil
}

// CreateGroup makes a static group of the members, or a dynamic one.
func (s *Service) CreateGroup(ctx context.Context, g Group, members []string) (Group, error) {
	if err := ota.ValidateWord("group", g.Name); err != nil {
		return Group{}, err
	}
	if g.Dynamic {
		if len(members) > 0 {
			return Group{}, fmt.Errorf("%w: group %s has a selector and members: a dynamic group finds its members by itself", ErrInvalid, g.Name)
		}
		sel, err := ParseGroupSelector(g.Selector)
		if err != nil {
			return Group{}, err
		}
		g.Selector = sel.String()
	}
	if err := memberChanges(members, nil); err != nil {
		return Group{}, err
	}
	g.CreatedAt = s.Now()
	if err := s.Store.CreateGroup(ctx, g, members); err != nil {
		return Group{}, err
	}
	s.Log.Info("group created", "group", g.Name, "dynamic", g.Dynamic)
	return s.Store.Group(ctx, g.Name)
}

// ChangeMembers adds and removes members of a static group.
func (s *Service) ChangeMembers(ctx context.Context, name string, add, remove []string) (Group, error) {
	if err := memberChanges(add, remove); err != nil {
		return Group{}, err
	}
	if err := s.Store.ChangeMembers(ctx, name, add, remove); err != nil {
		return Group{}, err
	}
	return s.Store.Group(ctx, name)
}

func memberChanges(add, remove []string) error {
	if n := len(add) + len(remove); n > MaxMemberChanges {
		return fmt.Errorf("%w: %d devices in one call, at most %d: do it in parts", ErrInvalid, n, MaxMemberChanges)
	}
	for _, id := range slices.Concat(add, remove) {
		if err := ota.ValidateDeviceID(id); err != nil {
			return err
		}
	}
	return nil
}

// RoomForGroup reports why another group can not be made beside all that there
// are. It is one of the rules of CreateGroup.
func RoomForGroup(g Group, all, dynamic int) error {
	switch {
	case all >= MaxGroups:
		return fmt.Errorf("%w: there are %d groups, at most %d: delete some, or use a tag", ErrConflict, all, MaxGroups)
	case g.Dynamic && dynamic >= MaxDynamicGroups:
		return fmt.Errorf("%w: there are %d dynamic groups, at most %d: delete some, or select by a tag", ErrConflict, dynamic, MaxDynamicGroups)
	}
	return nil
}

// RoomForMembers reports that a static group would have too many members.
func RoomForMembers(name string, members int) error {
	if members > MaxGroupMembers {
		return fmt.Errorf("%w: group %s would have %d members, at most %d: make it dynamic, by a tag", ErrConflict, name, members, MaxGroupMembers)
	}
	return nil
}

// DynamicMembers is why the members of a dynamic group can not be changed.
func DynamicMembers(name string) error {
	return fmt.Errorf("%w: group %s is dynamic: its members are those that its selector means", ErrConflict, name)
}
