package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// figure is one line of the table.
type figure struct {
	what     string
	measured string
	target   string // empty: none was set
	met      bool
	peer     string // ratio to a peer of the same run
}

func (f figure) verdict() string {
	switch {
	case f.target == "":
		return ""
	case f.met:
		return "pass"
	}
	return "short"
}

// table is what is printed at the end, as Markdown that a person can read too.
type table []figure

func (t *table) add(f figure) { *t = append(*t, f) }

func (t table) print(w io.Writer) error {
	rows := [][]string{{"Figure", "Measured", "Target", "", "Peer in the same run"}}
	for _, f := range t {
		rows = append(rows, []string{f.what, f.measured, f.target, f.verdict(), f.peer})
	}
	width := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			row[i] = strings.ReplaceAll(cell, "|", `\|`)
			width[i] = max(width[i], utf8.RuneCountInString(row[i]), 3)
		}
	}
	var b strings.Builder
	for n, row := range rows {
		for i, cell := range row {
			fmt.Fprintf(&b, "| %s%s ", cell, strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell)))
		}
		b.WriteString("|\n")
		if n == 0 {
			for _, w := range width {
				b.WriteString("|" + strings.Repeat("-", w+2))
			}
			b.WriteString("|\n")
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// median of an odd number of values is one of them; of an even number, the
// lower of the two in the middle. It must not be empty.
func median[T int64 | float64 | time.Duration](values []T) T {
	sorted := slices.Clone(values)
	slices.Sort(sorted)
	return sorted[(len(sorted)-1)/2]
}

// spread shows the least and the largest.
func spread[T int64 | float64 | time.Duration](values []T, show func(T) string) string {
	return show(slices.Min(values)) + " to " + show(slices.Max(values))
}

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30
)

// megabytes a second, in millions of bytes.
func rate(bytes int64, d time.Duration) float64 { return float64(bytes) / 1e6 / d.Seconds() }

func showRate(v float64) string { return fmt.Sprintf("%.0f MB/s", v) }

func showSeconds(d time.Duration) string { return fmt.Sprintf("%.2f s", d.Seconds()) }

// showMB shows bytes in millions, as the targets are meant.
func showMB(bytes int64) string { return fmt.Sprintf("%.1f MB", float64(bytes)/1e6) }
