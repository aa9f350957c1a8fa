package storetest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/shadow"
)

const (
	// BenchDevices and BenchCallers are the fleet of the benchmarks and how many
	// connections each wait for their answer.
	BenchDevices = 100_000
	BenchCallers = 200
	benchReports = 256
)

// BenchUpdates measures durable shadow updates: whole reports of 0.9 KB, of
// random devices of a fleet that each have a shadow. Parsing the report counts.
func BenchUpdates(b *testing.B, s fleet.Store) {
	f := benchFleet(b, s)
	f.measure(b, "updates/s", f.update)
}

// BenchReads measures reads of random shadows.
func BenchReads(b *testing.B, s fleet.Store) {
	f := benchFleet(b, s)
	f.measure(b, "reads/s", func(i int) error {
		_, err := s.Shadow(ctx, benchDevice(i), "")
		return err
	})
}

// BenchNaive is BenchUpdates with an update of the caller's own.
func BenchNaive(b *testing.B, s fleet.Store, update func(id string, u shadow.Update) error) {
	f := benchFleet(b, s)
	f.measure(b, "updates/s", func(i int) error { return f.report(i, update) })
}

// fleetUnderLoad is a store full of devices and what they report.
type fleetUnderLoad struct {
	fleet.Store
	reports [][]byte
}

func benchDevice(i int) string { return fmt.Sprintf("device-%07d", i) }

func benchFleet(b *testing.B, s fleet.Store) *fleetUnderLoad {
	b.Helper()
	f := &fleetUnderLoad{Store: s}
	for n := range benchReports {
		f.reports = append(f.reports, benchReport(n))
	}
	if _, err := s.Device(ctx, benchDevice(BenchDevices-1)); err == nil {
		return f // made for a shorter run
	}
	must := func(err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	must(s.CreateEnrollmentToken(ctx, fleet.EnrollmentToken{ID: "bench", Uses: BenchDevices, Hardware: "board-a"}))
	must(atOnce(BenchDevices, func(i int) error {
		if _, err := s.Enroll(ctx, fleet.Device{ID: benchDevice(i), KeyFingerprint: strings.Repeat("ab", 32)}, [32]byte{}, time.Now()); err != nil {
			return err
		}
		return f.update(i)
	}))
	return f
}

// benchReport is what an agent with a dozen sensors says.
func benchReport(n int) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, `{"state":{"reported":{"firmware":{"name":"app","version":"1.%d","digest":"%064x"}`, n%10, n)
	for i := range 12 {
		fmt.Fprintf(&b, `,"sensor-%d":{"value":%d,"unit":"degrees celsius","ok":true}`, i, (n+i)*7919%1000)
	}
	b.WriteString(`}}}`)
	return []byte(b.String())
}

func (f *fleetUnderLoad) update(i int) error {
	return f.report(i, func(id string, u shadow.Update) error {
		_, err := f.UpdateShadow(ctx, id, "", u, time.Now())
		return err
	})
}

func (f *fleetUnderLoad) report(i int, update func(id string, u shadow.Update) error) error {
	u, err := shadow.ParseUpdate(f.reports[rand.IntN(benchReports)])
	if err != nil {
		return err
	}
	return update(benchDevice(i), u)
}

// measure does it b.N times for random devices, and says what a second brings
// and what one costs this process in time of the processor.
func (f *fleetUnderLoad) measure(b *testing.B, unit string, do func(i int) error) {
	b.Helper()
	b.ReportAllocs()
	before := processorTime()
	b.ResetTimer()
	err := atOnce(b.N, func(int) error { return do(rand.IntN(BenchDevices)) })
	b.StopTimer()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), unit)
	b.ReportMetric((processorTime()-before).Seconds()*1e6/float64(b.N), "cpu-us/op")
}

// atOnce calls f for 0 to n-1 from many callers.
func atOnce(n int, f func(i int) error) error {
	var next atomic.Int64
	return errors.Join(together(BenchCallers, func(int) error {
		for i := int(next.Add(1)); i <= n; i = int(next.Add(1)) {
			if err := f(i - 1); err != nil {
				return err
			}
		}
		return nil
	})...)
}

// processorTime is what this process has used.
func processorTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
