package shadow

// Merge returns base with patch merged in: objects recurse, null removes a
// key, every other value replaces what was there. Objects that end up empty
// are left out, whether by removal or because the patch has {} for a key that
// held no object. The result shares values with base and with patch, and is nil
// when nothing is left.
func Merge(base, patch Object) Object {
	var m merger
	return m.object(base, patch)
}

// merger merges sections.
type merger struct {
	now     int64 // when what the patches say was written
	changed bool
}

// section applies p to a section that was written at, and says when the result was,
// see Document. A patch that says all there is, as most devices report, is the result
// itself.
func (m *merger) section(base Object, at int64, p Patch) (Object, int64) {
	switch {
	case !p.Set:
		return base, at
	case p.Object == nil:
		m.changed = m.changed || len(base) > 0
		return nil, 0
	case len(p.Object) > 0 && replaces(p.Object, base):
		m.changed = m.changed || !p.Object.Equal(base)
		return p.Object, m.now
	}
	merged := m.object(base, p.Object)
	if len(merged) == 0 {
		at = 0
	}
	return merged, at
}

// replaces reports whether nothing of base is left when patch is merged into it, and
// all of patch is then there.
func replaces(patch, base Object) bool {
	for i := range patch {
		p := &patch[i]
		var below Object
		switch {
		case len(base) == 0:
		case base[0].Key == p.Key:
			below, base = base[0].members, base[1:]
		case base[0].Key < p.Key:
			return false
		}
		switch {
		case p.kind == kindNull:
			return false
		case p.kind == kindObject && (len(p.members) == 0 || !replaces(p.members, below)):
			return false
		}
	}
	return len(base) == 0
}

// object merges patch into base. Both are in order, so it goes through them once.
func (m *merger) object(base, patch Object) Object {
	if len(patch) == 0 {
		return base
	}
	out := make(Object, 0, max(len(base), len(patch)))
	for len(patch) > 0 {
		p := &patch[0]
		for len(base) > 0 && base[0].Key < p.Key {
			out = append(out, base[0])
			base = base[1:]
		}
		var old *Value
		if len(base) > 0 && base[0].Key == p.Key {
			old = &base[0].Value
			base = base[1:]
		}
		if v, ok := m.value(old, &p.Value); ok {
			out = append(out, Member{p.Key, v})
		}
		patch = patch[1:]
	}
	if out = append(out, base...); len(out) == 0 {
		return nil
	}
	return out
}

// value merges p into what a key had, nil for nothing; false: the key goes away.
func (m *merger) value(old, p *Value) (v Value, ok bool) {
	switch p.kind {
	case kindNull:
		m.changed = m.changed || old != nil
		return v, false
	case kindObject:
		v.kind = kindObject
		if old == nil {
			v.members = m.object(nil, p.members)
		} else {
			v.members = m.object(old.members, p.members)
			m.changed = m.changed || old.kind != kindObject
		}
		return v, len(v.members) > 0
	}
	m.changed = m.changed || old == nil || !old.Equal(*p)
	v = *p
	v.written = m.now
	return v, true
}

// Delta returns what reported lacks of desired: every key of desired that is
// absent in reported or different there, on its path from the root. Objects
// recurse, arrays are compared and returned whole, numbers are compared by
// value, empty objects count as absent, and keys that only reported has do not
// appear. It is nil when nothing is lacking; else merging it into reported
// leaves no delta.
func Delta(desired, reported Object) Object {
	var out Object
	for i := range desired {
		want := &desired[i]
		for len(reported) > 0 && reported[0].Key < want.Key {
			reported = reported[1:]
		}
		var have *Value
		if len(reported) > 0 && reported[0].Key == want.Key {
			have = &reported[0].Value
		}
		if d, ok := lacking(&want.Value, have); ok {
			out = append(out, Member{want.Key, d})
		}
	}
	return out
}

// lacking returns the delta of one value, of which nil or another one is reported;
// false: there is none.
func lacking(want, have *Value) (d Value, ok bool) {
	if want.kind != kindObject {
		return *want, have == nil || !want.Equal(*have)
	}
	var reported Object
	if have != nil {
		reported = have.members
	}
	if len(reported) == 0 && !want.members.hollow() {
		return *want, len(want.members) > 0
	}
	d = Value{kind: kindObject, members: Delta(want.members, reported)}
	return d, len(d.members) > 0
}

// hollow reports whether an object below o, arrays aside, is empty, or a
// value null: what a delta must leave out.
func (o Object) hollow() bool {
	for i := range o {
		switch v := &o[i].Value; {
		case v.kind == kindNull, v.kind == kindObject && (len(v.members) == 0 || v.members.hollow()):
			return true
		}
	}
	return false
}
