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

// store runs the Go benchmarks of what the programs do inside.
func (r *runner) store() error {
	const sqlite, postgres, here = "./internal/store/sqlite", "./internal/store/postgres", "./internal/bench"
	for _, d := range []struct{ pkg, name string }{{sqlite, "SQLite"}, {postgres, "PostgreSQL"}} {
		if err := r.shadowStore(d.pkg, d.name); err != nil {
			return err
		}
	}
	for _, b := range []struct{ pkg, name, what string }{
		{sqlite, "BenchmarkOpenStage100k", "SQLite: a stage of 100,000 executions opened"},
		{here, "BenchmarkPlan100k", "Rollout over 100,000 devices planned, fleet and SQLite"},
	} {
		ns, err := r.goBench(b.pkg, b.name, "1x", "ns/op")
		if err != nil {
			return err
		}
		r.table.add(figure{what: b.what, measured: showSeconds(time.Duration(ns))})
	}
	return nil
}

// shadowStore measures shadows in one database, which shares the cores.
func (r *runner) shadowStore(pkg, name string) error {
	group, err := r.goBench(pkg, "BenchmarkShadowUpdate", "100000x", "updates/s")
	if err != nil {
		return err
	}
	naive, err := r.goBench(pkg, "BenchmarkShadowUpdateNaive", "5000x", "updates/s")
	if err != nil {
		return err
	}
	reads, err := r.goBench(pkg, "BenchmarkShadowRead", "100000x", "reads/s")
	if err != nil {
		return err
	}
	r.table.add(figure{
		what: name + ": durable shadow updates in process, 100,000 devices, 200 callers", measured: fmt.Sprintf("%.0f/s", group),
		peer: fmt.Sprintf("%.1fx one transaction each (%.0f/s)", group/naive, naive),
	})
	r.table.add(figure{what: name + ": shadow reads of the same", measured: fmt.Sprintf("%.0f/s", reads), target: ">= 20000/s", met: reads >= 20000})
	return nil
}

// goBench returns the median of one unit of one benchmark.
func (r *runner) goBench(pkg, name, times, unit string) (float64, error) {
	r.say("%s", name)
	out, err := exec.CommandContext(r.ctx, "go", "test", "-run", "^$", "-bench", "^"+name+"$", "-benchtime", times,
		"-count", strconv.Itoa(storeRuns), pkg).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("%s: %w: %s", name, err, out)
	}
	var values []float64
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		fields := strings.Fields(s.Text())
		for i, field := range fields {
			if field != unit || !strings.HasPrefix(fields[0], name) {
				continue
			}
			v, err := strconv.ParseFloat(fields[i-1], 64)
			if err != nil {
				return 0, fmt.Errorf("%s: %w", name, err)
			}
			values = append(values, v)
		}
	}
	if len(values) != storeRuns {
		return 0, fmt.Errorf("%s: %d values of %s in %s", name, len(values), unit, out)
	}
	return median(values), nil
}
