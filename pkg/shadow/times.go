package shadow

import (
	"cmp"
	"strconv"
)

// setTimes says when the leaves of v were written, from its metadata in the stored
// form: v is fresh from the parser. What the metadata know besides is passed over.
func (v *Value) setTimes(meta Value) bool {
	if meta.kind == kindNumber {
		at, ok := meta.integer()
		v.setTime(at)
		return ok
	}
	if v.kind != kindObject || meta.kind != kindObject {
		return false
	}
	rest := meta.members
	for i := range v.members {
		m := &v.members[i]
		for len(rest) > 0 && rest[0].Key < m.Key {
			rest = rest[1:]
		}
		if len(rest) > 0 && rest[0].Key == m.Key && !m.setTimes(rest[0].Value) {
			return false
		}
	}
	return true
}

func (v *Value) setTime(at int64) {
	if v.kind != kindObject {
		v.written = at
		return
	}
	for i := range v.members {
		v.members[i].setTime(at)
	}
}

// time says when the leaves of v were written: all at one moment, or not (mixed). Those
// that do not know were written at the given one. An object may have no leaves.
func (v *Value) time(given int64) (at int64, leaves, mixed bool) {
	if v.kind != kindObject {
		return cmp.Or(v.written, given), true, false
	}
	for i := range v.members {
		t, some, odd := v.members[i].time(given)
		if odd || some && leaves && t != at {
			return 0, true, true
		}
		if some {
			at, leaves = t, true
		}
	}
	return at, leaves, false
}

// times writes the metadata of v in the stored form, unless there are none. What does
// not know when it was written was at the given time.
func (e *encoder) times(name string, v *Value, given int64) {
	switch at, _, mixed := v.time(given); {
	case mixed:
		e.open(name)
		for i := range v.members {
			e.times(v.members[i].Key, &v.members[i].Value, given)
		}
		e.close()
	case at != 0:
		e.int(name, at)
	}
}

// stamps writes the metadata of an object as clients see them: a timestamp in the
// place of every leaf, the given one where it does not know.
func (e *encoder) stamps(o Object, given int64) {
	e.buf = append(e.buf, '{')
	for i := range o {
		v := &o[i].Value
		at := cmp.Or(v.written, given)
		if v.kind != kindObject && at == 0 {
			continue // nothing says
		}
		e.member(o[i].Key)
		e.stamp(v, at)
	}
	e.close()
}

// stamp writes a timestamp in the place of v, or of every leaf of it; of an object as
// stamps does.
func (e *encoder) stamp(v *Value, at int64) {
	switch v.kind {
	case kindObject:
		e.stamps(v.members, at)
	case kindArray:
		e.buf = append(e.buf, '[')
		for c := range v.elements() {
			if e.buf[len(e.buf)-1] != '[' {
				e.buf = append(e.buf, ',')
			}
			e.stamp(&c, at)
		}
		e.buf = append(e.buf, ']')
	default:
		e.timestamp(at)
	}
}

func (e *encoder) timestamp(at int64) {
	if e.at == at { // 0 is written nowhere
		e.buf = append(e.buf, e.buf[e.from:e.to]...)
		return
	}
	e.at, e.from = at, len(e.buf)
	e.buf = append(e.buf, `{"timestamp":`...)
	e.buf = strconv.AppendInt(e.buf, at, 10)
	e.close()
	e.to = len(e.buf)
}
