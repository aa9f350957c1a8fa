package broker

import (
	"fmt"
	"strings"
	"sync"
	"time"
)

// retained holds the last message of each topic that asked for it (3.3.1.3).
type retained struct {
	mu    sync.RWMutex
	root  retainedNode
	count int
	perOf map[string]int // by who published it
	swept time.Time
	drop  func(topic string) // hears of what has expired and was removed
}

// sweepPause is how long nobody looks again for what has expired, which takes a walk
// over everything.
const sweepPause = time.Second

type retainedNode struct {
	children map[string]*retainedNode
	msg      *message
}

func newRetained(drop func(topic string)) *retained {
	return &retained{perOf: map[string]int{}, drop: drop}
}

// set keeps m for its topic, or removes what is kept when the payload is empty. Where
// there is no room, what has expired makes some. The error says which limit leaves none.
func (r *retained) set(m *message, lim Limits) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(m.payload) == 0 {
		r.root.remove(r, m.topic)
		return nil
	}
	if n := r.root.find(m.topic); n == nil || n.msg == nil {
		if r.perOf[m.sender] >= lim.RetainedPerClient || r.count >= lim.Retained {
			r.sweep(time.Now())
		}
		const remedy = ": remove some by an empty payload"
		switch {
		case r.perOf[m.sender] >= lim.RetainedPerClient:
			return fmt.Errorf("%d retained messages of %.140q"+remedy+lim.raise("retained-per-client"), lim.RetainedPerClient, m.sender)
		case r.count >= lim.Retained:
			return fmt.Errorf("%d retained messages of all clients"+remedy+lim.raise("retained"), lim.Retained)
		}
	}
	n := r.root.grow(m.topic)
	r.forget(n)
	n.msg = m.copy() // which knows no session
	r.count++
	r.perOf[m.sender]++
	return nil
}

func (r *retained) sweep(now time.Time) {
	if now.Sub(r.swept) < sweepPause {
		return
	}
	r.swept = now
	var expired []string
	r.root.all(false, func(m *message) {
		if m.expired(now) {
			expired = append(expired, m.topic)
		}
	})
	for _, topic := range expired {
		r.root.remove(r, topic)
		r.drop(topic)
	}
}

func (r *retained) forget(n *retainedNode) {
	if n.msg == nil {
		return
	}
	r.count--
	if r.perOf[n.msg.sender]--; r.perOf[n.msg.sender] == 0 {
		delete(r.perOf, n.msg.sender)
	}
	n.msg = nil
}

func (n *retainedNode) find(topic string) *retainedNode {
	for rest, more := topic, true; more && n != nil; {
		var level string
		level, rest, more = strings.Cut(rest, "/")
		n = n.children[level]
	}
	return n
}

func (n *retainedNode) grow(topic string) *retainedNode {
	for rest, more := topic, true; more; {
		var level string
		level, rest, more = strings.Cut(rest, "/")
		child := n.children[level]
		if child == nil {
			if n.children == nil {
				n.children = map[string]*retainedNode{}
			}
			child = &retainedNode{}
			n.children[level] = child
		}
		n = child
	}
	return n
}

// remove reports whether n is of no more use.
func (n *retainedNode) remove(r *retained, rest string) bool {
	level, rest, more := strings.Cut(rest, "/")
	if child := n.children[level]; child != nil {
		if !more {
			r.forget(child)
		}
		if more && child.remove(r, rest) || !more && child.unused() {
			delete(n.children, level)
		}
	}
	return n.unused()
}

func (n *retainedNode) unused() bool { return n.msg == nil && len(n.children) == 0 }

// of returns the message of that topic, nil: none.
func (r *retained) of(topic string) *message {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if n := r.root.find(topic); n != nil {
		return n.msg
	}
	return nil
}

// match returns the messages whose topics match the filter.
func (r *retained) match(filter string) []*message {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var out []*message
	r.root.match(filter, true, func(m *message) { out = append(out, m) })
	return out
}

func (n *retainedNode) match(rest string, first bool, f func(*message)) {
	level, rest, more := strings.Cut(rest, "/")
	switch level {
	case "#":
		n.all(first, f)
	case "+":
		for name, child := range n.children {
			if !first || !strings.HasPrefix(name, "$") { // 4.7.2-1
				child.descend(rest, more, f)
			}
		}
	default:
		if child := n.children[level]; child != nil {
			child.descend(rest, more, f)
		}
	}
}

func (n *retainedNode) descend(rest string, more bool, f func(*message)) {
	if more {
		if rest == "#" && n.msg != nil {
			f(n.msg) // 4.7.1.2: a/# matches a
		}
		n.match(rest, false, f)
		return
	}
	if n.msg != nil {
		f(n.msg)
	}
}

// all calls f for everything below n.
func (n *retainedNode) all(first bool, f func(*message)) {
	for name, child := range n.children {
		if first && strings.HasPrefix(name, "$") {
			continue
		}
		if child.msg != nil {
			f(child.msg)
		}
		child.all(false, f)
	}
}

func (r *retained) size() int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.count
}
