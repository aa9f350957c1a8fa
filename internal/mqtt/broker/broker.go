// Package broker is the MQTT broker inside otad: mqtt.Broker over MQTT 5, 3.1.1
// and 3.1, by TCP, TLS and WebSocket, without a second process.
//
// Its promise: what it acknowledged is not lost. A publish is acknowledged when
// otad's handler has taken it and everything that has to outlive the process is
// in the store, which a journal writes in batches. A subscriber that does not keep
// up slows its publishers down; one that stands still is dropped; a session
// nobody reads refuses publishes when its queue is full. Only QoS 0 may be lost.
//
// A client is who its credentials say, never who its client id claims, and uses
// the topics that its mqtt.Access allows; everything else is denied.
//
// Who has no room for a message of otad itself (Publish, Reply) goes without: the
// database is its queue, and a device that comes back asks. What is for a session
// whose client is away is in the store, hints and replies excepted; what is on its way
// to a client that is there does not outlive a kill.
//
// The parts: listen.go and connect.go bring a connection to its session;
// receive.go reads its packets, publish.go and subscribe.go handle them; own.go has what otad says itself; index.go
// and retained.go know the topics; session.go holds what waits for a client and
// conn.go writes it; journal.go and persist.go keep what must not be forgotten.
//
// Clause numbers are those of MQTT 5.0 (OASIS, 7 March 2019).
package broker

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/otad/otad/internal/mqtt"
	"github.com/otad/otad/internal/mqtt/packet"
)

var (
	// ErrClosed: the broker is closed.
	ErrClosed = errors.New("broker is closed")
	// ErrSubscribed: Subscribe was called before.
	ErrSubscribed = errors.New("broker has a subscriber already")
	// ErrUnavailable: it can not be said now who a client is, by no fault of its own.
	ErrUnavailable = errors.New("unavailable")
	// ErrInvalidMessage: the message could not be sent to anybody.
	ErrInvalidMessage = errors.New("invalid message")
	// ErrQueueFull: too much waits already for a client that the message is for.
	ErrQueueFull = errors.New("queue of the client is full")

	errStored = errors.New("stored state can not be read")
)

// Credentials are what a client shows when it connects.
type Credentials struct {
	Certificates []*x509.Certificate // chain that TLS verified, leaf first; nil: none
	ClientID     string
	Username     string
	Password     []byte // nil: none
	Remote       net.Addr
	Plain        bool // came by the listener without TLS
}

// Config says how clients reach the broker and who they are.
type Config struct {
	// TLS is the server side of TLSAddr. Client certificates reach Authenticate
	// as TLS verified them, so it asks for and verifies them itself.
	TLS *tls.Config
	// TLSAddr is host:port to listen on with TLS; port 0 picks one. Empty: none.
	TLSAddr string
	// PlainAddr is host:port to listen on without TLS. Only a loopback address
	// is accepted. Empty: none.
	PlainAddr string
	// Authenticate says who is behind a connection. Its error is logged, and the
	// client is told no more than "not authorized", or "server unavailable" if it is
	// ErrUnavailable or comes of the time being over. It is called concurrently.
	Authenticate func(ctx context.Context, c Credentials) (mqtt.Identity, error)
	// Presence hears of devices that came or went, in order per device, and may
	// publish. Nil: nobody.
	Presence mqtt.PresenceHandler
	// Store keeps sessions, their messages and retained messages. Nil: they end
	// with the process.
	Store Store
	// WillGrace is how long clients have after the start to come back before their
	// wills are published. 0: DefaultWillGrace.
	WillGrace time.Duration
	// Logger hears of refused connections and failed handlers. Nil: nobody.
	Logger *slog.Logger
	Limits Limits
}

// DefaultWillGrace is more than most clients wait before they connect again.
const DefaultWillGrace = 10 * time.Second

// Broker implements mqtt.Broker.
type Broker struct {
	conf     Config
	lim      Limits
	log      *slog.Logger
	journal  *journal
	index    *index
	retained *retained
	stats    counters
	tls      net.Listener // nil: none
	plain    net.Listener // nil: none
	lastID   atomic.Uint64

	packets, bytes meters // of sessions without a connection
	connecting     meters // of sessions
	failing        meters // of addresses
	noted          meters // of what the log was told of clients and addresses that wait

	handler atomic.Pointer[handler]

	wg      sync.WaitGroup // accept loops, connections, timers
	quit    chan struct{}  // closed when Close begins
	stopped chan struct{}  // closed when there are no clients any more, and their wills are published
	closed  chan struct{}  // closed when Close has finished

	mu       sync.Mutex
	closing  bool
	sessions map[string]*session
	lasting  map[string]int     // sessions that count against Limits.Sessions, by name
	conns    map[net.Conn]*conn // nil value: not connected yet
}

var _ mqtt.Broker = (*Broker)(nil)

type handler struct {
	ctx    context.Context // of the one Subscribe this is
	handle mqtt.Handler
}

// New loads what the store has, opens the listeners and serves them. Until
// Subscribe is called, publishes of devices are answered with "server busy".
func New(ctx context.Context, c Config) (*Broker, error) {
	if c.Authenticate == nil {
		return nil, errors.New("embedded broker: no Authenticate")
	}
	b := &Broker{
		conf: c, lim: c.Limits.withDefaults(), log: c.Logger, index: newIndex(),
		quit: make(chan struct{}), stopped: make(chan struct{}), closed: make(chan struct{}), sessions: map[string]*session{},
		lasting: map[string]int{}, conns: map[net.Conn]*conn{},
	}
	b.conf.WillGrace = cmp.Or(c.WillGrace, DefaultWillGrace)
	b.journal = newJournal(c.Store, b.quit)
	b.retained = newRetained(func(topic string) { b.journal.remove(keyRetained + topic) })
	if b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	if err := b.load(ctx); err != nil {
		return nil, fmt.Errorf("embedded broker: %w", err)
	}
	if err := b.listen(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("embedded broker: %w", err), b.Close())
	}
	return b, nil
}

// Subscribe implements mqtt.Broker. When ctx has ended, publishes of devices
// are refused again.
func (b *Broker) Subscribe(ctx context.Context, filters []string, h mqtt.Handler) error {
	for _, f := range filters {
		if !packet.ValidFilter(f) || strings.HasPrefix(f, "$share/") {
			return fmt.Errorf("subscribe: invalid filter %q", f)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closing {
		return ErrClosed
	}
	if !b.handler.CompareAndSwap(nil, &handler{ctx, h}) {
		return ErrSubscribed
	}
	for _, f := range filters {
		b.index.add(&subscription{filter: f})
	}
	return ctx.Err()
}

// Listening reports whether anybody would get a message of that topic.
func (b *Broker) Listening(topic string) bool {
	found := false
	b.index.match(topic, func(e *entry) {
		for _, s := range e.subs {
			found = found || s.session != nil
		}
		found = found || len(e.groups) > 0
	})
	return found
}

// Evict implements mqtt.Broker: of the device and its companions, or by the voucher.
func (b *Broker) Evict(e mqtt.Eviction) {
	if e.DeviceID == "" {
		for _, c := range b.vouchedBy(e) {
			c.close(packet.AdministrativeAction, e.Reason)
		}
		return
	}
	for _, s := range b.sessionsOf(e.DeviceID) {
		if e.Forget {
			b.forget(s, e)
			continue
		}
		s.mu.Lock()
		c := s.conn
		stays := s.began.After(e.At)
		s.mu.Unlock()
		if c != nil && !stays {
			c.close(packet.AdministrativeAction, e.Reason)
		}
	}
}

// vouchedBy are the connections that the voucher let in.
func (b *Broker) vouchedBy(e mqtt.Eviction) (all []*conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range b.conns {
		if c != nil && e.Voucher != "" && c.voucher == e.Voucher && !c.began.After(e.At) {
			all = append(all, c)
		}
	}
	return all
}

// forget ends the session with what waits in it, unless somebody came by it since.
func (b *Broker) forget(s *session, e mqtt.Eviction) {
	b.mu.Lock()
	s.mu.Lock()
	if s.began.After(e.At) {
		s.mu.Unlock()
		b.mu.Unlock()
		return
	}
	c, over := s.conn, s.conn == nil && !s.ended && !b.closing
	s.unkept = true
	if over {
		b.wg.Add(1)
		defer b.wg.Done()
		s.end()
		b.leave(s)
	}
	s.mu.Unlock()
	b.mu.Unlock()
	if c != nil {
		c.close(packet.AdministrativeAction, e.Reason)
	}
	if over {
		b.bury(s)
	}
}

// sessionsOf are the sessions of a device and of its companions.
func (b *Broker) sessionsOf(deviceID string) (all []*session) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if s := b.sessions[deviceKey(deviceID)]; s != nil {
		all = append(all, s)
	}
	for _, id := range mqtt.CompanionIDs(deviceID) {
		if s := b.sessions[sessionKey(mqtt.Identity{Name: deviceID}, id)]; s != nil {
			all = append(all, s)
		}
	}
	return all
}

func (b *Broker) isClosing() bool { return isOver(b.quit) }

// isStopped reports whether nothing is published any more: later than that clients
// are shut out, since their wills have consequences.
func (b *Broker) isStopped() bool { return isOver(b.stopped) }

func isOver(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// Close implements mqtt.Broker. Handlers are waited for, not interrupted: their
// context is that of Subscribe. Wills are published, those with a delay after the
// next start. An error may be what the store did not take, which
// nobody was told is stored.
func (b *Broker) Close() error {
	b.mu.Lock()
	if b.closing {
		b.mu.Unlock()
		<-b.closed
		return nil
	}
	b.closing = true
	close(b.quit)
	for nc, c := range b.conns {
		if c == nil {
			_ = nc.Close()
			continue
		}
		c.close(packet.ServerShuttingDown, "server shutting down")
	}
	b.mu.Unlock()

	var err error
	for _, l := range []net.Listener{b.tls, b.plain} {
		if l != nil {
			err = errors.Join(err, l.Close())
		}
	}
	b.wg.Wait()
	b.stopTimers()
	close(b.stopped)
	err = errors.Join(err, b.journal.flush())
	close(b.closed)
	return err
}

// stopTimers ends the waiting of sessions without a connection.
func (b *Broker) stopTimers() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, s := range b.sessions {
		s.mu.Lock()
		s.stopTimer()
		s.mu.Unlock()
	}
}
