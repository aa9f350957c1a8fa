package shadow

import (
	"fmt"
	"strconv"
	"time"
)

// Document is one shadow. The zero value is a shadow that never existed.
type Document struct {
	// Desired and Reported have no null and no empty object outside of arrays.
	// Empty means that the section is absent.
	Desired, Reported Object
	// DesiredAt and ReportedAt say when the leaves of the sections were last
	// written, in Unix seconds; 0: nothing says. Leaves that were written at another
	// time know it themselves. An array is always written as a whole.
	DesiredAt, ReportedAt int64
	// Version is 0 when the shadow never existed, and rises by one with every
	// accepted update. It survives deletion: the store keeps a document with
	// only Version set, see Deleted.
	Version int64
	// UpdatedAt is the time of the last update, in UTC and whole
	// milliseconds. It is zero when the shadow does not exist.
	UpdatedAt time.Time
}

// Exists reports whether d is a live shadow: one that was created and not
// deleted since. Both of its sections may be absent.
func (d Document) Exists() bool { return !d.UpdatedAt.IsZero() }

// Deleted returns the tombstone of d: nothing but its version.
func (d Document) Deleted() Document { return Document{Version: d.Version} }

// Delta returns Delta(d.Desired, d.Reported).
func (d Document) Delta() Object { return Delta(d.Desired, d.Reported) }

// size returns the bytes of desired and reported in compact JSON.
func (d Document) size() int {
	n := 0
	if len(d.Desired) > 0 {
		n += d.Desired.size()
	}
	if len(d.Reported) > 0 {
		n += d.Reported.size()
	}
	return n
}

// Append appends the stored form of d to b:
//
//	{"desired":{..},"reported":{..},
//	 "desiredMeta":{..},"reportedMeta":{..},"updatedAt":1700000000000,"version":7}
//
// Absent sections are left out, as is updatedAt (milliseconds since the Unix
// epoch) when d does not exist. The metadata say when each leaf was written, in
// seconds since the Unix epoch; a number in the place of an object stands for all
// leaves below it, for most devices report everything at once. Keys are in order of
// their bytes, there is no white space, strings have as few escapes as JSON allows and
// numbers keep their text, so equal documents have equal bytes and parsing and
// appending again changes nothing.
func (d Document) Append(b []byte) []byte {
	e := encoder{buf: append(b, '{')}
	e.section("desired", d.Desired)
	e.section("reported", d.Reported)
	e.times("desiredMeta", d.Desired.value(), d.DesiredAt)
	e.times("reportedMeta", d.Reported.value(), d.ReportedAt)
	if d.Exists() {
		e.int("updatedAt", d.UpdatedAt.UnixMilli())
	}
	e.int("version", d.Version)
	e.close()
	return e.buf
}

// ParseDocument reads the stored form, which lives on in the values of the
// document. Unknown members are passed over.
func ParseDocument(stored string) (Document, error) {
	v, err := parseJSON(stored)
	if err != nil {
		return Document{}, fmt.Errorf("decode shadow: %w", err)
	}
	if v.kind != kindObject {
		return Document{}, fmt.Errorf("decode shadow: not an object")
	}
	r := storedReader{top: v.members}
	d := Document{Version: r.int("version")}
	d.Desired, d.DesiredAt = r.section("desired", "desiredMeta")
	d.Reported, d.ReportedAt = r.section("reported", "reportedMeta")
	if _, ok := r.top.Get("updatedAt"); ok {
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
	top Object
	err error
}

func (r *storedReader) fail(name, want string) {
	if r.err == nil {
		r.err = fmt.Errorf("decode shadow: %s: want %s", name, want)
	}
}

// section reads a section with its metadata.
func (r *storedReader) section(name, meta string) (Object, int64) {
	v, ok := r.top.Get(name)
	if !ok {
		return nil, 0
	}
	if v.kind != kindObject {
		r.fail(name, "an object")
	}
	if _, nulls := v.inside(); nulls {
		r.fail(name, "no null")
	}
	if len(v.members) == 0 {
		return nil, 0
	}
	times, ok := r.top.Get(meta)
	if !ok {
		return v.members, 0
	}
	at, whole := times.integer()
	if !whole && r.err == nil && !v.setTimes(times) {
		r.fail(meta, "whole seconds at every leaf")
	}
	return v.members, at
}

func (r *storedReader) int(name string) int64 {
	v, ok := r.top.Get(name)
	if !ok {
		return 0
	}
	n, ok := v.integer()
	if !ok {
		r.fail(name, "an integer")
	}
	return n
}

// integer returns the value of a number that is a plain integer.
func (v Value) integer() (int64, bool) {
	if v.kind != kindNumber {
		return 0, false
	}
	n, err := strconv.ParseInt(v.text, 10, 64)
	return n, err == nil
}
