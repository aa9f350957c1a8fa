// Package external is mqtt.Broker over a broker that runs elsewhere: Mosquitto,
// EMQX, HiveMQ or any other that speaks MQTT 5.
//
// That broker authenticates the devices and keeps them apart; this package
// trusts the topic of a message to name its sender. Replicas of otad can share
// the messages through one $share group. A message is acknowledged to the broker
// after the handler returned nil; until then the broker keeps it, also for a
// replica that crashed. A device's own PUBACK therefore means that the broker
// has the message.
//
// Some brokers (Mosquitto with an ACL file) let any client join any group and
// only withhold the messages it may not read: a device that knew the name of
// otad's group could swallow messages of others. So the group is a secret.
package external

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"

	"github.com/otad/otad/internal/mqtt"
)

var (
	// ErrClosed: the connection to the broker was closed by Close.
	ErrClosed = errors.New("broker is closed")
	// ErrAway: there is no connection to the broker now.
	ErrAway = errors.New("no connection to the broker")
	// ErrSubscribed: Subscribe was called before.
	ErrSubscribed = errors.New("broker has a subscriber already")
	// ErrInvalidMessage: no broker would take the message.
	ErrInvalidMessage = errors.New("invalid message")
	// ErrRefused: the broker answered with a reason code that says no.
	ErrRefused = errors.New("refused by the broker")
)

const (
	// DefaultReceiveMaximum bounds the QoS 1 messages that are with this replica
	// and not acknowledged.
	DefaultReceiveMaximum = 1000
	// DefaultSessionExpiry is how long the broker keeps messages for a replica
	// that went away.
	DefaultSessionExpiry = 5 * time.Minute
	// DefaultRetryFor is how long a message that the handler does not take holds
	// up the acknowledgements behind it before it is given up.
	DefaultRetryFor = 10 * time.Minute
	// MaxPacketBytes is the largest packet in either direction.
	MaxPacketBytes = 256 << 10
	// MinGroupBytes is the shortest Group that is not guessed.
	MinGroupBytes = 16

	keepAlive      = 30 // seconds
	connectTimeout = 10 * time.Second
	ackTimeout     = 30 * time.Second // of the broker for a PUBLISH or SUBSCRIBE
	ackInterval    = 5 * time.Millisecond
	downTimeout    = 5 * time.Second // until the library notices that it failed
	closeTimeout   = 5 * time.Second
)

// Config says which broker and as whom.
type Config struct {
	URL      string      // mqtts://host:port; mqtt:// is for loopback and trusted networks
	TLS      *tls.Config // of mqtts
	ClientID string      // one per replica, the same after a restart
	// Group is the shared subscription group of all replicas of one installation:
	// random, MinGroupBytes or more, without "/", "+" and "#". Empty: this is the
	// only replica and subscribes plainly, as mosquitto needs it: its 2.0.11
	// delivers nothing to shared subscriptions of topics that begin with "$".
	Group    string
	Username string // empty: none
	Password []byte

	// StandIn is what a session of the device is ended with, by taking its place:
	// credentials for its client id. nil: sessions can not be ended.
	StandIn func(deviceID string) (*tls.Config, error)
	// DeviceURL is where StandIn is let in. Empty: URL.
	DeviceURL string

	ReceiveMaximum uint16        // 0: DefaultReceiveMaximum
	SessionExpiry  time.Duration // 0: DefaultSessionExpiry
	RetryFor       time.Duration // 0: DefaultRetryFor
	Logger         *slog.Logger  // hears of connections and of messages not taken; nil: nobody
}

func (c Config) check() (*url.URL, error) {
	u, err := url.Parse(c.URL)
	if err != nil {
		return nil, err
	}
	switch {
	case u.Scheme != "mqtts" && u.Scheme != "mqtt":
		return nil, fmt.Errorf("URL %q: use mqtts://host:port", c.URL)
	case u.Scheme == "mqtts" && c.TLS == nil:
		return nil, errors.New("mqtts without TLS configuration")
	case u.User != nil:
		return nil, errors.New("URL with credentials; use Username and Password")
	case c.ClientID == "":
		return nil, errors.New("no ClientID")
	case c.Group != "" && (len(c.Group) < MinGroupBytes || strings.ContainsAny(c.Group, "/+#")):
		return nil, fmt.Errorf("shared subscription group has %d bytes: use %d or more random letters and digits, the same for all replicas",
			len(c.Group), MinGroupBytes)
	}
	return u, nil
}

func (c Config) withDefaults() Config {
	c.ReceiveMaximum = cmp.Or(c.ReceiveMaximum, DefaultReceiveMaximum)
	c.SessionExpiry = cmp.Or(c.SessionExpiry, DefaultSessionExpiry)
	c.RetryFor = cmp.Or(c.RetryFor, DefaultRetryFor)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// Broker implements mqtt.Broker.
type Broker struct {
	conf     Config
	device   *url.URL // where devices connect
	cm       *autopaho.ConnectionManager
	cancel   context.CancelFunc // ends cm and what waits for it
	done     context.Context    // ended by cancel
	lanes    *lanes
	closed   chan struct{} // closed when Close has finished
	evicting chan struct{} // one element for each session that is being ended
	wg       sync.WaitGroup

	mu         sync.Mutex
	closing    bool
	evicted    map[string]bool // device ids whose sessions are being ended
	subscribed bool
	filters    []string
	live       context.Context // of the present connection, nil without one
	drop       context.CancelFunc
	up         chan struct{} // closed when live becomes non-nil
}

var _ mqtt.Broker = (*Broker)(nil)

// New starts to connect and returns at once. The connection is made again
// whenever it is lost.
func New(c Config) (*Broker, error) {
	u, err := c.check()
	if err != nil {
		return nil, fmt.Errorf("external broker: %w", err)
	}
	b := &Broker{conf: c.withDefaults(), closed: make(chan struct{}), up: make(chan struct{}), evicted: map[string]bool{},
		evicting: make(chan struct{}, maxEvicting)}
	if b.device, err = url.Parse(cmp.Or(c.DeviceURL, c.URL)); err != nil {
		return nil, fmt.Errorf("external broker: %w", err)
	}
	b.lanes = newLanes(b.conf.Logger, b.conf.RetryFor)
	b.done, b.cancel = context.WithCancel(context.Background())
	b.cm, err = autopaho.NewConnection(b.done, b.clientConfig(u))
	if err != nil {
		b.cancel()
		return nil, fmt.Errorf("external broker: %w", err)
	}
	return b, nil
}

func (b *Broker) clientConfig(u *url.URL) autopaho.ClientConfig {
	wait := newBackoff(reconnectFirst, reconnectMax)
	expiry := uint32(min(b.conf.SessionExpiry/time.Second, math.MaxUint32-1))
	return autopaho.ClientConfig{
		ServerUrls:            []*url.URL{u},
		TlsCfg:                b.conf.TLS,
		KeepAlive:             keepAlive,
		SessionExpiryInterval: expiry,
		ReconnectBackoff:      func(int) time.Duration { return wait.next() },
		ConnectTimeout:        connectTimeout,
		ConnectUsername:       b.conf.Username,
		ConnectPassword:       b.conf.Password,
		ConnectPacketBuilder: func(cp *paho.Connect, _ *url.URL) (*paho.Connect, error) {
			size := uint32(MaxPacketBytes)
			cp.Properties = &paho.ConnectProperties{
				SessionExpiryInterval: &expiry, ReceiveMaximum: &b.conf.ReceiveMaximum, MaximumPacketSize: &size,
			}
			return cp, nil
		},
		OnConnectionUp: func(_ *autopaho.ConnectionManager, ack *paho.Connack) {
			wait.connected()
			b.connectionUp(ack.SessionPresent)
		},
		OnConnectionDown: func() bool { b.connectionDown(); return true },
		OnConnectError:   func(err error) { b.conf.Logger.Warn("broker not reachable", "error", err) },
		ClientConfig: paho.ClientConfig{
			ClientID:                   b.conf.ClientID,
			PacketTimeout:              ackTimeout,
			EnableManualAcknowledgment: true,
			SendAcksInterval:           ackInterval,
			OnPublishReceived:          []func(paho.PublishReceived) (bool, error){b.received},
		},
	}
}

func (b *Broker) connectionUp(session bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.conf.Logger.Info("broker connected", "session", session)
	b.live, b.drop = context.WithCancel(b.done)
	close(b.up)
	if b.subscribed {
		b.wg.Go(b.resubscribe)
	}
}

func (b *Broker) connectionDown() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.conf.Logger.Warn("broker connection lost")
	b.drop()
	b.live, b.up = nil, make(chan struct{})
}

// Away returns ErrAway while there is no connection.
func (b *Broker) Away() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.live == nil {
		return ErrAway
	}
	return nil
}

// connection waits for a connection. Its context ends with it.
func (b *Broker) connection(ctx context.Context) (context.Context, error) {
	for {
		b.mu.Lock()
		live, up := b.live, b.up
		b.mu.Unlock()
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if b.done.Err() != nil {
			return nil, ErrClosed
		}
		if live != nil {
			return live, nil
		}
		select {
		case <-up:
		case <-ctx.Done():
		case <-b.done.Done():
		}
	}
}

// whileConnected runs f, whose context ends with ctx and with the connection,
// on as many connections as it takes. f reports whether its error is final.
func (b *Broker) whileConnected(ctx context.Context, f func(context.Context) (final bool, err error)) error {
	for {
		live, err := b.connection(ctx)
		if err != nil {
			return err
		}
		bound, cancel := context.WithCancel(ctx)
		stop := context.AfterFunc(live, cancel)
		final, err := f(bound)
		stop()
		cancel()
		silent := errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil
		if err == nil || final || silent {
			return err
		}
		select { // whatever else went wrong, the connection did
		case <-live.Done():
		case <-ctx.Done():
		case <-time.After(downTimeout):
			return err
		}
	}
}

// Publish implements mqtt.Broker. Without a connection it waits for one until
// ctx ends. A message whose connection was lost is sent again, and can so reach
// the device twice.
func (b *Broker) Publish(ctx context.Context, m mqtt.Message) error {
	if err := check(m); err != nil {
		return err
	}
	p := &paho.Publish{
		Topic: m.Topic, Payload: m.Payload, QoS: m.QoS,
		Properties: &paho.PublishProperties{ResponseTopic: m.ResponseTopic, CorrelationData: m.CorrelationData},
	}
	if m.Expiry > 0 {
		seconds := uint32(min(math.Ceil(m.Expiry.Seconds()), math.MaxUint32))
		p.Properties.MessageExpiry = &seconds
	}
	err := b.whileConnected(ctx, func(ctx context.Context) (bool, error) {
		resp, err := b.cm.Publish(ctx, p)
		if err != nil && resp != nil {
			return true, fmt.Errorf("%w: reason 0x%02x", ErrRefused, resp.ReasonCode)
		}
		return errors.Is(err, paho.ErrInvalidArguments), err
	})
	if err != nil {
		return fmt.Errorf("publish to %s: %w", m.Topic, err)
	}
	return nil
}

func check(m mqtt.Message) error {
	switch {
	case m.Topic == "" || strings.ContainsAny(m.Topic, "+#\x00"):
		return fmt.Errorf("%w: topic %q", ErrInvalidMessage, m.Topic)
	case m.QoS > 1:
		return fmt.Errorf("%w: QoS %d; use 0 or 1", ErrInvalidMessage, m.QoS)
	case len(m.Payload) > MaxPacketBytes:
		return fmt.Errorf("%w: payload of %d bytes; at most %d", ErrInvalidMessage, len(m.Payload), MaxPacketBytes)
	}
	return nil
}

// Reply implements mqtt.Broker: an external broker knows topics only.
func (b *Broker) Reply(ctx context.Context, _, answer mqtt.Message) error {
	return b.Publish(ctx, answer)
}

// Listening implements mqtt.Broker: nobody tells what a broker elsewhere has.
func (b *Broker) Listening(string) bool { return true }

// Subscribe implements mqtt.Broker. Messages that the broker kept for this
// replica come first.
func (b *Broker) Subscribe(ctx context.Context, filters []string, h mqtt.Handler) error {
	b.mu.Lock()
	switch {
	case b.closing:
		b.mu.Unlock()
		return ErrClosed
	case b.subscribed:
		b.mu.Unlock()
		return ErrSubscribed
	}
	b.subscribed, b.filters = true, filters
	b.mu.Unlock()
	b.lanes.open(ctx, filters, h)
	return b.subscribeAll(ctx)
}

// subscribeAll asks for one filter at a time, each with an identifier, which is
// how copies of one message that matches several filters are told apart.
func (b *Broker) subscribeAll(ctx context.Context) error {
	prefix := ""
	if b.conf.Group != "" {
		prefix = "$share/" + b.conf.Group + "/"
	}
	for i, f := range b.filters {
		id := i + 1
		err := b.whileConnected(ctx, func(ctx context.Context) (bool, error) {
			ack, err := b.cm.Subscribe(ctx, &paho.Subscribe{
				Properties:    &paho.SubscribeProperties{SubscriptionIdentifier: &id},
				Subscriptions: []paho.SubscribeOptions{{Topic: prefix + f, QoS: 1}},
			})
			if err != nil && ack != nil {
				return true, fmt.Errorf("%w: reasons % x", ErrRefused, ack.Reasons)
			}
			return errors.Is(err, paho.ErrInvalidArguments), err
		})
		if err != nil {
			return fmt.Errorf("subscribe to %s: %w", f, err)
		}
	}
	return nil
}

// resubscribe renews the subscriptions after a reconnect: the broker may have
// lost the session.
func (b *Broker) resubscribe() {
	if err := b.subscribeAll(b.done); err != nil && b.done.Err() == nil {
		b.conf.Logger.Error("subscriptions lost", "error", err)
	}
}

// received is called for every PUBLISH and must not block: it is what reads the
// connection.
func (b *Broker) received(p paho.PublishReceived) (bool, error) {
	ack := func() {
		if err := p.Client.Ack(p.Packet); err != nil {
			b.conf.Logger.Debug("acknowledgement came too late", "topic", p.Packet.Topic, "error", err)
		}
	}
	b.lanes.put(item{message: message(p.Packet), subscription: subscriptionOf(p.Packet), ack: ack})
	return true, nil
}

func message(p *paho.Publish) mqtt.Message {
	m := mqtt.Message{
		Topic: p.Topic, Payload: p.Payload, QoS: p.QoS,
		ResponseTopic: p.Properties.ResponseTopic, CorrelationData: p.Properties.CorrelationData,
	}
	if e := p.Properties.MessageExpiry; e != nil {
		m.Expiry = time.Duration(*e) * time.Second
	}
	m.Trace = p.Properties.User.Get(mqtt.TraceProperty)
	return m
}

func subscriptionOf(p *paho.Publish) int {
	if id := p.Properties.SubscriptionIdentifier; id != nil {
		return *id
	}
	return 0
}

// Close implements mqtt.Broker. Messages that no handler has begun stay with
// the broker, for this replica after a restart or, once its session expired,
// for nobody: the devices ask again.
func (b *Broker) Close() error {
	b.mu.Lock()
	if b.closing {
		b.mu.Unlock()
		<-b.closed
		return nil
	}
	b.closing = true
	b.mu.Unlock()
	b.lanes.close()
	b.flushAcks()
	b.cancel()
	var err error
	select {
	case <-b.cm.Done():
	case <-time.After(closeTimeout):
		err = fmt.Errorf("external broker: connection still open after %v", closeTimeout)
	}
	b.wg.Wait()
	close(b.closed)
	return err
}

// flushAcks gives the client library, which sends acknowledgements in batches
// and cannot be asked to, the time for those of the last handlers.
func (b *Broker) flushAcks() {
	b.mu.Lock()
	live := b.live
	b.mu.Unlock()
	if live == nil {
		return
	}
	timer := time.NewTimer(3 * ackInterval)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-live.Done():
	}
}
