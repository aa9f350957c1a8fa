package storetest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
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
func BenchUpdates(b *testing.B, on Bench) {
	f := benchFleet(b, on)
	f.measure(b, "updates/s", f.update)
}

// BenchReads measures reads of random shadows.
func BenchReads(b *testing.B, on Bench) {
	f := benchFleet(b, on)
	f.measure(b, "reads/s", func(i int) error {
		_, err := f.Store.Shadow(ctx, benchDevice(i), "")
		return err
	})
}

// BenchNaive is BenchUpdates with an update of the caller's own.
func BenchNaive(b *testing.B, on Bench, update func(id string, u shadow.Update) error) {
	f := benchFleet(b, on)
	f.measure(b, "updates/s", func(i int) error { return f.report(i, update) })
}

// Seed is statements, for a database of either kind, that make n devices with a
// shadow each, behind the store's back: enrolling as many takes minutes.
func Seed(n int) []string {
	const numbers = `WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < %d)`
	const id = `'device-' || substr(CAST(10000000 + n.i AS TEXT), 2)`
	u, err := shadow.ParseUpdate(benchReport(7))
	if err != nil {
		panic(err) // it is made here
	}
	r, err := shadow.Apply(shadow.Document{}, u, time.Unix(1_700_000_000, 0))
	if err != nil {
		panic(err)
	}
	numbered := strings.Replace(documentText(r.Document), `"value":`, `"value":' || CAST(1 + n.i % 9 AS TEXT) || '`, 1)
	with := fmt.Sprintf(numbers, n-1)
	// In the random order of a fleet that came in over the years.
	const shuffled = ` FROM n ORDER BY (CAST(n.i AS BIGINT) * 7919) % 10007, n.i`
	return []string{
		with + ` INSERT INTO devices (id, hardware, tags, key_fingerprint, created_at, firmware_digest) SELECT ` + id +
			`, 'board-a', '{}', '` + strings.Repeat("ab", 32) + `', 1700000000000000, '` + fmt.Sprintf("%064x", 7) + `'` + shuffled,
		with + ` INSERT INTO shadows (device_id, name, version, document) SELECT ` + id + `, '', 1, '` + numbered + `'` + shuffled,
	}
}

// fleetUnderLoad is a store full of devices and what they report.
type fleetUnderLoad struct {
	Bench
	reports [][]byte
}

func benchDevice(i int) string { return fmt.Sprintf("device-%07d", i) }

// Bench is where the benchmarks run: a store, a way to run statements behind its
// back, and the processor time of a database that is a process of its own.
type Bench struct {
	Store    fleet.Store
	Exec     func(statement string) error
	Database func() time.Duration // nil: the database is in this process
}

func benchFleet(b *testing.B, on Bench) *fleetUnderLoad {
	b.Helper()
	f := &fleetUnderLoad{Bench: on}
	for n := range benchReports {
		f.reports = append(f.reports, benchReport(n))
	}
	if _, err := on.Store.Device(ctx, benchDevice(BenchDevices-1)); err == nil {
		return f // made for a shorter run
	}
	for _, statement := range Seed(BenchDevices) {
		if err := on.Exec(statement); err != nil {
			b.Fatal(err)
		}
	}
	return f
}

// benchReport is what an agent with a dozen sensors says, which change while its
// firmware does not.
func benchReport(n int) []byte {
	var b strings.Builder
	fmt.Fprintf(&b, `{"state":{"reported":{"firmware":{"name":"app","version":"1.7","digest":"%064x"}`, 7)
	for i := range 12 {
		fmt.Fprintf(&b, `,"sensor-%d":{"value":%d,"unit":"degrees celsius","ok":true}`, i, (n+i)*7919%1000)
	}
	b.WriteString(`}}}`)
	return []byte(b.String())
}

func (f *fleetUnderLoad) update(i int) error {
	return f.report(i, func(id string, u shadow.Update) error {
		_, err := f.Store.UpdateShadow(ctx, id, "", u, time.Now())
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
	var took latencies
	before, database := ProcessorTime(), f.database()
	b.ResetTimer()
	err := atOnce(b.N, func(n int) error {
		began := time.Now()
		defer func() { took.add(time.Since(began)) }()
		return do(rand.IntN(BenchDevices))
	})
	b.StopTimer()
	if err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), unit)
	b.ReportMetric((ProcessorTime()-before).Seconds()*1e6/float64(b.N), "cpu-us/op")
	b.ReportMetric((f.database()-database).Seconds()*1e6/float64(b.N), "db-us/op")
	b.ReportMetric(float64(took.at(0.99).Microseconds())/1000, "p99-ms")
}

func (on Bench) database() time.Duration {
	if on.Database == nil {
		return 0
	}
	return on.Database()
}

// latencies are how long each took.
type latencies struct {
	mu  sync.Mutex
	all []time.Duration
}

func (l *latencies) add(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, d)
}

func (l *latencies) at(share float64) time.Duration {
	slices.Sort(l.all)
	return l.all[int(share*float64(len(l.all)-1))]
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

// ProcessorTime is what this process has used.
func ProcessorTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
