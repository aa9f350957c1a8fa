// Command bench measures the figures of docs/benchmarks.md on this machine, with
// the programs themselves as processes over TLS on loopback, and prints one table.
//
// The parties: otad, otagent and otactl as built; as peers, curl and zstd in the
// same run. scripts/bench.sh prepares what it needs. It judges nothing but its
// table: a figure short of its target is no failure, since a busy machine is none
// of the project's faults. It is not a test.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options are the command line.
type options struct {
	bin     string // directory of otad, otactl and otagent
	kernels string // directory of old and new, two real kernels
	only    string // sections, separated by commas; empty: all
	row     string // a word of the rows of the broker to run; empty: all
	rounds  int    // of the rows of the broker
	keep    bool
	hold    time.Duration // of the section held
}

// runner is one run of the benchmark.
type runner struct {
	options
	ctx   context.Context
	dir   string    // everything that is written
	log   io.Writer // what goes on, for whoever waits
	table table
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := asPart(ctx, os.Args[1:]); !errors.Is(err, errNoPart) {
		if err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			stop()
			os.Exit(1)
		}
		return
	}
	var o options
	flag.StringVar(&o.bin, "bin", "bin", "`directory` of otad, otactl and otagent")
	flag.StringVar(&o.kernels, "kernels", ".cache/kernels", "`directory` of two kernels, old and new")
	flag.StringVar(&o.only, "only", "", "sections to run: "+strings.Join(sectionNames(), ",")+" (default: all but held and million)")
	flag.StringVar(&o.row, "row", "", "a `word` in the names of the broker's loads and abuses to run (default: all)")
	flag.IntVar(&o.rounds, "rounds", brokerRounds, "`rounds` of each of the broker's rows")
	flag.BoolVar(&o.keep, "keep", false, "leave the directory of the run")
	flag.DurationVar(&o.hold, "hold", time.Minute, "how long the section held lasts")
	flag.Parse()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

var errNoPart = errors.New("not a part")

// asPart is this program started by itself, to be a process beside the one that
// measures.
func asPart(ctx context.Context, args []string) error {
	switch {
	case len(args) == 2 && args[0] == sinkArgument:
		return serveSink(ctx, args[1])
	case len(args) == 3 && args[0] == abuserArgument:
		return abuse(ctx, args[1], args[2])
	}
	return errNoPart
}

// sections in the order of the table.
var sections = []struct {
	name string
	run  func(*runner) error
	when occasion
}{
	{"encode", (*runner).encode, always},
	{"size", (*runner).size, always},
	{"idle", (*runner).idle, always},
	{"download", (*runner).download, always},
	{"stream", (*runner).stream, always},
	{"shadow-sqlite", (*runner).shadowsSQLite, always},
	{"shadow-postgres", (*runner).shadowsPostgres, always},
	{"broker-idle", unlimited((*brokers).idlePlain), always},
	{"broker-tls", unlimited((*brokers).idleTLS), always},
	{"broker-traffic", unlimited((*brokers).throughput), always},
	{"broker-ingest", unlimited((*brokers).inProcess), always},
	{"broker-connect", unlimited((*brokers).connects), always},
	{"broker-abuse", limited((*brokers).abused), always},
	{"store-sqlite", (*runner).storeSQLite, always},
	{"store-postgres", (*runner).storePostgres, always},
	{"group-sqlite", (*runner).groupSQLite, always},
	{"group-postgres", (*runner).groupPostgres, always},
	{"select", (*runner).selects, always},
	{"plan", (*runner).plans, always},
	{"engine-sqlite", engine("sqlite", "SQLite", engine100k), always},
	{"engine-postgres", engine("postgres", "PostgreSQL", engine100k), always},
	{"engine-idle", (*runner).engineIdle, always},
	{"million-sqlite", engine("sqlite", "SQLite", engine1M), byName},
	{"million-postgres", engine("postgres", "PostgreSQL", engine1M), byName},
	{"held", (*runner).held, byName},
}

// occasion says when a section is run.
type occasion int

const (
	always occasion = iota
	byName          // only when it is asked for: it takes long, or measures nothing
)

// wants reports whether a section is to be run: by its name, or by the part of it
// before the dash.
func (o options) wants(section string, when occasion) bool {
	group, _, _ := strings.Cut(section, "-")
	list := strings.Split(o.only, ",")
	return o.only == "" && when == always || slices.Contains(list, section) || slices.Contains(list, group)
}

func sectionNames() []string {
	var names []string
	for _, s := range sections {
		names = append(names, s.name)
	}
	return names
}

func run(ctx context.Context, o options) (err error) {
	if o.bin, err = filepath.Abs(o.bin); err != nil {
		return err
	}
	r := &runner{options: o, ctx: ctx, log: os.Stderr}
	if r.dir, err = os.MkdirTemp("", "otad-bench-"); err != nil {
		return err
	}
	defer func() {
		if o.keep {
			r.say("everything is in %s", r.dir)
			return
		}
		err = errors.Join(err, os.RemoveAll(r.dir))
	}()
	began, before := time.Now(), loadAverage()
	for _, s := range sections {
		if !o.wants(s.name, s.when) {
			continue
		}
		at := time.Now()
		if err := s.run(r); err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		r.say("%s took %s", s.name, time.Since(at).Round(time.Second))
	}
	fmt.Printf("%s\nload average before %s, after %s; %s in all\n\n", machine(), before, loadAverage(), time.Since(began).Round(time.Second))
	return r.table.print(os.Stdout)
}

func (r *runner) say(format string, args ...any) { fmt.Fprintf(r.log, "bench: "+format+"\n", args...) }

func (r *runner) path(name ...string) string {
	return filepath.Join(append([]string{r.dir}, name...)...)
}

// until looks again and again for a condition of another process, at most
// patience.
func (r *runner) until(what string, every time.Duration, ok func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(r.ctx, patience)
	defer cancel()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if done, err := ok(); done || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, ctx.Err())
		}
	}
}

const patience = 3 * time.Minute

// settle lets a process come to rest.
func (r *runner) settle(d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-r.ctx.Done():
		return r.ctx.Err()
	}
}
