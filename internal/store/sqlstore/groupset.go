package sqlstore

import (
	"slices"

	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/pkg/selector"
	"github.com/otad/otad/pkg/shadow"
)

// groupSet is the dynamic groups and the selectors of continuous rollouts, arranged by what their selectors ask for, so
// that a change which none of them asks for costs next to nothing.
type groupSet struct {
	generation int64
	list       []dynamicGroup
	// The groups that ask for something below a key at the top of a section, and
	// those that ask for a section as a whole.
	desired, reported sectionIndex
	all, device       []int // every group, and those that ask for hardware or tags
	grouped           []int // the rollouts that ask for groups
}

// dynamicGroup is a dynamic group, or a continuous rollout: then a device is marked
// where it would come or go.
type dynamicGroup struct {
	name    string
	sel     selector.Selector
	device  bool // it asks for hardware or tags
	rollout bool
}

type sectionIndex struct {
	whole []int
	keys  map[string][]fieldOf
}

// fieldOf is a path below a key, and the groups that ask for it.
type fieldOf struct {
	path   []string
	groups []int
}

func newGroupSet(generation int64, list []dynamicGroup) *groupSet {
	s := &groupSet{generation: generation, list: list}
	for i := range list {
		s.all = append(s.all, i)
		for _, f := range list[i].sel.Fields() {
			switch f.Source {
			case selector.Desired:
				s.desired.add(f.Path, i)
			case selector.Reported:
				s.reported.add(f.Path, i)
			case selector.Hardware, selector.Tags:
				list[i].device = true
			case selector.Groups:
				s.grouped = append(s.grouped, i)
			}
		}
		if list[i].rollout {
			s.reported.add([]string{"firmware", "digest"}, i)
		}
		if list[i].device {
			s.device = append(s.device, i)
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
	fields := x.keys[path[0]]
	same := func(f fieldOf) bool { return slices.Equal(f.path, path[1:]) }
	if at := slices.IndexFunc(fields, same); at >= 0 {
		fields[at].groups = append(fields[at].groups, group)
		return
	}
	x.keys[path[0]] = append(fields, fieldOf{path[1:], []int{group}})
}

// touched returns the groups that ask for something in which the documents
// differ, each once.
func (s *groupSet) touched(before, after shadow.Document) []int {
	var groups []int
	touch := func(list []int) { groups = append(groups, list...) }
	s.desired.compare(before.Desired, after.Desired, touch)
	s.reported.compare(before.Reported, after.Reported, touch)
	slices.Sort(groups)
	return slices.Compact(groups)
}

func (x sectionIndex) compare(before, after shadow.Object, touch func(groups []int)) {
	if before.Same(after) {
		return
	}
	touch(x.whole)
	for key, fields := range x.keys {
		a, hadKey := before.Get(key)
		b, hasKey := after.Get(key)
		if hadKey == hasKey && a.Same(b) {
			continue
		}
		for _, f := range fields {
			was, had := below(a, hadKey, f.path)
			is, has := below(b, hasKey, f.path)
			if had != has || !was.Equal(is) {
				touch(f.groups)
			}
		}
	}
}

// below is what is at a path of a value that is there, or not.
func below(v shadow.Value, ok bool, path []string) (shadow.Value, bool) {
	if len(path) == 0 {
		return v, ok
	}
	return v.Object().At(path...)
}

// facts shows a device to the selectors of groups.
func facts(d fleet.Device, doc shadow.Document) selector.Facts {
	return fleet.Facts(fleet.DeviceView{Device: d, Shadow: doc})
}

// matches reports whether the group has the device.
func (g dynamicGroup) matches(d fleet.Device, doc shadow.Document) bool {
	return g.sel.Match(facts(d, doc))
}
