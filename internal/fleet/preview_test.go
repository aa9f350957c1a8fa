package fleet_test

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/store/memstore"
	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/shadow"
)

// previewFleet is a random fleet, and what a plan for it has to say of each device.
type previewFleet struct {
	store    fleet.Store
	s        *fleet.Service
	releases []ota.Release // 1.0 to 4.0; 3.0 needs 2.0, 4.0 needs 3.0
	hardware map[string]string
	site     map[string]string
	runs     map[string]int // 0: it does not say
	revoked  map[string]bool
	busy     []string // with another rollout
}

func drawFleet(t *rapid.T) *previewFleet {
	ctx := t.Context()
	store := memstore.New()
	f := &previewFleet{
		store: store, s: fleet.New(fleet.Config{Store: store, Now: time.Now, Log: slog.New(slog.DiscardHandler)}),
		hardware: map[string]string{}, site: map[string]string{}, runs: map[string]int{}, revoked: map[string]bool{},
	}
	ok := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	for i, need := range []string{"", "", "2.0", "3.0"} {
		r, err := store.CreateRelease(ctx, ota.Release{CreatedAt: time.Now(), Manifest: ota.Manifest{
			Name: "gw", Version: fmt.Sprintf("%d.0", i+1), HardwareIDs: []string{"a", "b"}, Installer: ota.InstallImage, MinVersion: need,
			ImageDigest: strings.Repeat(fmt.Sprint(i), 64), ImageSize: 1, ObjectSize: int64(1) << (10 * i),
		}})
		ok(err)
		f.releases = append(f.releases, r)
		ok(store.PublishMetadata(ctx, nil, []ota.ReleaseID{r.ID()}, time.Now()))
	}
	other := ota.Rollout{ID: "other", Release: f.releases[0].ID(), State: ota.RolloutRunning, StartedAt: time.Now(), Stages: []ota.Stage{{State: ota.StageOpen, Target: 1000}}}
	ok(store.CreateRollout(ctx, other))
	step := fleet.Advance{Rollout: other, Now: time.Now()}
	for i := range rapid.IntRange(1, 90).Draw(t, "devices") {
		id := fmt.Sprintf("d%02d", i)
		f.hardware[id] = rapid.SampledFrom([]string{"a", "a", "b", "c"}).Draw(t, "hardware")
		f.site[id] = rapid.SampledFrom([]string{"paris", "paris", "oslo", "rome"}).Draw(t, "site")
		f.runs[id] = rapid.IntRange(0, 4).Draw(t, "runs")
		ok(store.CreateDevice(ctx, fleet.Device{ID: id, Hardware: f.hardware[id], Tags: map[string]string{"site": f.site[id]}, CreatedAt: time.Now()}))
		if n := f.runs[id]; n > 0 {
			said := map[string]any{"firmware": map[string]any{"digest": f.releases[n-1].ImageDigest}}
			_, err := store.UpdateShadow(ctx, id, "", shadow.NewUpdate(nil, said), time.Now())
			ok(err)
		}
		switch rapid.IntRange(0, 5).Draw(t, "what of it") {
		case 0:
			f.revoked[id] = true
			ok(store.RevokeDevice(ctx, id, time.Now()))
		case 1:
			f.busy = append(f.busy, id)
			step.Insert = append(step.Insert, ota.Execution{DeviceID: id, Attempt: 1, Status: ota.Queued})
		}
	}
	ok(store.Advance(ctx, step))
	return f
}

func drawPlan(t *rapid.T, f *previewFleet) ota.Rollout {
	r := ota.Rollout{
		Release: f.releases[rapid.SampledFrom([]int{1, 3}).Draw(t, "release")].ID(), Seed: rapid.StringMatching(`[a-z]{1,4}`).Draw(t, "seed"),
		Selector: rapid.SampledFrom([]string{"", `tags.site = "paris"`, `NOT tags.site = "rome"`}).Draw(t, "selector"),
	}
	r.Terms.Strata = rapid.SampledFrom([][]string{nil, {"hardware"}, {"site"}, {"hardware", "site"}}).Draw(t, "strata")
	if rapid.Bool().Draw(t, "lanes") {
		r.Terms.InFlight = ota.InFlight{Per: "site", PerMax: 1}
	}
	for _, size := range []ota.Size{{Count: 3}, {Selector: `tags.site = "oslo"`}, {Selector: `id = "d0*"`}, {Percent: 40}, {Percent: 90}, {Percent: 100}} {
		if rapid.Bool().Draw(t, "stage") {
			r.Stages = append(r.Stages, ota.Stage{Size: size, Gate: ota.Gate{Success: 1}, State: ota.StagePending, Approval: true})
		}
	}
	if len(r.Stages) == 0 {
		r.Stages = []ota.Stage{{Size: ota.Size{Count: 12}, Gate: ota.Gate{Success: 1}, State: ota.StagePending, Approval: true}}
	}
	return r
}

// excluded says why a device is left out; empty: it is not.
func (f *previewFleet) excluded(r ota.Rollout, id string) string {
	site, runs := f.site[id], f.runs[id]
	switch {
	case f.revoked[id]:
		return fleet.ExcludedRevoked
	case r.Selector == `tags.site = "paris"` && site != "paris", r.Selector == `NOT tags.site = "rome"` && site == "rome":
		return fleet.ExcludedSelector
	case f.hardware[id] == "c":
		return fleet.ExcludedHardware
	case runs > 0 && f.releases[runs-1].ID() == r.Release:
		return fleet.ExcludedCurrent
	case runs == 0 && r.Release.Version == "4.0":
		return fleet.ExcludedVersion // nobody knows from where it would have to come
	}
	return ""
}

// via is what a device passes through.
func (f *previewFleet) via(r ota.Rollout, id string) string {
	if r.Release.Version != "4.0" || f.runs[id] == 0 || f.runs[id] == 3 {
		return "[]"
	}
	return map[int]string{1: "[gw@2.0 gw@3.0]", 2: "[gw@3.0]"}[f.runs[id]]
}

// TestPreviewIsWhatIsCreated: whatever the fleet and the plan, what is shown of the
// rollout is what the rollout's line then holds, and of everybody else why not. The
// order itself is compared with another way to make it in pkg/ota.
func TestPreviewIsWhatIsCreated(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := drawFleet(t)
		plan := drawPlan(t, f)
		want := map[string]int{}
		population := 0
		for id := range f.hardware {
			if why := f.excluded(plan, id); why != "" {
				want[why]++
			} else {
				population++
			}
		}
		p, err := f.s.PlanRollout(t.Context(), plan)
		if population == 0 {
			if err == nil {
				t.Fatal("a plan for nobody")
			}
			return
		}
		if errors.Is(err, fleet.ErrNoDevices) && strings.Contains(err.Error(), "means no device") { // held by TestAStageForNobodyIsRefused
			plan.Stages = slices.DeleteFunc(plan.Stages, func(s ota.Stage) bool { return s.Size.Selector != "" })
			if len(plan.Stages) == 0 {
				return
			}
			p, err = f.s.PlanRollout(t.Context(), plan)
		}
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]int{}
		for _, e := range p.Excluded {
			got[e.Reason] += e.Devices
			for _, id := range e.Sample {
				if f.excluded(plan, id) != e.Reason {
					t.Fatalf("%s is shown as %s", id, e.Reason)
				}
			}
		}
		if diff := cmp.Diff(want, got); p.Population != population || diff != "" {
			t.Fatalf("%d devices, want %d, excluded (-want +got):\n%s", p.Population, population, diff)
		}
		v, err := f.s.CreateRollout(t.Context(), plan)
		if err != nil {
			t.Fatal(err)
		}
		line, err := f.store.Candidates(t.Context(), v.ID, v.Line, 0, 1000)
		if err != nil {
			t.Fatal(err)
		}
		f.compare(t, p, v.Rollout, line)
	})
}

func (f *previewFleet) compare(t *rapid.T, p fleet.RolloutPreview, r ota.Rollout, line []ota.Candidate) {
	from := 0
	for i, stage := range r.Stages {
		part := line[from:stage.Target]
		want := fleet.StagePreview{Target: stage.Target, Devices: len(part), Sample: sampleOf(part)}
		if len(r.Terms.Strata) > 0 {
			want.Strata = map[string]int{}
		}
		for _, c := range part {
			var values []string
			for _, key := range r.Terms.Strata {
				values = append(values, map[string]string{"hardware": f.hardware[c.DeviceID], "site": f.site[c.DeviceID]}[key])
			}
			if want.Strata != nil {
				want.Strata[strings.Join(values, " ")]++
			}
			if r.Terms.InFlight.Per != "" && c.Lane != f.site[c.DeviceID] {
				t.Fatalf("%s is in lane %q", c.DeviceID, c.Lane)
			}
		}
		if diff := cmp.Diff(want, p.Stages[i]); diff != "" {
			t.Fatalf("stage %d (-want +got):\n%s", i+1, diff)
		}
		if sel := stage.Size.Selector; sel != "" {
			for turn, c := range line[from:] {
				if mine := turn < len(part); mine != f.means(sel, c.DeviceID) {
					t.Fatalf("%s is in stage %d or later, which %s means: %v", c.DeviceID, i+1, sel, !mine)
				}
			}
		}
		from = stage.Target
	}
	paths, order, conflicts, bytes := map[string][]ota.Candidate{}, []string{}, 0, int64(0)
	for _, c := range line {
		via := f.via(r, c.DeviceID)
		if paths[via] == nil {
			order = append(order, via)
		}
		paths[via] = append(paths[via], c)
		if slices.Contains(f.busy, c.DeviceID) {
			conflicts++
		}
		for _, release := range f.releases {
			if release.ID() == r.Release || strings.Contains(via, release.ID().String()) {
				bytes += release.ObjectSize
			}
		}
	}
	var shown []string
	for _, path := range p.Paths {
		via := fmt.Sprint(path.Via)
		shown = append(shown, via)
		if path.Devices != len(paths[via]) || !slices.Equal(path.Sample, sampleOf(paths[via])) {
			t.Fatalf("path %s: %+v", via, path)
		}
	}
	if r.Release.Version == "4.0" && !slices.Equal(shown, order) {
		t.Fatalf("paths %q, want %q", shown, order)
	}
	total := 0
	for _, c := range p.Conflicts {
		total += c.Devices
	}
	if total != conflicts || p.Bytes != bytes {
		t.Fatalf("%d conflicts and %d bytes, want %d and %d", total, p.Bytes, conflicts, bytes)
	}
}

// means reports whether the selector of a stage means the device.
func (f *previewFleet) means(selector, id string) bool {
	if strings.Contains(selector, "oslo") {
		return f.site[id] == "oslo"
	}
	return strings.HasPrefix(id, "d0")
}

func sampleOf(list []ota.Candidate) (ids []string) {
	for _, c := range list[:min(10, len(list))] {
		ids = append(ids, c.DeviceID)
	}
	return ids
}

// TestAStageForNobodyIsRefused, if it is one by its selector: a canary that is spelt
// wrong proves nothing.
func TestAStageForNobodyIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		r := w.release("1.0")
		w.made("a", "north")
		w.made("b", "south")
		plan := ota.Rollout{Release: r.ID(), Stages: w.stages("100%")}
		stage := func(selector string) ota.Stage {
			return ota.Stage{Size: ota.Size{Selector: selector}, Gate: ota.Gate{Success: 1}, State: ota.StagePending}
		}
		last := plan.Stages[0]
		for _, c := range []struct {
			stages []ota.Stage
			field  string // empty: it is fine
		}{
			{[]ota.Stage{stage(`tags.site = "north"`), last}, ""},
			{[]ota.Stage{stage(`tags.site = "nroth"`), last}, "stages[0].select"},
			{[]ota.Stage{stage(`tags.site = "north"`), stage(`id = "a"`), last}, "stages[1].select"},
			{[]ota.Stage{stage(`tags.site = "north"`), stage(`id = "b"`), last}, ""},
		} {
			plan.Stages = c.stages
			_, planned := w.s.PlanRollout(w.ctx, plan)
			_, created := w.s.CreateRollout(w.ctx, plan)
			for what, err := range map[string]error{"plan": planned, "create": created} {
				if c.field == "" && err != nil || c.field != "" && (!errors.Is(err, fleet.ErrNoDevices) || ota.FieldOf(err) != c.field || !strings.Contains(err.Error(), "correct its selector")) {
					t.Errorf("%s %v: %v", what, c.stages, err)
				}
			}
		}
	})
}

// TestATagThatNobodyHasIsRefused: strata and a bound in flight by a tag that no device of
// the plan has would not bind as they are meant.
func TestATagThatNobodyHasIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		r := w.release("1.0")
		per := func(key string) ota.Terms { return ota.Terms{InFlight: ota.InFlight{Per: key, PerMax: 5}} }
		strata := func(keys ...string) ota.Terms { return ota.Terms{Strata: keys} }
		refused := func(terms ota.Terms, selector, field, words string) {
			t.Helper()
			plan := ota.Rollout{Release: r.ID(), Selector: selector, Stages: w.stages("100%"), Terms: terms}
			_, planned := w.s.PlanRollout(w.ctx, plan)
			_, created := w.s.CreateRollout(w.ctx, plan)
			for what, err := range map[string]error{"plan": planned, "create": created} {
				if field == "" && err != nil || field != "" && (!errors.Is(err, fleet.ErrUntagged) || ota.FieldOf(err) != field || !strings.Contains(err.Error(), words)) {
					t.Errorf("%s %+v: %v", what, terms, err)
				}
			}
		}
		refused(ota.Terms{Continuous: true, Strata: []string{"site"}}, "", "", "") // there is nobody yet
		w.made("a", "north")
		w.made("b", "south")
		bare := w.enroll(1, "rpi4")[0]
		refused(per("nosuch"), "", "inFlight.per", "no device of it (of 3) has the tag nosuch, by which the bound in flight (--max-per) tells")
		refused(strata("hardware", "nosuch"), "", "strata[1]", "strata (--strata) tells them apart; correct the key, leave it out, or tag the devices: otactl device tag ID nosuch=VALUE")
		refused(strata("site"), `id = "`+bare+`"`, "strata[0]", "no device of it (of 1)")
		refused(per("site"), "", "", "") // some have it
		refused(strata("site", "hardware"), "", "", "")
		refused(per("hardware"), `id = "`+bare+`"`, "", "")
	})
}
