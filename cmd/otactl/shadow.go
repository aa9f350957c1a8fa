package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/shadow"
	otadv1 "github.com/otad/otad/proto/otad/v1"
)

func newShadowCmd(a *app) *cobra.Command {
	return noun(&cobra.Command{Use: "shadow", Short: "Read, change and watch device shadows"},
		newShadowGetCmd(a), newShadowSetCmd(a), newShadowWatchCmd(a), newShadowQueryCmd(a))
}

// shadowDoc is a shadow as the server sends it, in the shape of AWS IoT.
type shadowDoc struct {
	State struct {
		Desired  map[string]any `json:"desired"`
		Reported map[string]any `json:"reported"`
		Delta    map[string]any `json:"delta"`
	} `json:"state"`
	Version int64 `json:"version"`
	raw     json.RawMessage
}

func parseShadow(raw []byte) (shadowDoc, error) {
	d := shadowDoc{raw: raw}
	if err := decodeNumbers(raw, &d); err != nil {
		return d, fmt.Errorf("read the shadow that the server sent: %w", err)
	}
	return d, nil
}

// decodeNumbers decodes one JSON value and keeps numbers as they are written.
func decodeNumbers(raw []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if dec.More() {
		return errors.New("more than one JSON value")
	}
	return nil
}

// checkShadowArgs refuses ids and names that no shadow can have, before
// anything is sent.
func checkShadowArgs(id, name string) error {
	if err := ota.ValidateDeviceID(id); err != nil {
		return err
	}
	if name == "" {
		return nil
	}
	if err := shadow.ValidateName(name); err != nil {
		return usage("%w", err)
	}
	return nil
}

func nameFlag(cmd *cobra.Command, name *string) {
	cmd.Flags().StringVar(name, "name", "", "named shadow (default: the classic one)")
}

func newShadowGetCmd(a *app) *cobra.Command {
	var name, path string
	cmd := &cobra.Command{
		Use: "get ID", Short: "Show a shadow", Args: takes("ID"),
		Long: `get shows every value of the shadow beside what was reported for it. With --path
it writes one value alone, a string without quotes unless -o json asks for JSON.`,
		Example: "  otactl shadow get gw-1 --path reported.firmware.version",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkShadowArgs(args[0], name); err != nil {
				return err
			}
			if err := checkPath(path); err != nil {
				return err
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			doc, err := c.getShadow(cmd.Context(), args[0], name)
			if err != nil {
				return err
			}
			if path != "" {
				return a.printPath(doc, path)
			}
			return a.printShadow(args[0], doc)
		},
	}
	nameFlag(cmd, &name)
	cmd.Flags().StringVar(&path, "path", "", "only this value, such as reported.firmware")
	return cmd
}

func (c *client) getShadow(ctx context.Context, id, name string) (shadowDoc, error) {
	resp, err := call(ctx, c.shadows.GetShadow, &otadv1.GetShadowRequest{DeviceId: id, Name: name})
	if err != nil {
		return shadowDoc{}, err
	}
	return parseShadow(resp.GetDocument())
}

func checkPath(path string) error {
	head, _, _ := strings.Cut(path, ".")
	if path == "" || head == "desired" || head == "reported" || head == "delta" {
		return nil
	}
	return usage("path %q: starts with desired, reported or delta, such as reported.firmware", path)
}

func (a *app) printPath(doc shadowDoc, path string) error {
	value, ok := lookup(map[string]any{
		"desired": doc.State.Desired, "reported": doc.State.Reported, "delta": doc.State.Delta,
	}, strings.Split(path, "."))
	if !ok {
		return fail(exitNotFound, "the shadow has no %s", path)
	}
	if a.flags.output == formatTable || a.flags.output == formatWide {
		if s, ok := value.(string); ok {
			_, err := fmt.Fprintln(a.stdout, printable(s))
			return err
		}
		return writeJSON(a.stdout, value)
	}
	return printOne(a, value, path, nil)
}

// lookup follows a path through nested objects.
func lookup(v any, path []string) (any, bool) {
	for _, key := range path {
		m, _ := v.(map[string]any)
		next, ok := m[key]
		if !ok {
			return nil, false
		}
		v = next
	}
	if m, ok := v.(map[string]any); ok && m == nil {
		return nil, false
	}
	return v, true
}

func (a *app) printShadow(id string, doc shadowDoc) error {
	return printOne(a, doc.raw, id, func(w io.Writer) error {
		fmt.Fprintf(w, "%s   version %d\n", printable(id), doc.Version)
		var heads []string
		if !a.flags.noHeaders {
			heads = []string{"PATH", "DESIRED", "REPORTED"}
		}
		rows := shadowRows(doc)
		if len(rows) == 0 {
			return nil
		}
		return writeTable(w, heads, rows)
	})
}

// shadowRows lists every leaf of both sections in the order of its path.
func shadowRows(doc shadowDoc) [][]string {
	desired, reported := map[string]string{}, map[string]string{}
	flatten("", doc.State.Desired, desired)
	flatten("", doc.State.Reported, reported)
	paths := map[string]bool{}
	for p := range desired {
		paths[p] = true
	}
	for p := range reported {
		paths[p] = true
	}
	var rows [][]string
	for _, p := range sortedKeys(paths) {
		rows = append(rows, []string{p, desired[p], reported[p]})
	}
	return rows
}

func flatten(prefix string, m map[string]any, into map[string]string) {
	for k, v := range m {
		if k != printable(k) {
			k = strconv.Quote(k) // or it would look like another one
		}
		path := strings.TrimPrefix(prefix+"."+k, ".")
		if child, ok := v.(map[string]any); ok && len(child) > 0 {
			flatten(path, child, into)
			continue
		}
		text, _ := json.Marshal(v)
		into[path] = string(text)
	}
}

// shadowSet are the options of shadow set.
type shadowSet struct {
	id, name, file string
	words          []string
	version        int64
}

func newShadowSetCmd(a *app) *cobra.Command {
	var s shadowSet
	cmd := &cobra.Command{
		Use: "set ID [k=v | k-]... | -f FILE", Short: "Change the desired section of a shadow",
		Long: `set changes desired values and shows the new version. A value is JSON when it
can be read as such, else a string: led=on, limit=20, limits={"low":3}. A dotted
key reaches into objects; "k-" removes k.

-f FILE (- for standard input) makes the file, a JSON object, the whole desired
section: what is not in it is removed. --version V refuses the change unless the
shadow has that version.`,
		Example: "  otactl shadow set gw-1 interval=30 net.apn=internet old-key-\n  otactl shadow set gw-1 -f desired.json --version 12",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 || (len(args) == 1) == (s.file == "") {
				return hint(usage("want an ID and either k=v changes or -f FILE"), "usage: %s", cmd.UseLine())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			s.id, s.words = args[0], args[1:]
			return a.setShadow(cmd.Context(), s)
		},
	}
	nameFlag(cmd, &s.name)
	cmd.Flags().StringVarP(&s.file, "file", "f", "", "JSON file with the whole desired section")
	cmd.Flags().Int64Var(&s.version, "version", 0, "only if the shadow has this version")
	return cmd
}

func (a *app) setShadow(ctx context.Context, s shadowSet) error {
	if err := checkShadowArgs(s.id, s.name); err != nil {
		return err
	}
	if s.version < 0 {
		return usage("--version %d: want a version from 1", s.version)
	}
	wanted, err := a.wantedState(s)
	if err != nil {
		return err
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	patch, version := wanted, s.version
	if s.file != "" {
		if patch, version, err = c.replacement(ctx, s, wanted); err != nil {
			return err
		}
	}
	resp, err := call(ctx, c.shadows.UpdateShadow, &otadv1.UpdateShadowRequest{
		DeviceId: s.id, Name: s.name, Update: shadowUpdate(patch, version),
	})
	if err != nil {
		return shadowConflict(err, s.id)
	}
	doc, err := parseShadow(resp.GetDocument())
	if err != nil {
		return err
	}
	return printOne(a, doc.raw, s.id, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s version %d\n", s.id, doc.Version)
		return err
	})
}

// wantedState is the file, or the changes as a merge patch.
func (a *app) wantedState(s shadowSet) (map[string]any, error) {
	var wanted map[string]any
	var err error
	if s.file != "" {
		wanted, err = a.readState(s.file)
	} else {
		wanted, err = parseChanges(s.words)
	}
	if err != nil {
		return nil, err
	}
	if raw, _ := json.Marshal(wanted); len(raw) > shadow.StateBytesCeiling && s.file != "" || len(raw) > shadow.MaxUpdateBytes {
		return nil, hint(usage("desired state of %d bytes: at most %d", len(raw), shadow.StateBytesCeiling),
			"keep documents out of the shadow, or spread them over named shadows (--name)")
	}
	return wanted, nil
}

func (a *app) readState(path string) (map[string]any, error) {
	var raw []byte
	var err error
	if path == "-" {
		raw, err = io.ReadAll(io.LimitReader(a.stdin, maxConfigBytes))
	} else {
		raw, err = readSmall(path, maxConfigBytes)
	}
	if err != nil {
		return nil, err
	}
	var state map[string]any
	if err := decodeNumbers(raw, &state); err != nil || state == nil {
		return nil, hint(usage("%s does not hold a JSON object: %w", path, errors.Join(err)), `write the desired section itself, such as {"interval": 30}`)
	}
	return state, nil
}

// replacement is the patch that turns the stored desired section into the
// wanted one, bound to the version it was made from.
func (c *client) replacement(ctx context.Context, s shadowSet, wanted map[string]any) (map[string]any, int64, error) {
	doc, err := c.getShadow(ctx, s.id, s.name)
	if connect.CodeOf(err) == connect.CodeNotFound {
		return wanted, s.version, nil
	}
	if err != nil {
		return nil, 0, err
	}
	if s.version != 0 {
		doc.Version = s.version
	}
	return replace(doc.State.Desired, wanted), doc.Version, nil
}

// shadowConflict gives a lost compare and set its own remedy.
func shadowConflict(err error, id string) error {
	if connect.CodeOf(err) != connect.CodeAborted {
		return err
	}
	return hint(err, "look at it with \"otactl shadow get %s\" and repeat with its version", id)
}
