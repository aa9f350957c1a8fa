package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// storeRuns is how often each Go benchmark is run; the median counts.
const storeRuns = 3

const sqlitePackage, postgresPackage = "./internal/store/sqlite", "./internal/store/postgres"

func (r *runner) storeSQLite() error { return r.shadowStore(sqlitePackage, "SQLite") }

func (r *runner) storePostgres() error { return r.shadowStore(postgresPackage, "PostgreSQL") }

// shadowStore measures shadows in one database, which shares the cores.
func (r *runner) shadowStore(pkg, name string) error {
	const update, read, naive = "BenchmarkShadowUpdate", "BenchmarkShadowRead", "BenchmarkShadowUpdateNaive"
	m, err := r.goBench(goBenchmark{pkg: pkg, pattern: update + "|" + read + "|" + naive, times: "40000x", runs: storeRuns})
	if err != nil {
		return err
	}
	group, reads, alone := m.of(update, "updates/s"), m.of(read, "reads/s"), m.of(naive, "updates/s")
	r.table.add(figure{
		what:     name + ": durable shadow updates in process, 100,000 devices in random order, 200 callers",
		measured: fmt.Sprintf("%.0f/s, p99 %.0f ms", group, m.of(update, "p99-ms")),
		peer:     fmt.Sprintf("%.1fx one transaction each (%.0f/s)", group/alone, alone),
	})
	r.table.add(figure{
		what:     "  processor time of an update, here and in the database's own process",
		measured: fmt.Sprintf("%.0f us and %.0f us", m.of(update, "cpu-us/op"), m.of(update, "db-us/op")),
		peer:     fmt.Sprintf("%.0f us and %.0f us", m.of(naive, "cpu-us/op"), m.of(naive, "db-us/op")),
	})
	r.table.add(figure{
		what: name + ": shadow reads of the same", measured: fmt.Sprintf("%.0f/s, p99 %.0f ms", reads, m.of(read, "p99-ms")),
		target: fmt.Sprintf(">= %d/s", readsTarget), met: reads >= readsTarget,
	})
	return nil
}

const readsTarget = 20_000

func (r *runner) groupSQLite() error { return r.groupReflects(sqlitePackage, "SQLite") }

func (r *runner) groupPostgres() error { return r.groupReflects(postgresPackage, "PostgreSQL") }

// reflectsTarget is within what time a dynamic group shows a change.
const reflectsTarget = 100 * time.Millisecond

// groupReflects measures from a change of a shadow to the group that shows it.
func (r *runner) groupReflects(pkg, name string) error {
	const bench = "BenchmarkGroupReflects"
	m, err := r.goBench(goBenchmark{pkg: pkg, pattern: bench, times: "500x", runs: storeRuns})
	if err != nil {
		return err
	}
	for _, c := range []struct{ name, what string }{
		{"alone", name + ": a change of a shadow to the dynamic group of 100,000 devices that shows it"},
		{"loaded", "  beside 200 callers that update others"},
	} {
		p99 := m.of(bench+"/"+c.name, "p99-ms")
		r.table.add(figure{
			what: c.what, measured: fmt.Sprintf("p50 %.1f ms, p99 %.1f ms", m.of(bench+"/"+c.name, "p50-ms"), p99),
			target: "< " + reflectsTarget.String(), met: p99 < float64(reflectsTarget.Milliseconds()),
		})
	}
	return nil
}

// selects measures selectors over a million devices.
func (r *runner) selects() error {
	m, err := r.goBench(goBenchmark{pkg: postgresPackage, pattern: "BenchmarkSelect1M", times: "5x", runs: storeRuns})
	if err != nil {
		return err
	}
	for _, c := range []struct {
		name, what string
		target     time.Duration
	}{
		{"indexed", "of an indexed field, 1,000 match", 50 * time.Millisecond},
		{"indexedTwo", "of an indexed field and another, 1,000 match", 50 * time.Millisecond},
		{"scanText", "by text without an index, none match", 3 * time.Second},
		{"scanNumber", "by a number without an index, 10,000 match", 3 * time.Second},
	} {
		name := "BenchmarkSelect1M/" + c.name
		count := time.Duration(m.of(name+"/count", "ns/op"))
		r.table.add(figure{
			what: "PostgreSQL: 1,000,000 devices " + c.what + ": counted", measured: showMillis(count),
			target: "< " + c.target.String(), met: count < c.target,
		})
		r.table.add(figure{
			what:     "  first page of 50, all of them",
			measured: showMillis(time.Duration(m.of(name+"/page", "ns/op"))) + ", " + showMillis(time.Duration(m.of(name+"/all", "ns/op"))),
		})
	}
	return nil
}

func showMillis(d time.Duration) string { return fmt.Sprintf("%.1f ms", d.Seconds()*1000) }

// plans measures what a rollout over 100,000 devices costs.
func (r *runner) plans() error {
	for _, b := range []struct{ pkg, name, what string }{
		{sqlitePackage, "BenchmarkOpenStage100k", "SQLite: a stage of 100,000 executions opened"},
		{"./internal/bench", "BenchmarkPlan100k", "Rollout over 100,000 devices planned, fleet and SQLite"},
	} {
		m, err := r.goBench(goBenchmark{pkg: b.pkg, pattern: b.name, times: "1x", runs: storeRuns})
		if err != nil {
			return err
		}
		r.table.add(figure{what: b.what, measured: showSeconds(time.Duration(m.of(b.name, "ns/op")))})
	}
	return nil
}

// measurements are the medians of Go benchmarks by name and unit.
type measurements map[[2]string][]float64

func (m measurements) of(name, unit string) float64 {
	values := m[[2]string{name, unit}]
	if len(values) == 0 {
		return 0
	}
	return median(values)
}

// goBenchmark is some Go benchmarks of a package.
type goBenchmark struct {
	pkg, pattern string // the pattern is whole names, of parts too: BenchmarkA|BenchmarkB, BenchmarkA/part
	times        string // as -benchtime
	runs         int
}

// goBench runs Go benchmarks; those that take long have no limit of time.
func (r *runner) goBench(b goBenchmark) (measurements, error) {
	r.say("%s", b.pattern)
	levels := strings.Split(b.pattern, "/")
	for i, level := range levels {
		levels[i] = "^(" + level + ")$"
	}
	out, err := exec.CommandContext(r.ctx, "go", "test", "-run", "^$", "-bench", strings.Join(levels, "/"), "-benchtime", b.times,
		"-count", strconv.Itoa(b.runs), "-timeout", "0", b.pkg).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", b.pattern, err, out)
	}
	return parseGoBench(out)
}

// parseGoBench reads lines of a name, how often it ran and pairs of a value and
// its unit.
func parseGoBench(out []byte) (measurements, error) {
	m := measurements{}
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		fields := strings.Fields(s.Text())
		if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark") {
			continue
		}
		name, _, _ := strings.Cut(fields[0], "-") // the number of processors
		for i := 2; i+1 < len(fields); i += 2 {
			v, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", fields[0], err)
			}
			key := [2]string{name, fields[i+1]}
			m[key] = append(m[key], v)
		}
	}
	if len(m) == 0 {
		return nil, fmt.Errorf("no figures in %s", out)
	}
	return m, nil
}
