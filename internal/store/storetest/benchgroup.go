package storetest

import (
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/shadow"
)

// reflectPatience is when a benchmark gives a group up.
const reflectPatience = 30 * time.Second

// BenchGroupReflects measures from a change of a shadow to a look at the dynamic
// group that shows it, the device in it or gone: alone, and loaded, while
// BenchCallers update other devices as fast as they can.
func BenchGroupReflects(b *testing.B, on Bench) {
	f := benchFleet(b, on)
	const name = "reflects"
	mustBench(b, f.Store.CreateGroup(ctx, fleet.Group{Name: name, Dynamic: true, Selector: `shadow.reported.reflects = true`, CreatedAt: time.Now()}, nil))
	b.Cleanup(func() { mustBench(b, f.Store.DeleteGroup(ctx, name)) })
	mustBench(b, fleet.FillGroup(ctx, f.Store, name))
	b.Run("alone", func(b *testing.B) { f.reflects(b, name) })
	b.Run("loaded", func(b *testing.B) {
		var over atomic.Bool
		ended := make(chan error, 1)
		go func() {
			ended <- errors.Join(together(BenchCallers, func(int) error {
				for !over.Load() {
					if err := f.update(1 + rand.IntN(BenchDevices-1)); err != nil {
						return err
					}
				}
				return nil
			})...)
		}()
		f.reflects(b, name)
		over.Store(true)
		mustBench(b, <-ended)
	})
}

// reflects lets one device come and go.
func (f *fleetUnderLoad) reflects(b *testing.B, group string) {
	b.Helper()
	change := func(in bool) {
		_, err := f.Store.UpdateShadow(ctx, benchDevice(0), "", shadow.NewUpdate(nil, map[string]any{"reflects": in}), time.Now())
		mustBench(b, err)
	}
	change(false)
	var took latencies
	b.ResetTimer()
	for i := range b.N {
		in, began := i%2 == 0, time.Now()
		change(in)
		for shown := !in; shown != in; {
			members, err := f.Store.GroupMembers(ctx, group, "", 1)
			mustBench(b, err)
			if shown = len(members) == 1; time.Since(began) > reflectPatience {
				b.Fatalf("change %d: the group does not show it after %s", i, reflectPatience)
			}
		}
		took.add(time.Since(began))
	}
	b.StopTimer()
	b.ReportMetric(float64(took.at(0.5).Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took.at(0.99).Microseconds())/1000, "p99-ms")
	change(false)
}

func mustBench(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}
