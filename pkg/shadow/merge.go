package shadow

import (
	"encoding/json"
	"maps"
)

// Merge returns base with patch merged in: objects recurse, null removes a
// key, every other value replaces what was there. Objects that end up empty
// are left out, whether by removal or because the patch has {} for a key that
// held no object. The result shares subtrees with base and with patch, and is nil
// when nothing is left.
func Merge(base, patch map[string]any) map[string]any {
	var m merger
	out, _, _ := m.object(base, Stamp(0), patch)
	return out
}

// merger merges sections and their metadata side by side.
type merger struct {
	stamp   Stamp
	boxed   any // stamp, converted once
	changed bool
}

// now is the metadata of a value that was written just now.
func (m *merger) now() any {
	if m.boxed == nil {
		m.boxed = m.stamp
	}
	return m.boxed
}

// section applies p to a section and its metadata.
func (m *merger) section(base map[string]any, meta any, p Patch) (state map[string]any, stamps any) {
	if !p.Set {
		return base, meta
	}
	if p.Object == nil {
		m.changed = m.changed || len(base) > 0
		return nil, nil
	}
	state, stamps, _ = m.object(base, meta, p.Object)
	return state, stamps
}

// object merges patch into base and says what the metadata is then. A patch that says
// all there is, as most devices report, is the result itself (plain); else it is a copy
// of base with what differs.
func (m *merger) object(base map[string]any, meta any, patch map[string]any) (state map[string]any, stamps any, plain bool) {
	if len(patch) == 0 {
		return base, meta, false
	}
	var odd []merged // what does not become what patch says, or not wholly now
	for k, p := range patch {
		if v, vm, plain := m.value(base, meta, k, p); !plain {
			odd = append(odd, merged{k, v, vm})
		}
	}
	if odd == nil && covers(patch, base) {
		return patch, m.now(), true
	}
	state, stamps = m.copied(base, meta, patch, odd)
	return state, stamps, false
}

// merged is the value of a key and its metadata; nil: it went away.
type merged struct {
	key         string
	value, meta any
}

// covers reports whether base has no key that patch has not.
func covers(patch, base map[string]any) bool {
	if len(base) > len(patch) {
		return false
	}
	for k := range base {
		if _, ok := patch[k]; !ok {
			return false
		}
	}
	return true
}

// copied is a copy of base with patch in it, and then with what is odd.
func (m *merger) copied(base map[string]any, meta any, patch map[string]any, odd []merged) (state map[string]any, stamps any) {
	state = clone(base, len(patch))
	maps.Copy(state, patch)
	written := len(patch)    // keys of patch that are in state
	var older map[string]any // of those, the ones that were not wholly written now
	for _, o := range odd {
		if o.value == nil {
			delete(state, o.key)
			written--
			continue
		}
		state[o.key] = o.value
		if o.meta != m.now() {
			if older == nil {
				older = map[string]any{}
			}
			older[o.key] = o.meta
		}
	}
	switch {
	case len(state) == 0:
		return nil, nil
	case written == len(state) && older == nil:
		return state, m.now()
	}
	return state, m.mixed(state, meta, patch, older)
}

// mixed is the metadata of an object of which patch wrote some keys, though
// those in older not wholly.
func (m *merger) mixed(state map[string]any, meta any, patch, older map[string]any) any {
	stamps := make(map[string]any, len(state))
	for k := range state {
		vm, partly := older[k]
		if _, touched := patch[k]; !touched {
			vm = metaBelow(meta, k)
		} else if !partly {
			vm = m.now()
		}
		if vm != nil {
			stamps[k] = vm
		}
	}
	return folded(stamps)
}

// metaBelow is the metadata of the member k of a value with the given one.
func metaBelow(meta any, k string) any {
	if m, ok := meta.(map[string]any); ok {
		return m[k]
	}
	return meta
}

// value merges p into the value of k, and returns nil when k goes away. plain: it is
// p itself, all written now.
func (m *merger) value(base map[string]any, meta any, k string, p any) (v, vm any, plain bool) {
	old, had := base[k]
	switch p := p.(type) {
	case nil:
		m.changed = m.changed || had
		return nil, nil, false
	case map[string]any:
		oldMap, wasMap := old.(map[string]any)
		o, om, plain := m.object(oldMap, metaBelow(meta, k), p)
		m.changed = m.changed || had && !wasMap
		if len(o) == 0 {
			return nil, nil, false
		}
		return o, om, plain
	}
	m.changed = m.changed || !had || !equal(old, p)
	return p, m.now(), true
}

func clone(m map[string]any, n int) map[string]any {
	if m == nil {
		return make(map[string]any, n)
	}
	return maps.Clone(m)
}

// Delta returns what reported lacks of desired: every key of desired that is
// absent in reported or different there, on its path from the root. Objects
// recurse, arrays are compared and returned whole, numbers are compared by
// value, empty objects count as absent, and keys that only reported has do not
// appear. It is nil when nothing is lacking; else merging it into reported
// leaves no delta.
func Delta(desired, reported map[string]any) map[string]any {
	var out map[string]any
	for k, want := range desired {
		d := lacking(want, reported[k])
		if d == nil {
			continue
		}
		if out == nil {
			out = make(map[string]any)
		}
		out[k] = d
	}
	return out
}

// lacking returns the delta of one value, nil for none.
func lacking(want, have any) any {
	w, ok := want.(map[string]any)
	if !ok {
		if equal(want, have) {
			return nil
		}
		return want
	}
	h, _ := have.(map[string]any)
	if len(h) == 0 && !hasHollow(w) {
		if len(w) == 0 {
			return nil
		}
		return w
	}
	if d := Delta(w, h); d != nil {
		return d
	}
	return nil
}

// hasHollow reports whether an object below m, arrays aside, is empty, or a
// value null: what a delta must leave out.
func hasHollow(m map[string]any) bool {
	for _, v := range m {
		if v == nil {
			return true
		}
		if o, ok := v.(map[string]any); ok && (len(o) == 0 || hasHollow(o)) {
			return true
		}
	}
	return false
}

// equal compares JSON values; 1 equals 1.0, and the order of keys is nothing.
func equal(a, b any) bool {
	switch a := a.(type) {
	case nil:
		return b == nil
	case bool:
		b, ok := b.(bool)
		return ok && a == b
	case string:
		b, ok := b.(string)
		return ok && a == b
	case json.Number:
		b, ok := b.(json.Number)
		return ok && equalNumbers(string(a), string(b))
	case []any:
		b, ok := b.([]any)
		return ok && equalArrays(a, b)
	case map[string]any:
		b, ok := b.(map[string]any)
		return ok && equalObjects(a, b)
	}
	return false
}

func equalArrays(a, b []any) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !equal(a[i], b[i]) {
			return false
		}
	}
	return true
}

func equalObjects(a, b map[string]any) bool {
	if len(a) != len(b) {
		return false
	}
	for k, v := range a {
		if w, ok := b[k]; !ok || !equal(v, w) {
			return false
		}
	}
	return true
}
