package main

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/otad/otad/pkg/ota"
)

// rolloutWatch shows the states of one rollout as they come: redrawn on a
// terminal, a line for each change elsewhere, documents with -o json and yaml.
type rolloutWatch struct {
	app     *app
	started bool
	last    rolloutView
	lines   int // that the last drawing took
	pace    pace
	silent  bool // nothing is shown
}

func (a *app) newRolloutWatch() *rolloutWatch { return &rolloutWatch{app: a} }

// drawEvery is how often a drawing is renewed though nothing happens: the times in it
// go on.
const drawEvery = time.Second

// follow shows what receive returns, until the rollout has ended or nothing more comes.
// Cancel must make receive return. It reports whether anything came, and whether the
// rollout is over.
func (w *rolloutWatch) follow(receive func() (rolloutView, bool), cancel func()) (came, over bool, err error) {
	views := make(chan rolloutView)
	go func() {
		defer close(views)
		for r, ok := receive(); ok; r, ok = receive() {
			views <- r
		}
	}()
	defer func() {
		cancel()
		for range views { // until it has ended
		}
	}()
	renew := time.NewTicker(drawEvery)
	defer renew.Stop()
	for {
		select {
		case r, ok := <-views:
			if !ok {
				return came, false, nil
			}
			came = true
			if err := w.show(r); err != nil {
				return came, false, err
			}
			if over, err := r.outcome(); over {
				return came, true, err
			}
		case <-renew.C:
			if w.draws() && came {
				if err := w.redraw(w.last); err != nil {
					return came, false, err
				}
			}
		}
	}
}

// draws reports whether it is a drawing that is shown.
func (w *rolloutWatch) draws() bool {
	table := w.app.flags.output == formatTable || w.app.flags.output == formatWide
	return !w.silent && table && w.app.terminal(w.app.stdout)
}

func (w *rolloutWatch) show(r rolloutView) error {
	defer func() { w.last, w.started = r, true }()
	a := w.app
	if w.silent {
		return nil
	}
	switch a.flags.output {
	case formatJSON, formatJSONL:
		return writeJSONLine(a.stdout, r)
	case formatYAML:
		fmt.Fprintln(a.stdout, "---")
		return writeYAML(a.stdout, r)
	case formatName:
		return nil
	}
	if w.draws() {
		return w.redraw(r)
	}
	return w.changes(r)
}

// redraw replaces the last drawing.
func (w *rolloutWatch) redraw(r rolloutView) error {
	a := w.app
	var b bytes.Buffer
	if w.lines > 0 {
		fmt.Fprintf(&b, "\x1b[%dA\x1b[J", w.lines)
	}
	var body bytes.Buffer
	state := a.paint(a.stdout, stateColour(r.State), r.State)
	fmt.Fprintf(&body, "%s  %s  %s", r.ID, printable(first(r.Firmware, r.Command.text())), state)
	if r.Reason != "" {
		fmt.Fprintf(&body, "  %s", printable(r.Reason))
	}
	if r.Holds {
		fmt.Fprint(&body, "  devices at work wait")
	}
	if r.Idle {
		fmt.Fprint(&body, "  waits for devices that join")
	}
	if r.State == string(ota.RolloutScheduled) && r.Terms.Start != nil {
		fmt.Fprintf(&body, "  starts %s", a.ago(r.Terms.Start))
	}
	body.WriteByte('\n')
	if err := writeTable(&body, []string{"STAGE", "SIZE", "STATE", "DONE", "SHARE", "IN PROGRESS", "QUEUED", "UNSUCCESSFUL"}, drawnRows(r, a.now())); err != nil {
		return err
	}
	if r.Health != nil {
		body.WriteByte('\n')
		if err := writeTable(&body, healthHeads, r.Health.rows()); err != nil {
			return err
		}
	}
	if line := w.pace.text(r, a.now()); line != "" {
		fmt.Fprintf(&body, "%s\n", line)
	}
	if err := a.writeDevices(&body, r, drawnAtWork, drawnFailures); err != nil {
		return err
	}
	w.lines = bytes.Count(body.Bytes(), []byte{'\n'})
	b.Write(body.Bytes())
	_, err := io.Copy(a.stdout, &b)
	return err
}

// How many of those at work, and of the last failures, are drawn.
const drawnAtWork, drawnFailures = 3, 5

// pace is how fast devices were done lately.
type pace struct{ seen []seen }

type seen struct {
	at   time.Time
	done int32
}

// paceSpan is over how long it is taken.
const paceSpan = time.Minute

// text says how many devices a minute are done, and how long the others of the
// stages would take at that; empty when nothing is known of it.
func (p *pace) text(r rolloutView, now time.Time) string {
	var done, target int32
	for _, s := range r.Stages {
		done += s.Counts.succeeded() + s.Counts.bad()
		target = max(target, s.Target)
	}
	for len(p.seen) > 1 && now.Sub(p.seen[1].at) >= paceSpan {
		p.seen = p.seen[1:]
	}
	p.seen = append(p.seen, seen{now, done})
	span, n := now.Sub(p.seen[0].at), done-p.seen[0].done
	if r.State != string(ota.RolloutRunning) || span < time.Second || n <= 0 {
		return ""
	}
	perMinute := float64(n) / span.Minutes()
	text := fmt.Sprintf("%.0f devices a minute", perMinute)
	if left := target - done; left > 0 {
		text += fmt.Sprintf("; at that, %s for the %d left", (time.Duration(float64(left) / perMinute * float64(time.Minute))).Round(time.Second), left)
	}
	return text
}

func drawnRows(r rolloutView, now time.Time) [][]string {
	var rows [][]string
	sizes := r.sizes()
	for i, s := range r.Stages {
		size := sizes[i]
		done := s.Counts.succeeded() + s.Counts.bad()
		rows = append(rows, []string{
			fmt.Sprint(i + 1), s.Size, s.countdown(now), fmt.Sprintf("%d/%d", done, size), gauge(done, size),
			s.Counts.inProgress(), number(s.Counts.Queued), first(s.Counts.badText(), "0"),
		})
	}
	return rows
}

// countdown is the state of a stage, and how long it still soaks.
func (s stageView) countdown(now time.Time) string {
	soak, err := time.ParseDuration(s.Soak)
	if s.State != string(ota.StageSoaking) || s.SoakingAt == nil || err != nil {
		return s.standing()
	}
	left := s.SoakingAt.Add(soak).Sub(now).Round(time.Second)
	if left <= 0 {
		return s.State
	}
	return s.State + ", " + left.String() + " left"
}

// gauge draws a share as a bar of fixed width.
func gauge(done, of int32) string {
	const width = 20
	full := 0
	if of > 0 {
		full = min(width, width*int(done)/int(of))
	}
	return "[" + strings.Repeat("#", full) + strings.Repeat(".", width-full) + "]"
}

// changes writes what differs from the last state, a line each.
func (w *rolloutWatch) changes(r rolloutView) error {
	for _, line := range rolloutChanges(w.last, r) {
		if _, err := fmt.Fprintf(w.app.stdout, "%s  %s\n", w.app.now().Format("15:04:05"), printable(line)); err != nil {
			return err
		}
	}
	return nil
}

func rolloutChanges(before, after rolloutView) []string {
	var lines []string
	for i, s := range after.Stages {
		var old stageView
		if i < len(before.Stages) {
			old = before.Stages[i]
		}
		line := stageLine(i+1, s)
		if s.Counts.total()+s.Target > 0 && line != stageLine(i+1, old) {
			lines = append(lines, line)
		}
	}
	lines = append(lines, after.Health.changes(before.Health)...)
	if after.Idle && !before.Idle {
		lines = append(lines, "rollout "+after.ID+" waits for devices that join")
	}
	if after.State != before.State || after.Reason != before.Reason {
		line := "rollout " + after.ID + " " + after.State
		if after.Reason != "" {
			line += ": " + after.Reason
		}
		lines = append(lines, line)
	}
	return lines
}

func (c countsView) total() int32 {
	n := c.Queued + c.InProgress
	for _, v := range c.Finished {
		n += v
	}
	return n
}

func stageLine(n int, s stageView) string {
	line := fmt.Sprintf("stage %d (%s) %s: %d succeeded, %d in progress, %d queued", n, s.Size, s.standing(),
		s.Counts.succeeded(), s.Counts.InProgress, s.Counts.Queued)
	if n := s.Counts.underway(); n > 0 {
		line += fmt.Sprintf(", %d underway", n)
	}
	if bad := s.Counts.badText(); bad != "" {
		line += ", " + bad
	}
	return line
}
