package fleet_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/otad/otad/internal/fleet"
)

// slowGroups is a store whose dynamic groups take some steps to fill, of which
// the first that is tried fails.
type slowGroups struct {
	fleet.Store
	mu    sync.Mutex
	left  map[string]int
	tries int
}

func (s *slowGroups) Groups(ctx context.Context) ([]fleet.Group, error) {
	all, err := s.Store.Groups(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range all {
		all[i].Building = s.left[all[i].Name] > 0
	}
	return all, err
}

func (s *slowGroups) FillGroup(_ context.Context, name string) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tries++; s.tries == 1 {
		return false, fleet.ErrStale
	}
	s.left[name]--
	return s.left[name] <= 0, nil
}

// seen returns how many tries there were, and how many are left of a group.
func (s *slowGroups) seen(name string) (tries, left int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tries, s.left[name]
}

// TestAGroupWhoseMakerHasGoneIsFilled by the loop that looks for such, also after
// a fault.
func TestAGroupWhoseMakerHasGoneIsFilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		slow := &slowGroups{Store: w.store, left: map[string]int{"left": 3}}
		w.s.Store = slow
		for _, name := range []string{"left", "whole"} {
			w.ok(w.store.CreateGroup(w.ctx, fleet.Group{Name: name, Dynamic: true, CreatedAt: time.Now()}, nil))
		}
		stop := w.background(w.s.RunGroups)
		synctest.Wait()
		if tries, _ := slow.seen("left"); tries != 1 {
			t.Fatalf("%d tries at the start", tries)
		}
		time.Sleep(fleet.GroupPoll)
		synctest.Wait()
		if tries, left := slow.seen("left"); left != 0 || tries != 4 {
			t.Fatalf("%d left after %d tries", left, tries)
		}
		time.Sleep(3 * fleet.GroupPoll)
		stop()
		if tries, _ := slow.seen("left"); tries != 4 {
			t.Fatalf("a group that is whole was filled: %d tries", tries)
		}
	})
}

func TestGroupsAskForWhatIsFollowed(t *testing.T) {
	for expr, words := range map[string]string{
		`groups:"other"`:                      "can not ask for groups",
		`hardware = "rpi4" AND online = true`: "can not ask who is online",
		`NOT lastSeen:*`:                      "can not ask when a device was seen: that is not followed; ask where the group is used",
	} {
		if _, err := fleet.ParseGroupSelector(expr); !errors.Is(err, fleet.ErrInvalid) || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v, want %q", expr, err, words)
		}
	}
}
