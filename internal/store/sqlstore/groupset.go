package sqlstore

import (
	"reflect"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/selector"
	"github.com/otad/otad/pkg/shadow"
)

// groupSet is the dynamic groups, arranged by what their selectors ask for, so
// that a change which none of them asks for costs next to nothing.
type groupSet struct {
	generation int64
	list       []dynamicGroup
	// The groups that ask for something below a key at the top of a section, and
	// those that ask for a section as a whole.
	desired, reported sectionIndex
}

type dynamicGroup struct {
	name   string
	sel    selector.Selector
	device bool // it asks for hardware or tags
}

type sectionIndex struct {
	whole []int
	keys  map[string][]fieldOf
}

// fieldOf is a path below a key, and the group that asks for it.
type fieldOf struct {
	path  []string
	group int
}

func newGroupSet(generation int64, list []dynamicGroup) *groupSet {
	s := &groupSet{generation: generation, list: list}
	for i := range list {
		for _, f := range list[i].sel.Fields() {
			switch f.Source {
			case selector.Desired:
				s.desired.add(f.Path, i)
			case selector.Reported:
				s.reported.add(f.Path, i)
			case selector.Hardware, selector.Tags:
				list[i].device = true
			}
		}
	}
	return s
}

func (x *sectionIndex) add(path []string, group int) {
	if len(path) == 0 {
		x.whole = append(x.whole, group)
		return
	}
	if x.keys == nil {
		x.keys = map[string][]fieldOf{}
	}
	x.keys[path[0]] = append(x.keys[path[0]], fieldOf{path[1:], group})
}

// touched returns the groups that ask for something in which the documents
// differ.
func (s *groupSet) touched(before, after shadow.Document) map[int]bool {
	var groups map[int]bool
	touch := func(i int) {
		if groups == nil {
			groups = map[int]bool{}
		}
		groups[i] = true
	}
	s.desired.compare(before.Desired, after.Desired, touch)
	s.reported.compare(before.Reported, after.Reported, touch)
	return groups
}

func (x sectionIndex) compare(before, after map[string]any, touch func(group int)) {
	if sameMap(before, after) {
		return
	}
	for _, group := range x.whole {
		touch(group)
	}
	for key, fields := range x.keys {
		a, b := before[key], after[key]
		if m, ok := a.(map[string]any); ok {
			if n, ok := b.(map[string]any); ok && sameMap(m, n) {
				continue
			}
		}
		for _, f := range fields {
			if !sameValue(below(a, f.path), below(b, f.path)) {
				touch(f.group)
			}
		}
	}
}

// sameMap reports whether both are the very same map. Updates share the parts
// of a document that they leave alone.
func sameMap(a, b map[string]any) bool {
	return len(a) == len(b) && (len(a) == 0 || reflect.ValueOf(a).Pointer() == reflect.ValueOf(b).Pointer())
}

func below(v any, path []string) any {
	for _, k := range path {
		m, _ := v.(map[string]any)
		v = m[k]
	}
	return v
}

func sameValue(a, b any) bool {
	switch a := a.(type) {
	case map[string]any, []any:
		return reflect.DeepEqual(a, b)
	default:
		switch b.(type) {
		case map[string]any, []any:
			return false
		}
		return a == b
	}
}

// matches reports whether the group has the device.
func (g dynamicGroup) matches(d fleet.Device, doc shadow.Document) bool {
	return g.sel.Match(fleet.Facts(fleet.DeviceView{Device: d, Shadow: doc}))
}
