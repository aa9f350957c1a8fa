package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"go.yaml.in/yaml/v3"
)

// The output formats.
const (
	formatTable = "table"
	formatWide  = "wide"
	formatJSON  = "json"
	formatJSONL = "jsonl"
	formatYAML  = "yaml"
	formatName  = "name"
)

var formats = []string{formatTable, formatWide, formatJSON, formatJSONL, formatYAML, formatName}

func checkFormat(s string) error {
	if !slices.Contains(formats, s) {
		return usage("unknown output format %q: want %s", s, strings.Join(formats, ", "))
	}
	return nil
}

// column is one column of a table over values of T.
type column[T any] struct {
	head string
	wide bool // only with -o wide
	cell func(T) string
}

// view says how values of T look as a table and by name; json, jsonl and yaml
// come from the fields of T.
type view[T any] struct {
	name    func(T) string
	columns []column[T]
}

// printList writes values in the format that was asked for: json and yaml as
// one array, jsonl one object a line.
func printList[T any](a *app, v view[T], items []T) error {
	if items == nil {
		items = []T{}
	}
	switch a.flags.output {
	case formatJSON:
		return writeJSON(a.stdout, items)
	case formatYAML:
		return writeYAML(a.stdout, items)
	case formatJSONL:
		for _, item := range items {
			if err := writeJSONLine(a.stdout, item); err != nil {
				return err
			}
		}
		return nil
	case formatName:
		for _, item := range items {
			if _, err := fmt.Fprintln(a.stdout, v.name(item)); err != nil {
				return err
			}
		}
		return nil
	}
	return v.table(a, items)
}

// printOne writes one value: json, jsonl and yaml as one object; a table as
// show makes it.
func printOne[T any](a *app, item T, name string, show func(io.Writer) error) error {
	switch a.flags.output {
	case formatJSON:
		return writeJSON(a.stdout, item)
	case formatJSONL:
		return writeJSONLine(a.stdout, item)
	case formatYAML:
		return writeYAML(a.stdout, item)
	case formatName:
		_, err := fmt.Fprintln(a.stdout, name)
		return err
	}
	return show(a.stdout)
}

func (v view[T]) table(a *app, items []T) error {
	if len(items) == 0 {
		a.note("nothing to show")
		return nil
	}
	var heads []string
	var cells []func(T) string
	for _, c := range v.columns {
		if !c.wide || a.flags.output == formatWide {
			heads, cells = append(heads, c.head), append(cells, c.cell)
		}
	}
	rows := make([][]string, len(items))
	for i, item := range items {
		for _, cell := range cells {
			rows[i] = append(rows[i], cell(item))
		}
	}
	if a.flags.noHeaders {
		heads = nil
	}
	return writeTable(a.stdout, heads, rows)
}

// plainStyle is the look of kubectl: columns three spaces apart, no lines.
var plainStyle = table.Style{
	Name:    "plain",
	Box:     table.BoxStyle{PaddingRight: "   "},
	Options: table.OptionsNoBordersAndSeparators,
}

// writeTable writes rows under heads (none when nil); an empty cell shows as -.
func writeTable(w io.Writer, heads []string, rows [][]string) error {
	t := table.NewWriter()
	t.SetStyle(plainStyle)
	t.SuppressTrailingSpaces()
	if heads != nil {
		t.AppendHeader(tableRow(heads))
	}
	for _, row := range rows {
		t.AppendRow(tableRow(row))
	}
	if len(rows) == 0 && heads == nil {
		return nil
	}
	_, err := fmt.Fprintln(w, t.Render())
	return err
}

func tableRow(cells []string) table.Row {
	row := make(table.Row, len(cells))
	for i, c := range cells {
		if c == "" {
			c = "-"
		}
		row[i] = strings.NewReplacer("\n", " ", "\t", " ").Replace(printable(c))
	}
	return row
}

// field is one line of a show command.
type field struct{ name, value string }

// writeFields writes "Name:   value" lines; empty values are left out.
func writeFields(w io.Writer, fields []field) error {
	var rows [][]string
	for _, f := range fields {
		if f.value != "" {
			rows = append(rows, []string{f.name + ":", f.value})
		}
	}
	return writeTable(w, nil, rows)
}

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func writeJSONLine(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// writeYAML writes the JSON form of v as block YAML, so that both have the same
// names in the same order.
func writeYAML(w io.Writer, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return err
	}
	var node yaml.Node
	if err := yaml.Unmarshal(raw, &node); err != nil {
		return err
	}
	blockStyle(&node)
	enc := yaml.NewEncoder(w)
	enc.SetIndent(2)
	if err := enc.Encode(&node); err != nil {
		return err
	}
	return enc.Close()
}

// blockStyle drops the flow style that came from JSON; empty collections keep
// it, being unreadable otherwise.
func blockStyle(n *yaml.Node) {
	if n.Kind == yaml.ScalarNode || len(n.Content) > 0 {
		n.Style = 0
	}
	for _, c := range n.Content {
		blockStyle(c)
	}
}

// ago says how long before now a time was: "3m ago"; empty for the zero time.
func (a *app) ago(t *time.Time) string {
	if t == nil || t.IsZero() {
		return ""
	}
	d := a.now().Sub(*t)
	if d < 0 {
		return "in " + shortDuration(-d)
	}
	return shortDuration(d) + " ago"
}

// shortDuration keeps the largest unit: 45s, 3m, 5h, 12d.
func shortDuration(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// byteSize writes a count of bytes for people: 812 B, 4.2 MiB.
func byteSize(n int64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	v, units := float64(n), "KMGTP"
	i := -1
	for v >= 1024 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	return fmt.Sprintf("%.1f %ciB", v, units[i])
}

// tagText writes tags as k=v in the order of their keys.
func tagText(tags map[string]string) string {
	var parts []string
	for _, k := range sortedKeys(tags) {
		parts = append(parts, k+"="+tags[k])
	}
	return strings.Join(parts, ",")
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
