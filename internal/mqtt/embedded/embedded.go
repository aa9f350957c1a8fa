// Package embedded is the MQTT broker inside otad: mqtt.Broker over MQTT 5 and
// 3.1.1, without a second process.
//
// A device is who its credentials say, never who its client id claims. It
// publishes only under $aws/things/{id}/ and ota/{id}/ and subscribes only to
// filters that spell out those levels; wills follow the same rule; everything
// else is denied. A QoS 1 publish that the handler takes is acknowledged after
// the handler returned nil. On its error an MQTT 5 client gets a negative
// PUBACK, a 3.1.1 client, which has no such thing, loses the connection and
// sends again.
//
// The protocol engine is mochi-mqtt. Nothing here relies on its queues or
// stored sessions, which are known to lose and re-order: otad's database is
// the queue, and a device asks again after it connected.
package embedded

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"sync"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/otad/otad/internal/mqtt"
)

var (
	// ErrClosed: the broker is closed.
	ErrClosed = errors.New("broker is closed")
	// ErrSubscribed: Subscribe was called before.
	ErrSubscribed = errors.New("broker has a subscriber already")
	// ErrInvalidMessage: the message could not be sent to any device.
	ErrInvalidMessage = errors.New("invalid message")
)

// Config says how devices reach the broker and who they are.
type Config struct {
	// TLS is the server side of TLSAddr. Client certificates reach Authenticate
	// as TLS verified them, so it asks for and verifies them itself.
	TLS *tls.Config
	// TLSAddr is host:port to listen on with TLS; port 0 picks one. Empty: none.
	TLSAddr string
	// PlainAddr is host:port to listen on without TLS. Only a loopback address
	// is accepted. Empty: none.
	PlainAddr string
	// Authenticate names the device behind a connection. certs is the verified
	// chain the client sent, leaf first, nil without one; password may be nil.
	// Its error is logged, and the client is told no more than "not authorized".
	Authenticate func(certs []*x509.Certificate, username string, password []byte, remote net.Addr) (deviceID string, err error)
	// Presence hears of devices that came or went, in order per device, and may
	// publish. Nil: nobody.
	Presence mqtt.PresenceHandler
	// Logger hears of refused connections and failed handlers. Nil: nobody.
	Logger *slog.Logger
	Limits Limits
	// Now is the clock of Presence. Nil: time.Now.
	Now func() time.Time
}

// Broker implements mqtt.Broker.
type Broker struct {
	conf   Config
	lim    Limits
	log    *slog.Logger
	server *mochi.Server
	inline *mochi.Client // the sender of Publish
	tls    net.Listener  // nil: none
	plain  net.Listener  // nil: none

	wg     sync.WaitGroup // accept loops, connections, late wills
	quit   chan struct{}  // closed when Close begins
	closed chan struct{}  // closed when Close has finished

	mu      sync.Mutex
	closing bool
	sub     *subscription
	devices map[string]*device
	conns   map[*conn]struct{}
}

var _ mqtt.Broker = (*Broker)(nil)

type subscription struct {
	ctx     context.Context // of the one Subscribe this is
	filters []string
	handle  mqtt.Handler
}

// serverID is the client id of otad itself. No device id contains "#", so that
// no connection can take it.
const serverID = "#otad"

var codeTakenOver = packets.Code{Code: packets.ErrSessionTakenOver.Code, Reason: "taken over"}

// New opens the listeners and serves them. Until Subscribe is called, publishes
// of devices are answered with "server busy".
func New(c Config) (*Broker, error) {
	if c.Authenticate == nil {
		return nil, errors.New("embedded broker: no Authenticate")
	}
	b := &Broker{
		conf: c, lim: c.Limits.withDefaults(), log: c.Logger,
		quit: make(chan struct{}), closed: make(chan struct{}),
		devices: map[string]*device{}, conns: map[*conn]struct{}{},
	}
	if b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	if b.conf.Now == nil {
		b.conf.Now = time.Now
	}
	if err := b.startServer(); err != nil {
		return nil, fmt.Errorf("embedded broker: %w", err)
	}
	if err := b.listen(); err != nil {
		return nil, errors.Join(fmt.Errorf("embedded broker: %w", err), b.Close())
	}
	return b, nil
}

func (b *Broker) startServer() error {
	b.server = mochi.New(&mochi.Options{
		Capabilities:             b.lim.capabilities(),
		ClientNetWriteBufferSize: ioBufferSize,
		ClientNetReadBufferSize:  ioBufferSize,
		SysTopicResendInterval:   sysTopicInterval,
		Logger:                   slog.New(slog.DiscardHandler), // it writes payloads
	})
	b.inline = b.server.NewClient(nil, "server", serverID, true)
	b.inline.Properties.ProtocolVersion = 5
	if err := b.server.AddHook(&hook{b: b}, nil); err != nil {
		return err
	}
	return b.server.Serve()
}

func (b *Broker) listen() error {
	if b.conf.TLSAddr != "" {
		if b.conf.TLS == nil {
			return errors.New("TLSAddr without TLS configuration")
		}
		l, err := net.Listen("tcp", b.conf.TLSAddr)
		if err != nil {
			return err
		}
		b.tls = tls.NewListener(l, b.conf.TLS)
		b.wg.Go(func() { b.accept(b.tls, "tls") })
	}
	if b.conf.PlainAddr != "" {
		if err := requireLoopback(b.conf.PlainAddr); err != nil {
			return err
		}
		l, err := net.Listen("tcp", b.conf.PlainAddr)
		if err != nil {
			return err
		}
		b.plain = l
		b.wg.Go(func() { b.accept(b.plain, "plain") })
	}
	return nil
}

func requireLoopback(addr string) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return err
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("PlainAddr %s: without TLS only a loopback address such as 127.0.0.1 is allowed; use TLSAddr", addr)
	}
	return nil
}

// Addr is the address of the TLS listener, empty without one.
func (b *Broker) Addr() string { return addrOf(b.tls) }

// PlainAddr is the address of the listener without TLS, empty without one.
func (b *Broker) PlainAddr() string { return addrOf(b.plain) }

func addrOf(l net.Listener) string {
	if l == nil {
		return ""
	}
	return l.Addr().String()
}

// Sessions is the number of devices connected now.
func (b *Broker) Sessions() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for _, d := range b.devices {
		if d.online {
			n++
		}
	}
	return n
}

// Subscribe implements mqtt.Broker. When ctx has ended, publishes of devices
// are refused again.
func (b *Broker) Subscribe(ctx context.Context, filters []string, h mqtt.Handler) error {
	for _, f := range filters {
		if !mochi.IsValidFilter(f, false) || mochi.IsSharedFilter(f) {
			return fmt.Errorf("subscribe: invalid filter %q", f)
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.closing:
		return ErrClosed
	case b.sub != nil:
		return ErrSubscribed
	}
	b.sub = &subscription{ctx: ctx, filters: filters, handle: h}
	return ctx.Err()
}

func (b *Broker) subscription() *subscription {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.sub
}

// Publish implements mqtt.Broker. The message goes to the devices that are
// connected now, or have a session, and are subscribed.
func (b *Broker) Publish(ctx context.Context, m mqtt.Message) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if b.isClosing() {
		return ErrClosed
	}
	if err := b.check(m); err != nil {
		return err
	}
	pk := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: m.QoS},
		TopicName:   m.Topic,
		Payload:     m.Payload,
		PacketID:    uint16(m.QoS), // the engine wants one for QoS 1 and never uses it
		Properties: packets.Properties{
			ResponseTopic:         m.ResponseTopic,
			CorrelationData:       m.CorrelationData,
			MessageExpiryInterval: expirySeconds(m.Expiry),
		},
	}
	if err := b.server.InjectPacket(b.inline, pk); err != nil {
		return fmt.Errorf("publish to %s: %w", m.Topic, err)
	}
	return nil
}

// Reply implements mqtt.Broker. The engine has no way to one connection.
func (b *Broker) Reply(ctx context.Context, _, answer mqtt.Message) error {
	return b.Publish(ctx, answer)
}

func (b *Broker) check(m mqtt.Message) error {
	switch {
	case m.Topic == "" || !mochi.IsValidFilter(m.Topic, true):
		return fmt.Errorf("%w: topic %q", ErrInvalidMessage, m.Topic)
	case m.QoS > 1:
		return fmt.Errorf("%w: QoS %d; use 0 or 1", ErrInvalidMessage, m.QoS)
	case len(m.Payload) > b.lim.PacketBytes:
		return fmt.Errorf("%w: payload of %d bytes; at most %d", ErrInvalidMessage, len(m.Payload), b.lim.PacketBytes)
	}
	return nil
}

func expirySeconds(d time.Duration) uint32 {
	return uint32(min(math.Ceil(d.Seconds()), math.MaxUint32))
}

// Disconnect ends the device's connection, if there is one, and tells an MQTT 5
// client the reason. The device may come back; to keep it out, let Authenticate
// refuse it first.
func (b *Broker) Disconnect(deviceID, reason string) {
	b.mu.Lock()
	var c *conn
	if d := b.devices[deviceID]; d != nil {
		c = d.latest
	}
	b.mu.Unlock()
	if c != nil {
		b.end(c, packets.Code{Code: packets.ErrAdministrativeAction.Code, Reason: reason})
	}
}

func (b *Broker) isClosing() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.closing
}

// Close implements mqtt.Broker. Handlers are waited for, not interrupted: their
// context is that of Subscribe.
func (b *Broker) Close() error {
	b.mu.Lock()
	if b.closing {
		b.mu.Unlock()
		<-b.closed
		return nil
	}
	b.closing = true
	close(b.quit)
	open := make([]*conn, 0, len(b.conns))
	for c := range b.conns {
		open = append(open, c)
	}
	b.mu.Unlock()

	var err error
	for _, l := range []net.Listener{b.tls, b.plain} {
		if l != nil {
			err = errors.Join(err, l.Close())
		}
	}
	for _, c := range open {
		b.wg.Go(func() { b.end(c, packets.ErrServerShuttingDown) })
	}
	b.wg.Wait()
	err = errors.Join(err, b.server.Close())
	close(b.closed)
	return err
}
