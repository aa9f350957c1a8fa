package mqtt

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	"github.com/eclipse/paho.golang/paho/session/state"

	"github.com/otad/otad/agent"
	"github.com/otad/otad/pkg/ota"
)

const (
	receiveMaximum = 20 // packets the broker may have in flight to us
	keepAlive      = 60 * time.Second
	// sessionExpiry is how long the broker keeps our subscriptions: long enough
	// for a reconnect, short enough not to queue for a device in a drawer.
	sessionExpiry    = time.Hour
	connectTimeout   = 20 * time.Second
	subscribeTimeout = 15 * time.Second
	closeTimeout     = 5 * time.Second
	steadyAfter      = time.Minute // a connection that lasted this long was a good one

	// RequestTimeout is how long an answer is waited for by default.
	RequestTimeout = 20 * time.Second

	backoffBase   = 8 * time.Second
	backoffWidest = 5 * time.Minute
)

// DialFunc opens a network connection, as net.Dialer.DialContext does.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// Config is what a Transport needs.
type Config struct {
	URL         string                  // mqtts://host:port, from enrollment
	DeviceID    string                  // client id, and the common name of Certificate
	CAs         *x509.CertPool          // the pinned CA alone
	Certificate func() *tls.Certificate // asked at each connect, so that a renewed one is used

	Log            *slog.Logger              // nil: discarded
	Dial           DialFunc                  // nil: a net.Dialer
	Now            func() time.Time          // for certificates; nil: time.Now
	RequestTimeout time.Duration             // 0: RequestTimeout
	Backoff        func(n int) time.Duration // wait before the n-th reconnect in a row; nil: full jitter, 8 s to 5 min
}

// Transport is one device's connection, kept up until Close. It implements
// agent.Transport and is safe for concurrent use. Requests made while the line
// is down wait for it as long as for an answer.
type Transport struct {
	cfg    Config
	topics topics
	cm     *autopaho.ConnectionManager
	cancel context.CancelFunc
	wg     sync.WaitGroup
	wake   chan struct{}
	up     chan struct{}
	ups    chan *line // the newest connection, to be subscribed
	prefix string     // of client tokens: random for each process

	mu      sync.Mutex
	line    *line         // the current connection; nil while down
	ready   chan struct{} // closed while requests can be made
	pending map[string]chan<- answer
	count   uint64
	since   time.Time // when line came up
	starts  int       // connects so far, for the first one's lack of wait
	flaps   int       // connections in a row that did not last
	closing bool
}

// line is one connection; down is closed when it is lost.
type line struct{ down chan struct{} }

var _ agent.Transport = (*Transport)(nil)

// New starts connecting and returns at once. Close must be called.
func New(cfg Config) (*Transport, error) {
	u, err := url.Parse(cfg.URL)
	if err != nil || u.Scheme != "mqtts" || u.Hostname() == "" || u.Port() == "" {
		return nil, fmt.Errorf("broker address %q: want mqtts://host:port", cfg.URL)
	}
	if err := ota.ValidateDeviceID(cfg.DeviceID); err != nil {
		return nil, err
	}
	if cfg.CAs == nil || cfg.Certificate == nil {
		return nil, errors.New("a transport needs the server's CA and the device's certificate")
	}
	cfg.setDefaults()
	t := &Transport{
		cfg:     cfg,
		topics:  newTopics(cfg.DeviceID),
		wake:    make(chan struct{}, 1),
		up:      make(chan struct{}, 1),
		ups:     make(chan *line, 1),
		prefix:  rand.Text()[:12],
		ready:   make(chan struct{}),
		pending: map[string]chan<- answer{},
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.cancel = cancel
	if t.cm, err = autopaho.NewConnection(ctx, t.clientConfig(u)); err != nil {
		cancel()
		return nil, err
	}
	t.wg.Go(func() { t.run(ctx) })
	return t, nil
}

func (c *Config) setDefaults() {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Dial == nil {
		c.Dial = new(net.Dialer).DialContext
	}
	if c.RequestTimeout == 0 {
		c.RequestTimeout = RequestTimeout
	}
	if c.Backoff == nil {
		c.Backoff = FullJitter(backoffBase, backoffWidest)
	}
}

func (t *Transport) clientConfig(u *url.URL) autopaho.ClientConfig {
	return autopaho.ClientConfig{
		ServerUrls:            []*url.URL{u},
		KeepAlive:             uint16(keepAlive / time.Second),
		SessionExpiryInterval: uint32(sessionExpiry / time.Second),
		ReconnectBackoff:      t.backoff,
		ConnectTimeout:        connectTimeout,
		AttemptConnection:     t.dial,
		OnConnectionUp:        func(*autopaho.ConnectionManager, *paho.Connack) { t.connected() },
		OnConnectionDown:      func() bool { t.disconnected(); return true },
		OnConnectError:        t.notConnected,
		WillMessage:           &paho.WillMessage{Topic: t.topics.presence, Payload: offline, QoS: 1},
		ConnectPacketBuilder:  connectPacket,
		// with the will, so that a planned end looks like an end
		DisconnectPacketBuilder: func() *paho.Disconnect { return &paho.Disconnect{ReasonCode: 4} },
		ClientConfig: paho.ClientConfig{
			ClientID:           t.cfg.DeviceID,
			Session:            state.NewInMemory(),
			OnPublishReceived:  []func(paho.PublishReceived) (bool, error){t.received},
			OnServerDisconnect: t.thrownOut,
		},
	}
}

func connectPacket(c *paho.Connect, _ *url.URL) (*paho.Connect, error) {
	if c.Properties == nil {
		c.Properties = new(paho.ConnectProperties)
	}
	inFlight, size := uint16(receiveMaximum), uint32(maxPacket)
	c.Properties.ReceiveMaximum = &inFlight
	c.Properties.MaximumPacketSize = &size
	return c, nil
}

// dial opens the TLS connection; no proxy, whatever the environment says.
func (t *Transport) dial(ctx context.Context, _ autopaho.ClientConfig, u *url.URL) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	raw, err := t.cfg.Dial(ctx, "tcp", u.Host)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: u.Hostname(),
		RootCAs:    t.cfg.CAs,
		Time:       t.cfg.Now,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return t.cfg.Certificate(), nil
		},
	})
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, err
	}
	return packets.NewThreadSafeConn(newLimitConn(conn)), nil
}

// backoff spreads every connect but the first of the process.
func (t *Transport) backoff(attempt int) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.starts++
	if t.starts == 1 {
		return 0
	}
	return t.cfg.Backoff(attempt + t.flaps)
}

func (t *Transport) connected() {
	l := &line{down: make(chan struct{})}
	t.mu.Lock()
	t.line, t.since = l, time.Now()
	t.mu.Unlock()
	select {
	case <-t.ups: // an older one that nobody got to
	default:
	}
	t.ups <- l
}

func (t *Transport) disconnected() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.line == nil {
		return
	}
	close(t.line.down)
	t.line = nil
	select {
	case <-t.ready:
		t.ready = make(chan struct{})
	default:
	}
	if t.flaps++; time.Since(t.since) >= steadyAfter {
		t.flaps = 0
	}
	if !t.closing {
		t.cfg.Log.Info("connection to the broker lost", "url", t.cfg.URL)
	}
}

func (t *Transport) notConnected(err error) {
	refused := new(autopaho.ConnackError)
	switch {
	case !errors.As(err, &refused):
		t.cfg.Log.Warn("broker not reached", "url", t.cfg.URL, "err", err)
	case refused.ReasonCode == packets.ConnackNotAuthorized:
		t.cfg.Log.Error("broker refuses this device: was it revoked, or is its certificate over?", "url", t.cfg.URL, "device", t.cfg.DeviceID)
	default:
		t.cfg.Log.Warn("broker refuses the connection", "url", t.cfg.URL, "reason", fmt.Sprintf("%#02x", refused.ReasonCode), "text", refused.Reason)
	}
}

func (t *Transport) thrownOut(d *paho.Disconnect) {
	if d.ReasonCode == packets.DisconnectSessionTakenOver {
		t.cfg.Log.Error("another connection uses this device's identity: was its disk image copied?", "device", t.cfg.DeviceID)
		return
	}
	t.cfg.Log.Warn("broker ended the connection", "reason", fmt.Sprintf("%#02x", d.ReasonCode))
}

// run prepares each new connection: subscriptions, presence, then requests.
func (t *Transport) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case l := <-t.ups:
			t.prepare(ctx, l)
		}
	}
}

func (t *Transport) prepare(ctx context.Context, l *line) {
	for n := 0; ; n++ {
		err := t.subscribe(ctx)
		if err == nil {
			break
		}
		t.cfg.Log.Warn("broker refuses our subscriptions", "err", err)
		wait := time.NewTimer(t.cfg.Backoff(n))
		select {
		case <-l.down:
		case <-ctx.Done():
		case <-wait.C:
			continue
		}
		wait.Stop()
		return
	}
	t.mu.Lock()
	current := t.line == l
	if current {
		signal(t.up)
		close(t.ready)
	}
	t.mu.Unlock()
	if !current {
		return
	}
	t.cfg.Log.Info("connected to the broker", "url", t.cfg.URL)
	t.poke()
	t.announce(ctx)
}

func (t *Transport) subscribe(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, subscribeTimeout)
	defer cancel()
	_, err := t.cm.Subscribe(ctx, &paho.Subscribe{Subscriptions: t.topics.subscriptions()})
	return err
}

func (t *Transport) announce(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, subscribeTimeout)
	defer cancel()
	if _, err := t.cm.Publish(ctx, &paho.Publish{Topic: t.topics.presence, Payload: online, QoS: 1}); err != nil {
		t.cfg.Log.Debug("presence not sent", "err", err)
	}
}

// Wake implements agent.Transport.
func (t *Transport) Wake() <-chan struct{} { return t.wake }

// Connected implements agent.Transport.
func (t *Transport) Connected() <-chan struct{} { return t.up }

func (t *Transport) poke() { signal(t.wake) }

// signal leaves a value in a channel of capacity 1, unless one is there.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Close says goodbye, so that the server sees the device go, and returns when
// everything New started has ended. Requests under way fail.
func (t *Transport) Close() {
	t.mu.Lock()
	t.closing = true
	t.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	if err := t.cm.Disconnect(ctx); err != nil {
		t.cfg.Log.Debug("closing the connection", "err", err)
	}
	t.cancel()
	<-t.cm.Done()
	t.disconnected()
	t.wg.Wait()
}
