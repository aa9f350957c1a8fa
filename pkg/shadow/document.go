package shadow

import (
	"fmt"
	"strconv"
	"time"
)

// Document is one shadow. The zero value is a shadow that never existed.
type Document struct {
	// Desired and Reported are JSON objects: their values are bool,
	// json.Number, string, []any and map[string]any, never null and never an
	// empty object outside an array. A nil map means the section is absent;
	// a section without keys is absent too.
	Desired, Reported map[string]any
	// DesiredMeta and ReportedMeta say when the leaves of the sections were last
	// written: nil for an absent section, a Stamp when all leaves of a value
	// were written at once, and else a map[string]any of the same for its
	// members. An array is always written as a whole.
	DesiredMeta, ReportedMeta any
	// Version is 0 when the shadow never existed, and rises by one with every
	// accepted update. It survives deletion: the store keeps a document with
	// only Version set, see Deleted.
	Version int64
	// UpdatedAt is the time of the last update, in UTC and whole
	// milliseconds. It is zero when the shadow does not exist.
	UpdatedAt time.Time
}

// Stamp is when a leaf was last written, in seconds since the Unix epoch. It
// is a type of its own, so that user data {"timestamp":1} is never taken for
// one.
type Stamp int64

// Exists reports whether d is a live shadow: one that was created and not
// deleted since. Both of its sections may be absent.
func (d Document) Exists() bool { return !d.UpdatedAt.IsZero() }

// Deleted returns the tombstone of d: nothing but its version.
func (d Document) Deleted() Document { return Document{Version: d.Version} }

// Delta returns Delta(d.Desired, d.Reported).
func (d Document) Delta() map[string]any { return Delta(d.Desired, d.Reported) }

// MarshalJSON returns the stored form of d:
//
//	{"desired":{..},"reported":{..},
//	 "desiredMeta":{..},"reportedMeta":{..},"updatedAt":1700000000000,"version":7}
//
// Absent sections are left out, as is updatedAt (milliseconds since the Unix
// epoch) when d does not exist. A Stamp is a bare number, which stands for all
// leaves below it; most devices report everything at once. Keys are in order of
// their bytes, there is no white space and numbers keep their text, so equal
// documents have equal bytes and unmarshalling and marshalling again changes
// nothing. It fails on values of types that Document does not list.
func (d Document) MarshalJSON() ([]byte, error) { return d.Append(make([]byte, 0, storedGuess)) }

// Append appends what MarshalJSON returns to b, for who has many to store.
func (d Document) Append(b []byte) ([]byte, error) {
	var keys [keysGuess]string
	e := encoder{buf: append(b, '{'), keys: keys[:0]}
	e.section("desired", d.Desired)
	e.section("reported", d.Reported)
	e.stored("desiredMeta", d.DesiredMeta)
	e.stored("reportedMeta", d.ReportedMeta)
	if d.Exists() {
		e.member("updatedAt")
		e.buf = strconv.AppendInt(e.buf, d.UpdatedAt.UnixMilli(), 10)
	}
	e.member("version")
	e.buf = strconv.AppendInt(e.buf, d.Version, 10)
	e.buf = append(e.buf, '}')
	if e.foreign != nil {
		return nil, fmt.Errorf("encode shadow: value of type %T is not JSON: use the types shadow.Document lists", e.foreign)
	}
	return e.buf, nil
}

// storedGuess is a first guess of the bytes of a stored document. Measuring it
// first costs more than growing does.
const storedGuess = 1536

// stored writes a member of metadata, unless there is none.
func (e *encoder) stored(name string, meta any) {
	if meta != nil {
		e.member(name)
		e.value(meta)
	}
}

// UnmarshalJSON is ParseDocument; it keeps no reference to b.
func (d *Document) UnmarshalJSON(b []byte) (err error) {
	*d, err = ParseDocument(string(b))
	return err
}

// ParseDocument reads the stored form, which lives on in the strings of the
// document. Unknown members are passed over.
func ParseDocument(stored string) (Document, error) {
	v, err := parseJSON(stored)
	if err != nil {
		return Document{}, fmt.Errorf("decode shadow: %w", err)
	}
	top, ok := v.(map[string]any)
	if !ok {
		return Document{}, fmt.Errorf("decode shadow: not an object")
	}
	r := storedReader{top: top}
	d := Document{
		Desired:      r.state("desired"),
		Reported:     r.state("reported"),
		DesiredMeta:  r.meta("desiredMeta"),
		ReportedMeta: r.meta("reportedMeta"),
		Version:      r.int("version"),
	}
	if _, ok := top["updatedAt"]; ok {
		d.UpdatedAt = time.UnixMilli(r.int("updatedAt")).UTC()
	}
	if r.err != nil {
		return Document{}, r.err
	}
	return d, nil
}

// storedReader picks the members of a stored document and keeps the first
// fault.
type storedReader struct {
	top map[string]any
	err error
}

func (r *storedReader) fail(name, want string) {
	if r.err == nil {
		r.err = fmt.Errorf("decode shadow: %s: want %s", name, want)
	}
}

func (r *storedReader) object(name string) map[string]any {
	v, ok := r.top[name]
	if !ok {
		return nil
	}
	m, ok := v.(map[string]any)
	if !ok {
		r.fail(name, "an object")
	}
	if len(m) == 0 {
		return nil
	}
	return m
}

func (r *storedReader) state(name string) map[string]any {
	m := r.object(name)
	if hasNull(m) {
		r.fail(name, "no null")
	}
	return m
}

func (r *storedReader) meta(name string) any {
	v, ok := r.top[name]
	if !ok {
		return nil
	}
	if m, ok := v.(map[string]any); ok && len(m) == 0 {
		return nil
	}
	return r.stamps(name, v)
}

// stamps turns the numbers of v into Stamps, in place, and what was written at
// once into one of them. An array of stamps is read too; an empty one tells
// nothing.
func (r *storedReader) stamps(name string, v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, c := range v {
			v[k] = r.stamps(name, c)
		}
		return folded(v)
	case []any:
		newest := Stamp(0)
		for _, c := range v {
			if s, ok := r.stamps(name, c).(Stamp); ok {
				newest = max(newest, s)
			}
		}
		return newest
	}
	n, ok := integer(v)
	if !ok {
		r.fail(name, "whole seconds at every leaf")
	}
	return Stamp(n)
}

// folded is the one Stamp that all members have, or the members.
func folded(members map[string]any) any {
	var all any
	for _, v := range members {
		if _, ok := v.(Stamp); !ok || all != nil && v != all {
			return members
		}
		all = v
	}
	if all == nil {
		return members
	}
	return all
}

func (r *storedReader) int(name string) int64 {
	v, ok := r.top[name]
	if !ok {
		return 0
	}
	n, ok := integer(v)
	if !ok {
		r.fail(name, "an integer")
	}
	return n
}
