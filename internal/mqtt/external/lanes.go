package external

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/otad/otad/internal/mqtt"
)

// maxWaiting0 bounds the QoS 0 messages that wait for a handler. Those
// of QoS 1 are bounded by the Receive Maximum.
const maxWaiting0 = 10_000

// item is one message on its way to the handler.
type item struct {
	message      mqtt.Message
	subscription int // the identifier of the filter it came for, 0: unknown
	ack          func()
}

// lanes runs the handler: one device's messages one after the other, those of
// different devices concurrently. put never blocks.
type lanes struct {
	log      *slog.Logger
	retryFor time.Duration
	quit     chan struct{} // closed by close: begin nothing new
	wg       sync.WaitGroup

	mu       sync.Mutex
	sub      *subscription
	held     []item            // came before open
	waiting  map[string][]item // by device; an entry, even if empty, has a goroutine
	waiting0 int               // QoS 0 items in held and waiting
	full     bool              // logged that waiting0 is at its limit
}

type subscription struct {
	ctx     context.Context // of the one Subscribe this is
	filters []string
	handle  mqtt.Handler
}

func newLanes(log *slog.Logger, retryFor time.Duration) *lanes {
	return &lanes{log: log, retryFor: retryFor, quit: make(chan struct{}), waiting: map[string][]item{}}
}

// open begins to hand over, starting with what was put before.
func (l *lanes) open(ctx context.Context, filters []string, h mqtt.Handler) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sub = &subscription{ctx: ctx, filters: filters, handle: h}
	for _, it := range l.held {
		l.dispatch(it)
	}
	l.held = nil
}

// put takes a message. One of QoS 0 is dropped when too many wait.
func (l *lanes) put(it item) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if it.message.QoS == 0 && !l.admit0() {
		return
	}
	if l.sub == nil {
		l.held = append(l.held, it)
		return
	}
	l.dispatch(it)
}

// admit0 counts a QoS 0 message in. l.mu is held.
func (l *lanes) admit0() bool {
	if l.waiting0 >= maxWaiting0 {
		if !l.full {
			l.log.Warn("handlers are too slow: dropping QoS 0 messages", "waiting", l.waiting0)
		}
		l.full = true
		return false
	}
	l.waiting0++
	l.full = false
	return true
}

// dispatch queues it behind the others of its device. l.mu is held.
func (l *lanes) dispatch(it item) {
	select {
	case <-l.quit:
		return // not acknowledged: the broker keeps it
	default:
	}
	key := deviceOf(it.message.Topic)
	queue, running := l.waiting[key]
	l.waiting[key] = append(queue, it)
	if !running {
		l.wg.Go(func() { l.run(key) })
	}
}

// run hands over the messages of one device until none is left.
func (l *lanes) run(key string) {
	for {
		it, sub, ok := l.take(key)
		if !ok {
			return
		}
		if l.handle(sub, it) {
			it.ack()
		}
	}
}

func (l *lanes) take(key string) (item, *subscription, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	queue := l.waiting[key]
	closing := false
	select {
	case <-l.quit:
		closing = true
	default:
	}
	if len(queue) == 0 || closing {
		delete(l.waiting, key)
		return item{}, nil, false
	}
	l.waiting[key] = queue[1:]
	if queue[0].message.QoS == 0 {
		l.waiting0--
	}
	return queue[0], l.sub, true
}

// handle reports whether the message is done with. A message that the handler
// does not take is tried again here, where it keeps its place: a broker would
// send it again only on a new connection, and then all others as well.
func (l *lanes) handle(sub *subscription, it item) bool {
	m := it.message
	if !first(sub.filters, m.Topic, it.subscription) {
		return true // another copy of it is the one that counts
	}
	if m.ResponseTopic != "" && deviceOf(m.ResponseTopic) != deviceOf(m.Topic) {
		l.log.Warn("message not taken", "topic", m.Topic, "error", fmt.Errorf("response topic %.140q belongs to someone else", m.ResponseTopic))
		return true
	}
	var waited time.Duration
	for wait := newBackoff(retryFirst, retryMax); ; {
		if sub.ctx.Err() != nil {
			return false
		}
		err := sub.handle(sub.ctx, m)
		if err == nil {
			return true
		}
		giveUp := m.QoS == 0 || waited >= l.retryFor
		l.log.Warn("message not taken", "topic", m.Topic, "error", err, "final", giveUp)
		if giveUp {
			return true
		}
		pause := wait.next()
		waited += pause
		if !l.pause(sub.ctx, pause) {
			return false
		}
	}
}

// pause waits; false when ctx or the lanes ended in the meantime.
func (l *lanes) pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	case <-l.quit:
		return false
	}
}

// close begins nothing new and waits for the handlers that run.
func (l *lanes) close() {
	l.mu.Lock()
	close(l.quit)
	l.mu.Unlock()
	l.wg.Wait()
}

// deviceOf is the part of a topic that names the device; of a topic that is
// none of a device's, all of it.
func deviceOf(topic string) string {
	rest, ok := strings.CutPrefix(topic, "$aws/things/")
	if !ok {
		rest, ok = strings.CutPrefix(topic, "ota/")
	}
	id, _, more := strings.Cut(rest, "/")
	if !ok || !more {
		return topic
	}
	return id
}

// first reports whether subscription, counted from 1, is that of the first
// filter that matches topic. With only one that does, or a broker that does not
// say, it is.
func first(filters []string, topic string, subscription int) bool {
	var matching []int
	for i, f := range filters {
		if mqtt.Matches(f, topic) {
			matching = append(matching, i+1)
		}
	}
	return len(matching) < 2 || subscription == 0 || subscription == matching[0]
}
