package postgres_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/store/sqlstore"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/shadow"
)

const (
	replicas       = 3
	replicaDevices = 4
	replicaWorkers = 8 // in each replica
)

// TestReplicasShareOneDatabase lets replicas do the same things to the same few
// devices at once, and wants every effect exactly once.
func TestReplicasShareOneDatabase(t *testing.T) {
	url := server.Schema(t)
	var stores []*sqlstore.Store
	for range replicas {
		stores = append(stores, open(t, url))
	}
	r := &race{T: t, stores: stores}
	t.Run("a token is used as often as it may be", r.enroll)
	t.Run("every update has a version of its own", r.update)
	t.Run("new shadows are made once", r.create)
	t.Run("a device works on one thing at a time", r.start)
	t.Run("devices take their turn beside the steps", r.take)
	t.Run("of two rollouts the newer has the device", r.giveWay)
	t.Run("of those who advance, one wins", r.advance)
	t.Run("metadata has one line of versions", r.publish)
	t.Run("a group is kept up by all", r.group)
	t.Run("a continuous rollout is joined and left in all", r.follow)
	t.Run("devices are deleted under those who write of them", r.forget)
	for _, s := range stores {
		broken, err := s.Check(t.Context())
		if err != nil || len(broken) > 0 {
			t.Errorf("%v %v", err, broken)
		}
	}
}

type race struct {
	*testing.T
	stores []*sqlstore.Store
}

// all runs f in every worker of every replica and returns the errors.
func (r *race) all(f func(s *sqlstore.Store, worker int) error) []error {
	var wait sync.WaitGroup
	errs := make([]error, replicas*replicaWorkers)
	for i := range errs {
		wait.Go(func() { errs[i] = f(r.stores[i%replicas], i) })
	}
	wait.Wait()
	return errs
}

// forget deletes devices and makes them again while all write what is theirs: each gets
// what it asked for, or hears that there is no such device.
func (r *race) forget(t *testing.T) {
	ctx := t.Context()
	errs := r.all(func(s *sqlstore.Store, i int) error {
		for n := range 20 {
			id := fmt.Sprint("gone-", n%2)
			var err error
			switch {
			case i%4 == 0:
				err = s.CreateDevice(ctx, fleet.Device{ID: id, Tags: map[string]string{"k": "1"}, CreatedAt: time.Now()})
				if errors.Is(err, fleet.ErrConflict) {
					err = s.DeleteDevice(ctx, fleet.Deletion{DeviceID: id, Force: true}, time.Now())
				}
			case i%4 == 1:
				err = s.ChangeTags(ctx, id, map[string]string{"k": fmt.Sprint(n % 3)}, nil)
			default:
				_, err = s.UpdateShadow(ctx, id, []string{"", "named"}[n/2%2], shadow.NewUpdate(nil, map[string]any{"member": n}), time.Now())
			}
			if err != nil && !errors.Is(err, fleet.ErrNotFound) {
				return fmt.Errorf("worker %d, %d: %w", i, n, err)
			}
		}
		return nil
	})
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
}

// group makes and deletes groups in every replica while all of them write
// shadows; Check then holds the members against the selectors.
func (r *race) group(t *testing.T) {
	ctx := t.Context()
	errs := r.all(func(s *sqlstore.Store, i int) error {
		for n := range 20 {
			switch {
			case n%7 == i%7:
				name := fmt.Sprintf("g%d-%d", i, n)
				g := fleet.Group{Name: name, Dynamic: true, Selector: fmt.Sprintf("shadow.reported.member > %d OR tags.k = %q", n, fmt.Sprint(n%3)), CreatedAt: time.Now()}
				if err := errors.Join(s.CreateGroup(ctx, g, nil), fleet.FillGroup(ctx, s, name)); err != nil {
					return err
				}
				if i%3 == 0 {
					if err := s.DeleteGroup(ctx, name); err != nil {
						return err
					}
				}
			default:
				if n%3 == 0 {
					if err := s.ChangeTags(ctx, device(i+n), map[string]string{"k": fmt.Sprint(rand.IntN(3))}, nil); err != nil {
						return err
					}
				}
				u := shadow.NewUpdate(nil, map[string]any{"member": rand.IntN(20)})
				if _, err := s.UpdateShadow(ctx, device(i+n), "", u, time.Now()); err != nil {
					return err
				}
			}
		}
		return nil
	})
	must(t, errors.Join(errs...))
	groups, err := r.stores[0].Groups(ctx)
	must(t, err)
	if len(groups) < replicas {
		t.Fatalf("%d groups are left", len(groups))
	}
}

func device(i int) string { return fmt.Sprintf("d%d", i%replicaDevices) }

func (r *race) enroll(t *testing.T) {
	ctx := t.Context()
	must(t, r.stores[0].CreateEnrollmentToken(ctx, fleet.EnrollmentToken{ID: "t", Uses: replicaDevices + 3}))
	must(t, errors.Join(r.all(func(s *sqlstore.Store, i int) error {
		_, err := s.Enroll(ctx, fleet.Device{ID: device(i), KeyFingerprint: device(i)}, [32]byte{}, time.Now())
		return err
	})...))
	errs := r.all(func(s *sqlstore.Store, i int) error {
		_, err := s.Enroll(ctx, fleet.Device{ID: fmt.Sprint("more", i)}, [32]byte{}, time.Now())
		return err
	})
	more := 0
	for _, err := range errs {
		if err == nil {
			more++
		} else if !errors.Is(err, fleet.ErrDenied) {
			t.Error(err)
		}
	}
	tokens, err := r.stores[1].EnrollmentTokens(ctx)
	must(t, err)
	if more != 3 || tokens[0].Uses != 0 {
		t.Errorf("%d more devices than the token was for, %d uses left", more-3, tokens[0].Uses)
	}
}

func (r *race) update(t *testing.T) {
	const each = 40
	var mu sync.Mutex
	versions := map[string][]int64{}
	errs := r.all(func(s *sqlstore.Store, i int) error {
		for n := range each {
			id := device(rand.IntN(replicaDevices))
			key := fmt.Sprintf("w%d-%d", i, n)
			res, err := s.UpdateShadow(context.Background(), id, "", shadow.NewUpdate(nil, map[string]any{key: true}), time.Now())
			if err != nil {
				return err
			}
			mu.Lock()
			versions[id] = append(versions[id], res.Document.Version)
			mu.Unlock()
		}
		return nil
	})
	must(t, errors.Join(errs...))
	total := 0
	for id, list := range versions {
		slices.Sort(list)
		for i, v := range list {
			if v != int64(i+1) {
				t.Fatalf("versions of %s: %v", id, list)
			}
		}
		doc, err := r.stores[0].Shadow(t.Context(), id, "")
		must(t, err)
		if len(doc.Reported) != len(list) || doc.Version != int64(len(list)) {
			t.Errorf("%s holds %d of %d updates at version %d", id, len(doc.Reported), len(list), doc.Version)
		}
		total += len(list)
	}
	if total != replicas*replicaWorkers*each {
		t.Errorf("%d updates", total)
	}
}

// create races for the first version, where there is no row to lock.
func (r *race) create(t *testing.T) {
	const names = 20
	must(t, errors.Join(r.all(func(s *sqlstore.Store, i int) error {
		for n := range names {
			u := shadow.NewUpdate(map[string]any{fmt.Sprint("w", i): true}, nil)
			if _, err := s.UpdateShadow(context.Background(), device(n), fmt.Sprint("n", n), u, time.Now()); err != nil {
				return err
			}
		}
		return nil
	})...))
	for n := range names {
		doc, err := r.stores[0].Shadow(t.Context(), device(n), fmt.Sprint("n", n))
		must(t, err)
		if want := replicas * replicaWorkers; len(doc.Desired) != want || doc.Version != int64(want) {
			t.Errorf("shadow n%d holds %d of %d updates at version %d", n, len(doc.Desired), want, doc.Version)
		}
	}
}

func replicaRollout(id string) ota.Rollout {
	return ota.Rollout{
		ID: id, Release: ota.ReleaseID{Name: "app", Version: "1"}, State: ota.RolloutRunning, CreatedAt: time.Now(),
		Stages: []ota.Stage{{Size: ota.Size{Percent: 100}, State: ota.StageOpen, Target: replicaDevices}},
	}
}

// start has rollouts compete for devices while one of them is cancelled.
func (r *race) start(t *testing.T) {
	ctx := context.Background()
	_, err := r.stores[0].CreateRelease(ctx, ota.Release{Manifest: ota.Manifest{Name: "app", Version: "1"}, CreatedAt: time.Now()})
	must(t, err)
	const count = 12
	for n := range count {
		step := fleet.Advance{Rollout: replicaRollout(fmt.Sprintf("r%02d", n)), Now: time.Now()}
		must(t, r.stores[0].CreateRollout(ctx, step.Rollout))
		for d := range replicaDevices {
			step.Insert = append(step.Insert, ota.Execution{DeviceID: device(d), Attempt: 1, Status: ota.Queued})
		}
		must(t, r.stores[0].Advance(ctx, step))
	}
	finished := make([]int, replicas*replicaWorkers)
	must(t, errors.Join(r.all(func(s *sqlstore.Store, i int) error {
		if i < count/3 { // these take a rollout away
			return cancel(ctx, s, fmt.Sprintf("r%02d", i))
		}
		n, err := workOff(ctx, s, device(i))
		finished[i] = n
		return err
	})...))
	total := 0
	for _, n := range finished {
		total += n
	}
	done, cancelled := 0, 0
	must(t, r.stores[0].Executions(ctx, fleet.ExecutionFilter{}, func(e ota.Execution) bool {
		switch {
		case e.Status == ota.Succeeded && e.Version == 3:
			done++
		case e.Status == ota.Canceled && e.Version == 2 && e.StartedAt.IsZero():
			cancelled++
		default:
			t.Errorf("%+v", e)
		}
		return true
	}))
	if done != total || done+cancelled != count*replicaDevices {
		t.Errorf("%d finished, %d said so, %d cancelled", done, total, cancelled)
	}
}

// workOff does what is queued for the device until nothing is, beside others
// who do the same, and returns how many it finished itself.
func workOff(ctx context.Context, s *sqlstore.Store, device string) (n int, err error) {
	for {
		e, err := s.StartNext(ctx, device, ota.Starting{}, time.Now())
		if errors.Is(err, fleet.ErrNotFound) {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		_, err = s.Report(ctx, ota.Report{RolloutID: e.RolloutID, DeviceID: device, Status: ota.Succeeded, ExpectedVersion: e.Version}, time.Now())
		switch {
		case err == nil:
			n++
		case !errors.Is(err, ota.ErrTerminal) && !errors.Is(err, ota.ErrVersionMismatch):
			return n, err
		}
	}
}

func cancel(ctx context.Context, s *sqlstore.Store, id string) error {
	r, err := s.Rollout(ctx, id)
	if err != nil {
		return err
	}
	r.State, r.Reason = ota.RolloutAborting, "enough"
	if err := s.Advance(ctx, fleet.Advance{Rollout: r, Now: time.Now()}); err != nil {
		return err
	}
	_, err = s.Cancel(ctx, r, time.Now(), 99)
	return err
}

func (r *race) advance(t *testing.T) {
	ctx := t.Context()
	o := replicaRollout("x")
	must(t, r.stores[0].CreateRollout(ctx, o))
	const steps = 10
	for step := range steps {
		o, err := r.stores[0].Rollout(ctx, "x")
		must(t, err)
		wins := 0
		for _, err := range r.all(func(s *sqlstore.Store, i int) error {
			o := o
			o.Reason = fmt.Sprint("worker ", i)
			return s.Advance(ctx, fleet.Advance{Rollout: o, Now: time.Now(), Insert: []ota.Execution{{DeviceID: device(i), Attempt: 1, Status: ota.Queued}}})
		}) {
			if err == nil {
				wins++
			} else if !errors.Is(err, fleet.ErrStale) {
				t.Error(err)
			}
		}
		if wins != 1 {
			t.Errorf("step %d: %d wins", step, wins)
		}
	}
}

func (r *race) publish(t *testing.T) {
	const rounds = 5
	for version := int64(1); version <= rounds; version++ {
		wins := 0
		for _, err := range r.all(func(s *sqlstore.Store, i int) error {
			content := []byte(fmt.Sprint("of ", i))
			return s.PublishMetadata(t.Context(), []fleet.Metadata{
				{Role: fleet.RoleTargets, Version: version, Bytes: content}, {Role: fleet.RoleSnapshot, Version: version, Bytes: content},
			}, nil, time.Now())
		}) {
			if err == nil {
				wins++
			} else if !errors.Is(err, fleet.ErrStale) {
				t.Error(err)
			}
		}
		targets, err := r.stores[0].Metadata(t.Context(), fleet.RoleTargets, version)
		must(t, err)
		snapshot, err := r.stores[0].Metadata(t.Context(), fleet.RoleSnapshot, version)
		must(t, err)
		if wins != 1 || string(targets.Bytes) != string(snapshot.Bytes) || !strings.HasPrefix(string(targets.Bytes), "of ") {
			t.Errorf("version %d: %d wins, %q %q", version, wins, targets.Bytes, snapshot.Bytes)
		}
	}
}
