package broker

import (
	"strings"
	"sync"
)

// index finds the subscriptions that a topic matches. Filters without wildcards,
// which are most, stand in a map; the others in a tree of levels.
type index struct {
	mu    sync.RWMutex
	exact map[string]*entry
	root  node
}

// entry is what one filter leads to.
type entry struct {
	subs   []*subscription
	groups []*group
}

// node is a level of filters with wildcards, whose own children stand beside the
// others: every message asks for them at every level.
type node struct {
	plus, hash *node // nil: none
	children   map[string]*node
	entry      entry
}

// child is nil for none.
func (n *node) child(level string) *node {
	switch level {
	case "+":
		return n.plus
	case "#":
		return n.hash
	}
	return n.children[level]
}

// put sets a child; nil takes it out.
func (n *node) put(level string, child *node) {
	switch {
	case level == "+":
		n.plus = child
	case level == "#":
		n.hash = child
	case child == nil:
		delete(n.children, level)
	default:
		if n.children == nil {
			n.children = map[string]*node{}
		}
		n.children[level] = child
	}
}

func (e *entry) empty() bool { return len(e.subs) == 0 && len(e.groups) == 0 }

// subscription is one filter of a session. The options may change: they are
// guarded by the index.
type subscription struct {
	session *session // nil: otad's own
	filter  string   // without $share
	share   string   // name of the shared subscription, empty: none

	qos               byte
	noLocal           bool
	retainAsPublished bool
	id                uint32
}

// group is a shared subscription (4.8.2): each message goes to one member.
type group struct {
	name    string
	members []*subscription
	next    int
	mu      sync.Mutex // of next, as matching holds the index for reading only
}

func newIndex() *index { return &index{exact: map[string]*entry{}} }

func wildcard(filter string) bool { return strings.ContainsAny(filter, "+#") }

// add enters s; a subscription of the same session, share and filter is replaced.
func (x *index) add(s *subscription) {
	x.mu.Lock()
	defer x.mu.Unlock()
	e := x.entryFor(s.filter)
	if s.share == "" {
		e.subs = replace(e.subs, s)
		return
	}
	for _, g := range e.groups {
		if g.name == s.share {
			g.members = replace(g.members, s)
			return
		}
	}
	e.groups = append(e.groups, &group{name: s.share, members: []*subscription{s}})
}

// replace and without make new slices only where matching, which holds the lock
// for reading, can not be looking: they run under the lock for writing.
func replace(subs []*subscription, s *subscription) []*subscription {
	for i, old := range subs {
		if old.session == s.session {
			subs[i] = s
			return subs
		}
	}
	return append(subs, s)
}

func without(subs []*subscription, s *subscription) []*subscription {
	for i, old := range subs {
		if old == s {
			last := len(subs) - 1
			subs[i], subs[last] = subs[last], nil
			return subs[:last]
		}
	}
	return subs
}

func (x *index) entryFor(filter string) *entry {
	if !wildcard(filter) {
		e := x.exact[filter]
		if e == nil {
			e = &entry{}
			x.exact[filter] = e
		}
		return e
	}
	n := &x.root
	for rest, more := filter, true; more; {
		var level string
		level, rest, more = strings.Cut(rest, "/")
		child := n.child(level)
		if child == nil {
			child = &node{}
			n.put(level, child)
		}
		n = child
	}
	return &n.entry
}

// remove takes s out.
func (x *index) remove(s *subscription) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !wildcard(s.filter) {
		if e := x.exact[s.filter]; e != nil {
			if e.remove(s); e.empty() {
				delete(x.exact, s.filter)
			}
		}
		return
	}
	x.root.remove(s, s.filter)
}

func (e *entry) remove(s *subscription) {
	if s.share == "" {
		e.subs = without(e.subs, s)
		return
	}
	for i, g := range e.groups {
		if g.name != s.share {
			continue
		}
		if g.members = without(g.members, s); len(g.members) == 0 {
			e.groups = append(e.groups[:i], e.groups[i+1:]...)
		}
		return
	}
}

// remove reports whether n is of no more use.
func (n *node) remove(s *subscription, rest string) bool {
	level, rest, more := strings.Cut(rest, "/")
	if child := n.child(level); child != nil {
		if !more {
			child.entry.remove(s)
		}
		if more && child.remove(s, rest) || !more && child.unused() {
			n.put(level, nil)
		}
	}
	return n.unused()
}

func (n *node) unused() bool { return n.entry.empty() && n.leaf() }

func (n *node) leaf() bool { return n.plus == nil && n.hash == nil && len(n.children) == 0 }

// match calls f for the entry of each filter that matches topic (4.7), with the
// lock held for reading.
func (x *index) match(topic string, f func(*entry)) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if e := x.exact[topic]; e != nil {
		f(e)
	}
	if !x.root.leaf() {
		x.root.match(topic, topic[0] != '$', f)
	}
}

// match walks the tree. A wildcard in the first level does not match a topic
// that begins with $ (4.7.2-1).
func (n *node) match(rest string, wild bool, f func(*entry)) {
	level, rest, more := strings.Cut(rest, "/")
	if wild {
		if n.hash != nil {
			f(&n.hash.entry)
		}
		n.plus.descend(rest, more, f)
	}
	if len(n.children) > 0 {
		n.children[level].descend(rest, more, f)
	}
}

func (n *node) descend(rest string, more bool, f func(*entry)) {
	if n == nil {
		return
	}
	if more {
		n.match(rest, true, f)
		return
	}
	if !n.entry.empty() {
		f(&n.entry)
	}
	if n.hash != nil {
		f(&n.hash.entry) // 4.7.1.2: a/# matches a
	}
}

// pick chooses the member that gets the next message: the next one that is
// connected, else the next of all, whose session keeps it.
func (g *group) pick() *subscription {
	g.mu.Lock()
	defer g.mu.Unlock()
	kept := -1
	for range g.members {
		g.next = (g.next + 1) % len(g.members)
		switch s := g.members[g.next]; {
		case s.session.online():
			return s
		case kept < 0:
			kept = g.next
		}
	}
	if kept < 0 {
		return nil
	}
	g.next = kept // after a full round it would be the same one each time
	return g.members[kept]
}
