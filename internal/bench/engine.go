package main

import (
	"fmt"
	"time"
)

// engineSize is a fleet that the rollout engine is measured with, and how often.
type engineSize struct {
	name        string // of the benchmark
	devices     string // in the table
	runs        int
	plan, opens map[string]time.Duration // what is asked, by database; missing: nothing
}

var (
	engine100k = engineSize{name: "100k", devices: "100,000", runs: storeRuns,
		opens: map[string]time.Duration{"sqlite": 2 * time.Second, "postgres": 500 * time.Millisecond}}
	engine1M = engineSize{name: "1M", devices: "1,000,000", runs: 1,
		plan:  map[string]time.Duration{"sqlite": 5 * time.Second, "postgres": 5 * time.Second},
		opens: map[string]time.Duration{"postgres": 5 * time.Second}}
)

// What is asked of the engine besides, of either database.
const (
	tellsTarget   = 10_000
	nextsTarget   = 10_000
	reportsTarget = 5_000
	showTarget    = 20 * time.Millisecond
	stopTarget    = time.Second
)

// engine returns the section that measures the rollout engine in one database.
func engine(database, title string, size engineSize) func(*runner) error {
	return func(r *runner) error {
		name := "BenchmarkRollout/" + database + "/" + size.name
		m, err := r.goBench(goBenchmark{pkg: "./internal/bench", pattern: name, times: "1x", runs: size.runs})
		if err != nil {
			return err
		}
		seconds := func(unit string) time.Duration { return time.Duration(m.of(name, unit) * float64(time.Second)) }
		within := func(what, unit string, target time.Duration, peer string) {
			f := figure{what: "  " + what, measured: showShort(seconds(unit)), peer: peer}
			if target > 0 {
				f.target, f.met = "< "+target.String(), seconds(unit) < target
			}
			r.table.add(f)
		}
		atLeast := func(what, unit string, target int) {
			f := figure{what: "  " + what, measured: fmt.Sprintf("%.0f/s", m.of(name, unit))}
			if target > 0 {
				f.target, f.met = fmt.Sprintf(">= %d/s", target), m.of(name, unit) >= float64(target)
			}
			r.table.add(f)
		}
		plan := figure{what: title + ": a rollout over " + size.devices + " devices planned", measured: fmt.Sprintf("%s, %.0f MiB more", showShort(seconds("s/plan")), m.of(name, "MiB/plan"))}
		if target, ok := size.plan[database]; ok {
			plan.target, plan.met = "< "+target.String(), seconds("s/plan") < target
		}
		r.table.add(plan)
		within("created: judged once, put in line", "s/create", 0, "")
		within("a stage of all of them opened: 1,000 all along the line ask at once, and have their work", "s/open", size.opens[database], "")
		within("an execution made for each of them", "s/rows", 0,
			fmt.Sprintf("%s at the rate of one by one", showShort(seconds("s/open-naive-at-that-rate"))))
		atLeast("devices told, unpaced", "told/s", tellsTarget)
		atLeast("asked what to do next", "next/s", nextsTarget)
		atLeast("started, durable", "starts/s", 0)
		atLeast("reported, durable", "reports/s", reportsTarget)
		within("status while it runs", "s/show", showTarget, showShort(seconds("s/show-naive"))+" to count")
		within("nothing starts any more after the report that trips its abort rule", "s/stopped", stopTarget, "")
		within("all that waited cancelled", "s/ended", 0, "")
		return nil
	}
}

// engineIdle measures what the engine costs while nothing moves.
func (r *runner) engineIdle() error {
	const name = "BenchmarkIdle"
	m, err := r.goBench(goBenchmark{pkg: "./internal/bench", pattern: name, times: "1x", runs: storeRuns})
	if err != nil {
		return err
	}
	r.table.add(figure{
		what: "SQLite: nothing moves, 1,000 rollouts are paused", measured: fmt.Sprintf("%.2f %% of a core", m.of(name+"/paused", "%cpu")),
		peer: fmt.Sprintf("%.2f %% with none", m.of(name+"/none", "%cpu")),
	})
	return nil
}

// showShort has three digits of a time that may be short.
func showShort(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%.3g ms", d.Seconds()*1000)
	}
	return fmt.Sprintf("%.3g s", d.Seconds())
}
