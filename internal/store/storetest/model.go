package storetest

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/store/memstore"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/shadow"
)

// testModel does random things to the store and to memstore and wants equal
// answers, equal contents and no broken invariant. In some walks things are done
// together, see batch.
func testModel(t *testing.T, open func(t testing.TB) fleet.Store) {
	rapid.Check(t, func(rt *rapid.T) {
		s, m := open(t), memstore.New()
		defer func() { _ = s.Close() }()
		w := &walk{T: rt, stores: [2]fleet.Store{m, s}, now: epoch}
		w.same("token", func(s fleet.Store) (any, error) {
			return nil, s.CreateEnrollmentToken(ctx, fleet.EnrollmentToken{ID: "t", SecretHash: secret(1), Uses: 5, CreatedAt: epoch})
		})
		w.begin(rt)
		actions := w.actions()
		if _, ok := s.(gatherer); ok && rapid.IntRange(0, 7).Draw(rt, "together") == 7 {
			actions = map[string]func(*rapid.T){"batch": w.batch}
		}
		rt.Repeat(actions)
		if d := w.difference(); d != "" {
			rt.Fatal(d)
		}
		first, _ := standing(w.stores[0])
		if second, _ := standing(s); !maps.Equal(first, second) {
			rt.Fatalf("marks:\nmemstore: %s\nstore:    %s", first, second)
		}
		for _, s := range w.stores {
			if broken, err := s.Check(ctx); err != nil || len(broken) > 0 {
				rt.Fatalf("%T: broken invariants: %v %s", s, err, strings.Join(broken, "\n"))
			}
		}
	})
}

// actions are what a walk does, each as often as it is named.
func (w *walk) actions() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"enroll": w.enroll, "provision": w.provision, "certificate": w.certificate, "events": w.happen, "tag": w.tag, "revoke": w.revoke, "forget": w.forget, "seen": w.seen,
		"create": w.create, "connection": w.connection, "connections end": w.connectionsEnd, "credential": w.credential, "drop credential": w.dropCredential,
		"update": w.update, "update again": w.update, "delete": w.delete,
		"release": w.release, "publish": w.publish, "withdraw": w.withdraw, "rollout": w.rollout,
		"line": w.line, "advance": w.advance, "advance again": w.advance, "retry": w.retry, "go on": w.goOn, "go on again": w.goOn, "go on once more": w.goOn, "cancel": w.cancel,
		"group": w.group, "members": w.changeMembers, "ungroup": w.ungroup,
		"upload": w.upload, "start": w.start, "expire": w.expire, "report": w.report, "report again": w.report,
		"turn": w.turn, "turn again": w.turn, "runs": w.runs, "settle": w.settle, "settle again": w.settle, "follow": w.follow, "follow again": w.follow,
	}
}

// begin has most walks begin where rollouts have come to devices, some of which are on
// their way.
func (w *walk) begin(t *rapid.T) {
	if rapid.IntRange(0, 2).Draw(t, "from nothing") == 0 {
		return
	}
	for _, id := range []string{"a", "b", "c", "d"} {
		w.same("create", func(s fleet.Store) (any, error) {
			return nil, s.CreateDevice(ctx, fleet.Device{ID: id, Hardware: "h", Tags: map[string]string{"k": "x"}, CreatedAt: epoch})
		})
	}
	for _, v := range []string{"1", "2", "3"} {
		w.releaseOf(t, v)
	}
	r := newRollout("r", 6)
	r.Release.Version, r.Terms.Retry.Attempts = versions.Draw(t, "version"), 3
	w.same("rollout", func(s fleet.Store) (any, error) { return nil, s.CreateRollout(ctx, r) })
	for range 3 {
		w.follow(t)
	}
	a := fleet.Advance{Rollout: r, Now: w.time(t)}
	for _, e := range queued(0, 1, "a", "b", "c", "d") {
		e.Via = via(t)
		a.Insert = append(a.Insert, e)
	}
	w.same("advance", func(s fleet.Store) (any, error) { return nil, s.Advance(ctx, a) })
	for _, id := range []string{"r", "r", "r", "f"} {
		report := ota.Report{
			RolloutID: id, DeviceID: rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "device"),
			Status: rapid.SampledFrom([]ota.Status{ota.Succeeded, ota.Failed, ota.Rejected}).Draw(t, "status"),
		}
		now := w.time(t)
		w.same("report", func(s fleet.Store) (any, error) { return s.Report(ctx, report, now) })
	}
}

// walk is one random walk of memstore and of the store.
type walk struct {
	*rapid.T
	stores    [2]fleet.Store
	now       time.Time
	past      []deed // all that was done, in an order that memstore did it in
	gathering bool   // what is to be done is left in gathered
	gathered  []call
}

var (
	devices      = rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f"})
	rollouts     = rapid.SampledFrom([]string{"q", "r", "s"})
	versions     = rapid.SampledFrom([]string{"1", "2", "3"})
	statuses     = rapid.SampledFrom(ota.Statuses)
	stepTimeouts = rapid.SampledFrom([]time.Duration{0, 0, 0, time.Minute, time.Hour, ota.NoStepTimeout, time.Second})
	digests      = rapid.SampledFrom([]string{"", strings.Repeat("ab", 32), strings.Repeat("cd", 32)})
	someTimes    = rapid.IntRange(-2, 5)
)

// same does one thing to both stores and compares what they say.
func (w *walk) same(what string, f func(fleet.Store) (any, error)) {
	w.do(what, func(s fleet.Store) func() (any, error) {
		return func() (any, error) { return f(s) }
	})
}

// do is same for a thing that is prepared before anything else that is done together
// with it.
func (w *walk) do(what string, prepare func(fleet.Store) func() (any, error)) {
	w.gathered = append(w.gathered, call{what, prepare})
	if w.gathering {
		return
	}
	calls := w.gathered
	w.gathered = nil
	first, second := runAs(w.stores[0], calls, nil), runAs(w.stores[1], calls, nil)
	if first[0] != second[0] {
		w.Fatalf("%s:\nmemstore: %s\nstore:    %s", what, first[0], second[0])
	}
	w.past = append(w.past, deed{calls: calls})
}

// alone has f do things now, though others are being gathered.
func (w *walk) alone(f func()) {
	was, left := w.gathering, w.gathered
	w.gathering, w.gathered = false, nil
	f()
	w.gathering, w.gathered = was, left
}

// difference says in what contents the stores differ; empty: in nothing.
func (w *walk) difference() string {
	m, s := snapshot(w.stores[0]), snapshot(w.stores[1])
	if reflect.DeepEqual(m, s) { // much faster
		return ""
	}
	if d := cmp.Diff(m, s, cmpopts.EquateEmpty()); d != "" {
		return fmt.Sprintf("contents (-memstore +store):\n%s", d)
	}
	return ""
}

// answer is a result as text; of an error only what it is.
func answer(v any, err error) string {
	for _, sentinel := range []error{
		fleet.ErrNotFound, fleet.ErrConflict, fleet.ErrDenied, fleet.ErrInvalid, fleet.ErrStale, ota.ErrTerminal,
		ota.ErrVersionMismatch, ota.ErrTransition, shadow.ErrVersionConflict, shadow.ErrInvalid,
	} {
		if errors.Is(err, sentinel) {
			return fmt.Sprintf("%+v %v", v, sentinel)
		}
	}
	if err != nil {
		return "unexpected: " + err.Error()
	}
	return fmt.Sprintf("%+v", v)
}

func (w *walk) time(t *rapid.T) time.Time {
	w.now = w.now.Add(time.Duration(someTimes.Draw(t, "seconds")) * time.Second)
	return w.now
}

func (w *walk) enroll(t *rapid.T) {
	id, key := devices.Draw(t, "device"), rapid.SampledFrom([]string{"k", "k", "l", "m"}).Draw(t, "key")
	now := w.time(t)
	w.same("enroll", func(s fleet.Store) (any, error) {
		return s.Enroll(ctx, fleet.Device{ID: id, Hardware: "h", KeyFingerprint: key}, secret(1), now)
	})
}

func (w *walk) revoke(t *rapid.T) {
	id, now := devices.Draw(t, "device"), w.time(t)
	w.same("revoke", func(s fleet.Store) (any, error) { return nil, s.RevokeDevice(ctx, id, now) })
}

func (w *walk) forget(t *rapid.T) {
	d, now := fleet.Deletion{DeviceID: devices.Draw(t, "device"), Force: rapid.Bool().Draw(t, "force")}, w.time(t)
	w.same("forget", func(s fleet.Store) (any, error) { return nil, s.DeleteDevice(ctx, d, now) })
}

func (w *walk) seen(t *rapid.T) {
	seen := map[string]time.Time{devices.Draw(t, "device"): w.time(t), devices.Draw(t, "device"): w.time(t)}
	w.same("seen", func(s fleet.Store) (any, error) { return nil, s.SeenDevices(ctx, seen) })
}

func (w *walk) create(t *rapid.T) {
	d := fleet.Device{ID: devices.Draw(t, "device"), Hardware: "h", CreatedAt: w.time(t)}
	w.same("create", func(s fleet.Store) (any, error) { return nil, s.CreateDevice(ctx, d) })
}

func (w *walk) connection(t *rapid.T) {
	c := fleet.Connection{
		Connected: rapid.Bool().Draw(t, "connected"), Began: w.time(t), Since: w.time(t),
		Replica: rapid.SampledFrom([]string{"r1", "r2"}).Draw(t, "replica"), Reason: rapid.SampledFrom([]string{"", "why"}).Draw(t, "reason"),
	}
	heard := map[string]fleet.Connection{devices.Draw(t, "device"): c}
	w.same("connection", func(s fleet.Store) (any, error) { return nil, s.SaveConnections(ctx, heard) })
}

func (w *walk) connectionsEnd(t *rapid.T) {
	now := w.time(t)
	w.same("connections end", func(s fleet.Store) (any, error) { return nil, s.EndConnections(ctx, "restarted", now) })
}

var credentialIDs = rapid.SampledFrom([]string{"1", "2", "3"})

func (w *walk) credential(t *rapid.T) {
	c := password(devices.Draw(t, "device"), credentialIDs.Draw(t, "id"))
	if rapid.Bool().Draw(t, "key") {
		c = key(c.DeviceID, c.ID)
		c.Secret = rapid.SampledFrom([]string{"k", "l"}).Draw(t, "secret")
	}
	c.CreatedAt = w.time(t)
	w.same("credential", func(s fleet.Store) (any, error) { return nil, s.PutCredential(ctx, c) })
}

func (w *walk) dropCredential(t *rapid.T) {
	id, credential, now := devices.Draw(t, "device"), credentialIDs.Draw(t, "id"), w.time(t)
	w.same("drop credential", func(s fleet.Store) (any, error) { return nil, s.DeleteCredential(ctx, id, credential, now) })
}

func (w *walk) update(t *rapid.T) {
	id, name := devices.Draw(t, "device"), rapid.SampledFrom([]string{"", "n"}).Draw(t, "name")
	section := map[string]any{rapid.SampledFrom([]string{"x", "y"}).Draw(t, "key"): rapid.StringN(0, 4, 8).Draw(t, "value")}
	if rapid.IntRange(0, 3).Draw(t, "of firmware") == 0 {
		section = map[string]any{"firmware": map[string]any{"digest": digests.Draw(t, "digest")}}
	}
	u := shadow.NewUpdate(nil, section)
	if rapid.Bool().Draw(t, "desired") {
		u = shadow.NewUpdate(section, nil)
	}
	if rapid.Bool().Draw(t, "versioned") {
		v := rapid.Int64Range(1, 4).Draw(t, "version")
		u.Version = &v
	}
	now := w.time(t)
	w.same("update", func(s fleet.Store) (any, error) {
		r, err := s.UpdateShadow(ctx, id, name, u, now)
		return fmt.Sprintf("%s %s %s %v", documentText(r.Document), r.AcceptedPayload(), r.DeltaPayload(), r.Changed), err
	})
}

func (w *walk) delete(t *rapid.T) {
	id, now := devices.Draw(t, "device"), w.time(t)
	w.same("delete", func(s fleet.Store) (any, error) {
		doc, err := s.DeleteShadow(ctx, id, "", now)
		return documentText(doc), err
	})
}

var (
	groups     = rapid.SampledFrom([]string{"g", "h", "i"})
	selections = rapid.SampledFrom([]string{
		``, `shadow.reported.x:*`, `shadow.reported.x >= "M"`, `NOT shadow.reported:x`, `hardware = "h" AND shadow.reported.y < "m"`,
		`shadow.desired.x = "*" OR shadow.reported.y = "*"`, `-shadow.desired:* AND id > "b"`, `id = "a"`,
	})
)

func (w *walk) group(t *rapid.T) {
	g := fleet.Group{Name: groups.Draw(t, "group"), Dynamic: rapid.IntRange(0, 3).Draw(t, "dynamic") > 0, CreatedAt: w.time(t)}
	var members []string
	if g.Dynamic {
		g.Selector = selections.Draw(t, "selector")
	} else {
		members = rapid.SliceOfN(devices, 0, 3).Draw(t, "members")
	}
	switch at := rapid.Bool().Draw(t, "at once"); {
	case !w.gathering:
		w.same("group", func(s fleet.Store) (any, error) { return nil, makeGroup(s, g, members) })
		return
	case !g.Dynamic || at: // what it is filled with comes later, see run
		w.same("group", func(s fleet.Store) (any, error) { return nil, s.CreateGroup(ctx, g, members) })
		return
	}
	w.alone(func() {
		w.same("group", func(s fleet.Store) (any, error) { return nil, s.CreateGroup(ctx, g, nil) })
	})
	w.same("fill", func(s fleet.Store) (any, error) { return nil, fleet.FillGroup(ctx, s, g.Name) })
}

func (w *walk) tag(t *rapid.T) {
	id, value := devices.Draw(t, "device"), rapid.SampledFrom([]string{"x", "y", ""}).Draw(t, "value")
	set, remove := map[string]string{"k": value}, []string(nil)
	if value == "" {
		set, remove = nil, []string{"k"}
	}
	w.same("tag", func(s fleet.Store) (any, error) { return nil, s.ChangeTags(ctx, id, set, remove) })
}

func (w *walk) changeMembers(t *rapid.T) {
	name := groups.Draw(t, "group")
	add, remove := rapid.SliceOfN(devices, 0, 2).Draw(t, "add"), rapid.SliceOfN(devices, 0, 2).Draw(t, "remove")
	w.same("members", func(s fleet.Store) (any, error) { return nil, s.ChangeMembers(ctx, name, add, remove) })
}

func (w *walk) ungroup(t *rapid.T) {
	name := groups.Draw(t, "group")
	if rapid.Bool().Draw(t, "really") {
		w.same("ungroup", func(s fleet.Store) (any, error) { return nil, s.DeleteGroup(ctx, name) })
	}
}

func (w *walk) release(t *rapid.T) { w.releaseOf(t, versions.Draw(t, "version")) }

func (w *walk) releaseOf(t *rapid.T, version string) {
	r := release("app", version)
	r.ImageSize, r.CreatedAt = rapid.Int64Range(1, 2).Draw(t, "size"), w.time(t)
	r.HardwareIDs = []string{"h"}
	if r.Version != "1" {
		r.ImageDigest = digests.Filter(func(s string) bool { return s != "" }).Draw(t, "image")
		r.MinVersion = rapid.SampledFrom([]string{"", "1", "2"}).Draw(t, "needs")
	}
	w.same("release", func(s fleet.Store) (any, error) { return s.CreateRelease(ctx, r) })
}

func (w *walk) publish(t *rapid.T) {
	files := []fleet.Metadata{
		{Role: fleet.RoleTargets, Version: rapid.Int64Range(1, 4).Draw(t, "targets"), Bytes: []byte("t")},
		{Role: fleet.RoleSnapshot, Version: rapid.Int64Range(1, 4).Draw(t, "snapshot"), Bytes: []byte("s")},
	}[:rapid.IntRange(0, 2).Draw(t, "files")]
	signed := []ota.ReleaseID{{Name: "app", Version: versions.Draw(t, "version")}}
	now := w.time(t)
	w.same("publish", func(s fleet.Store) (any, error) { return nil, s.PublishMetadata(ctx, files, signed, now) })
}

// withdraw is not frequent: of the release nothing comes after it.
func (w *walk) withdraw(t *rapid.T) {
	wd := fleet.Withdrawal{
		Release: app(versions.Draw(t, "version")), Reason: rapid.SampledFrom([]string{"", "why"}).Draw(t, "reason"),
		Policy: rapid.SampledFrom([]ota.AbortPolicy{"", ota.AbortKeep, ota.AbortRevert}).Draw(t, "policy"), Now: w.time(t),
	}
	if rapid.IntRange(0, 3).Draw(t, "really") > 0 {
		return
	}
	w.same("withdraw", func(s fleet.Store) (any, error) { return s.Withdraw(ctx, wd) })
}

func (w *walk) rollout(t *rapid.T) {
	r := newRollout(rollouts.Draw(t, "rollout"), 6)
	r.Release.Version = versions.Draw(t, "version")
	if rapid.IntRange(0, 3).Draw(t, "command") == 0 {
		r.Release, r.Command = ota.ReleaseID{}, &ota.Command{Name: "x"}
	}
	r.InProgressTimeout = rapid.SampledFrom([]time.Duration{0, time.Minute, time.Hour}).Draw(t, "timeout")
	r.Terms.Timers = ota.Timers{Claim: rapid.SampledFrom([]time.Duration{0, 2 * time.Minute}).Draw(t, "claim"), Fetch: rapid.SampledFrom([]time.Duration{0, time.Minute}).Draw(t, "fetch")}
	r.Terms.InFlight.Max = rapid.SampledFrom([]int{0, 1}).Draw(t, "in flight")
	r.Terms.Retry.Attempts = rapid.SampledFrom([]int{0, 2}).Draw(t, "attempts")
	r.Priority, r.CreatedAt = rapid.IntRange(0, 2).Draw(t, "priority"), w.time(t)
	w.same("rollout", func(s fleet.Store) (any, error) { return nil, s.CreateRollout(ctx, r) })
}

// known returns the rollout as memstore has it, or one that no store knows.
func (w *walk) known(t *rapid.T) ota.Rollout {
	r, err := w.stores[0].Rollout(ctx, rollouts.Draw(t, "rollout"))
	if err != nil {
		return newRollout("unknown", 6)
	}
	return r
}

func (w *walk) advance(t *rapid.T) {
	r := w.known(t)
	r.Revision -= int64(rapid.SampledFrom([]int{0, 0, 0, 0, 1}).Draw(t, "stale"))
	r.State = rapid.SampledFrom([]ota.RolloutState{ota.RolloutRunning, ota.RolloutRunning, ota.RolloutPaused, ota.RolloutAborting}).Draw(t, "state")
	r.ArmedAt, r.Reason = w.time(t), rapid.SampledFrom([]string{"", "why"}).Draw(t, "reason")
	a := fleet.Advance{Rollout: r, Now: w.time(t)}
	stage := rapid.IntRange(0, 1).Draw(t, "stage")
	if rapid.Bool().Draw(t, "open") {
		from := rapid.IntRange(0, 3).Draw(t, "from")
		a.Open = &fleet.Opening{Stage: stage, From: from, To: from + rapid.IntRange(0, 3).Draw(t, "turns"), Digest: digests.Draw(t, "not on")}
		if rapid.Bool().Draw(t, "only some") {
			a.Open.Only = rapid.SliceOfN(digests, 0, 2).Draw(t, "only on")
		}
		a.Open.Ways = ways(t)
	}
	if rapid.IntRange(0, 5).Draw(t, "repeat") == 0 {
		a.Repeat = &stage
	}
	if rapid.IntRange(0, 5).Draw(t, "create") == 0 {
		made := newRollout(r.ID+"-"+rapid.SampledFrom([]string{"a", "b"}).Draw(t, "made"), 6)
		made.RevertOf, made.Release.Version = r.ID, versions.Draw(t, "version")
		a.Create, a.Rollout.Reverting = []ota.Rollout{made}, true
	}
	for _, d := range rapid.SliceOfNDistinct(devices, 0, 3, rapid.ID).Draw(t, "devices") {
		a.Insert = append(a.Insert, queued(stage, 1, d)...)
		a.Insert[len(a.Insert)-1].Via = via(t)
	}
	w.same("advance", func(s fleet.Store) (any, error) { return nil, s.Advance(ctx, a) })
}

// cancel cancels whatever can be cancelled.
func (w *walk) cancel(t *rapid.T) {
	r, now := w.known(t), w.time(t)
	r.Reason = "why"
	if rapid.IntRange(0, 2).Draw(t, "really") > 0 {
		return
	}
	w.same("cancel", func(s fleet.Store) (any, error) {
		done, err := s.Cancel(ctx, r, now, 99)
		slices.SortFunc(done.Begun, func(a, b ota.Execution) int { return strings.Compare(a.DeviceID, b.DeviceID) })
		return done, err
	})
}

// line puts devices in line, in which they stay.
func (w *walk) line(t *rapid.T) {
	id, turn := rollouts.Draw(t, "rollout"), rapid.IntRange(0, 3).Draw(t, "turn")
	var list []ota.Candidate
	for _, d := range rapid.SliceOfNDistinct(devices, 0, 3, rapid.ID).Draw(t, "devices") {
		list = append(list, ota.Candidate{DeviceID: d, Lane: rapid.SampledFrom([]string{"", "x"}).Draw(t, "lane")})
	}
	w.same("line", func(s fleet.Store) (any, error) { return nil, s.PutCandidates(ctx, id, "", turn, list) })
}

// turn has devices take their turn.
func (w *walk) turn(t *rapid.T) {
	id, now := rapid.SampledFrom([]string{"q", "r", "s", "f"}).Draw(t, "rollout"), w.time(t)
	o := fleet.Opening{Stage: rapid.SampledFrom([]int{0, 0, 0, 1}).Draw(t, "stage"), Digest: digests.Draw(t, "not on"), Ways: ways(t)}
	list := rapid.SliceOfNDistinct(devices, 0, 3, rapid.ID).Draw(t, "devices")
	w.same("due", func(s fleet.Store) (any, error) {
		var ids []string
		r, err := s.Rollout(ctx, id)
		if err != nil {
			return nil, err
		}
		for _, device := range list {
			due, err := s.Due(ctx, r, device)
			if err != nil {
				return nil, err
			}
			if due {
				ids = append(ids, device)
			}
		}
		return ids, nil
	})
	w.same("turn", func(s fleet.Store) (any, error) { return nil, s.TakeTurns(ctx, id, o, list, now) })
	w.same("openings", func(s fleet.Store) (any, error) {
		var ids []string
		list, err := s.Openings(ctx)
		for _, r := range list {
			ids = append(ids, r.ID)
		}
		return ids, err
	})
}

// retry asks for another attempt, which is refused unless the last is finished.
func (w *walk) retry(t *rapid.T) {
	r := w.known(t)
	attempt := rapid.IntRange(1, 3).Draw(t, "attempt")
	a := fleet.Advance{Rollout: r, Now: w.time(t), Insert: queued(0, attempt, devices.Draw(t, "device"), devices.Draw(t, "device"))}
	w.same("retry", func(s fleet.Store) (any, error) { return nil, s.Advance(ctx, a) })
}

func (w *walk) start(t *rapid.T) {
	id, now := devices.Draw(t, "device"), w.time(t)
	start := ota.Starting{Details: map[string]string{ota.DetailStep: "fetching"}, StepTimeout: stepTimeouts.Draw(t, "step")}
	if !w.gathering {
		w.same("next", func(s fleet.Store) (any, error) { return s.NextExecution(ctx, id) })
	}
	w.same("start", func(s fleet.Store) (any, error) {
		return s.StartNext(ctx, id, start, now)
	})
}

func (w *walk) upload(t *rapid.T) {
	u := fleet.Upload{
		RolloutID: rollouts.Draw(t, "rollout"), DeviceID: devices.Draw(t, "device"), Attempt: rapid.IntRange(0, 2).Draw(t, "attempt"),
		Bytes: rapid.Int64Range(fleet.UploadBegun, 1).Draw(t, "bytes"), At: w.time(t),
	}
	w.same("upload", func(s fleet.Store) (any, error) { return nil, s.PutUpload(ctx, u) })
	if rapid.Bool().Draw(t, "drop") {
		w.same("drop", func(s fleet.Store) (any, error) { return nil, s.DropUpload(ctx, u) })
	}
}

// expire looks a while ahead, so that timers run out.
func (w *walk) expire(t *rapid.T) {
	now := w.time(t).Add(time.Duration(rapid.SampledFrom([]int{0, 1, 2, 60}).Draw(t, "minutes")) * time.Minute)
	w.same("expire", func(s fleet.Store) (any, error) {
		list, next, err := s.Expire(ctx, now)
		return fmt.Sprintf("%+v %s", list, next), err
	})
}

func (w *walk) report(t *rapid.T) {
	r := ota.Report{
		RolloutID: rollouts.Draw(t, "rollout"), DeviceID: devices.Draw(t, "device"), Status: statuses.Draw(t, "status"),
		ExpectedVersion: rapid.SampledFrom([]int64{0, 0, 1, 2}).Draw(t, "expected"),
		Attempt:         rapid.SampledFrom([]int{0, 0, 1, 2}).Draw(t, "attempt"),
		StepTimeout:     stepTimeouts.Draw(t, "step"),
	}
	if rapid.Bool().Draw(t, "detailed") {
		r.Details = map[string]string{ota.DetailClass: rapid.SampledFrom([]string{"silent", "rolled_back", "x"}).Draw(t, "class"),
			ota.DetailStep: rapid.SampledFrom([]string{"fetching", "rebooting", "x"}).Draw(t, "at")}
	}
	now := w.time(t)
	w.same("report", func(s fleet.Store) (any, error) { return s.Report(ctx, r, now) })
}
