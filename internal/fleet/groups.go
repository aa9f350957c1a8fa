package fleet

import (
	"context"
	"errors"
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
	// Building is set while the first members of a dynamic group are being found:
	// it has not all of them yet. Not set by who creates one.
	Building bool
}

// GroupStore keeps groups. The members of a dynamic group change in the
// transaction that changes a device.
type GroupStore interface {
	// CreateGroup stores the group with the members, none for a dynamic one, which
	// may be Building until FillGroup says that it is whole. From here on whoever
	// changes a device keeps the group up. ErrConflict: the name is taken, or there
	// are MaxGroups, or MaxDynamicGroups, or a rollout that Follows asks for a group
	// of this name, which was there before. ErrNotFound: a member is no device.
	CreateGroup(ctx context.Context, g Group, members []string) error
	// FillGroup finds the members of a group among the next few thousand devices
	// that it was not held against yet, in a transaction that others need not wait
	// long for, and reports whether that was the last of them. It may be called for
	// any group, at any time and by several at once.
	FillGroup(ctx context.Context, name string) (whole bool, err error)
	// DeleteGroup fails with ErrConflict while a rollout that Follows asks for it.
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
	if sel.Asks(selector.Groups) {
		return sel, fmt.Errorf("%w: the selector of a group can not ask for groups: repeat what the other group asks for", ErrInvalid)
	}
	if sel.Asks(selector.Online) {
		return sel, fmt.Errorf("%w: the selector of a group can not ask who is online: that is not followed; ask where the group is used, as in groups:\"NAME\" AND online = true", ErrInvalid)
	}
	if sel.Asks(selector.LastSeen) {
		return sel, fmt.Errorf("%w: the selector of a group can not ask when a device was seen: that is not followed; ask where the group is used, as in groups:\"NAME\" AND lastSeen < \"2026-11-01T00:00:00Z\"", ErrInvalid)
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
	if err := FillGroup(ctx, s.Store, g.Name); err != nil {
		return Group{}, fmt.Errorf("group %s was made and is filled in the background: %w", g.Name, err)
	}
	s.Log.Info("group created", "group", g.Name, "dynamic", g.Dynamic)
	return s.Store.Group(ctx, g.Name)
}

// FillGroup goes on until the group is whole.
func FillGroup(ctx context.Context, s GroupStore, name string) error {
	for {
		if whole, err := s.FillGroup(ctx, name); whole || err != nil {
			return err
		}
	}
}

// GroupPoll is how often an otad looks for groups whose maker has gone before
// they were whole.
const GroupPoll = time.Minute

// RunGroups fills such groups until ctx ends.
func (s *Service) RunGroups(ctx context.Context) error {
	tick := time.NewTicker(GroupPoll)
	defer tick.Stop()
	for {
		if err := s.fillGroups(ctx); err != nil && ctx.Err() == nil {
			s.Log.Warn("a group is not filled yet, trying again in a minute", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (s *Service) fillGroups(ctx context.Context) error {
	all, err := s.Store.Groups(ctx)
	if err != nil {
		return err
	}
	for _, g := range all {
		if !g.Building {
			continue
		}
		if err := FillGroup(ctx, s.Store, g.Name); err != nil && !errors.Is(err, ErrNotFound) {
			return fmt.Errorf("group %s: %w", g.Name, err)
		}
	}
	return nil
}

// BuildingGroup is why a group can not be asked for yet.
func BuildingGroup(name string) error {
	return fmt.Errorf("%w: group %s is still being filled: try again when 'otactl group show %[2]s' no longer says so", ErrConflict, name)
}

// ChangeMembers adds and removes members of a static group.
func (s *Service) ChangeMembers(ctx context.Context, name string, add, remove []string) (Group, error) {
	if err := memberChanges(add, remove); err != nil {
		return Group{}, err
	}
	if err := s.Store.ChangeMembers(ctx, name, add, remove); err != nil {
		return Group{}, err
	}
	s.Look()
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
	return fmt.Errorf("%w: group %s is dynamic: its members are those that its selector means: change the devices, such as their tags, or make a static group", ErrConflict, name)
}
