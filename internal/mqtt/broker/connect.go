package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/otad/otad/internal/mqtt"
	"github.com/otad/otad/internal/mqtt/packet"
	"github.com/otad/otad/pkg/ota"
)

// serve runs one network connection to its end.
func (b *Broker) serve(nc net.Conn, plain bool) {
	defer b.unregister(nc)
	b.paceFailures(nc.RemoteAddr())
	c := &conn{b: b, nc: nc, plain: plain, closing: make(chan struct{}), told: make(chan struct{}), done: make(chan struct{})}
	if err := b.connect(c); err != nil {
		b.stats.refused.Add(1)
		b.noteFailure(nc.RemoteAddr())
		b.log.Info("connection refused", "remote", nc.RemoteAddr().String(), "error", err)
		c.hangUp()
		return
	}
	s := c.session
	c.flush() // CONNACK, and what waits
	b.presence(s, true, "")
	c.receive()
	b.detach(c)
	c.linger()
	c.hangUp()
}

// refusal is a connection that is not let in: what the client is told, and why.
type refusal struct {
	code packet.Code
	err  error
}

func (r refusal) Error() string { return r.err.Error() }
func (r refusal) Unwrap() error { return r.err }

func refuse(code packet.Code, format string, args ...any) error {
	return refusal{code, fmt.Errorf(format, args...)}
}

// connect takes the connection up to its CONNACK. On an error the client has been
// told.
func (b *Broker) connect(c *conn) error {
	deadline := time.Now().Add(b.lim.ConnectTimeout)
	_ = c.nc.SetDeadline(deadline)
	if t, ok := c.nc.(*tls.Conn); ok {
		ctx, cancel := context.WithDeadline(context.Background(), deadline)
		defer cancel()
		if err := t.HandshakeContext(ctx); err != nil {
			return b.late(err)
		}
	}
	p, err := c.firstPacket()
	if err == nil {
		err = b.admit(c, p)
	} else {
		err = b.late(err)
	}
	if err == nil {
		return nil
	}
	if code := codeOf(err); code != 0 && p.Version != 0 && mayTell(p.Version, err) {
		ack := rejection(p, code, err)
		if p.MaximumPacket != 0 && len(ack) > int(p.MaximumPacket) {
			return err
		}
		_, werr := c.nc.Write(ack)
		return errors.Join(err, werr)
	}
	return err
}

// late says so where the client took too long.
func (b *Broker) late(err error) error {
	if !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("no CONNECT within %s: send it sooner%s: %w", b.lim.ConnectTimeout, b.lim.raise("connect-timeout"), err)
}

// rejection is the CONNACK that refuses p, with the reason in words if the client
// takes them (3.2.2.3.9). Who is not let in for what it is, or not now, hears no more
// than that.
func rejection(p packet.Connect, code packet.Code, err error) []byte {
	mute := packet.AppendConnack(nil, p.Version, packet.Connack{Code: code})
	if code == packet.NotAuthorized || errors.Is(err, ErrUnavailable) || p.NoProblemInfo {
		return mute
	}
	ack := packet.AppendConnack(nil, p.Version, packet.Connack{Code: code, Reason: err.Error()})
	if p.MaximumPacket != 0 && len(ack) > int(p.MaximumPacket) {
		return mute
	}
	return ack
}

// mayTell: a client of MQTT 3.1.1 whose CONNECT is malformed gets no CONNACK (MQTT
// 3.1.1, 3.1.4-1).
func mayTell(version byte, err error) bool {
	var fault *packet.Error
	return version == packet.V5 || !errors.As(err, &fault) || fault.Code != packet.MalformedPacket && fault.Code != packet.ProtocolError
}

func codeOf(err error) packet.Code {
	var r refusal
	var fault *packet.Error
	switch {
	case errors.As(err, &r):
		return r.code
	case errors.As(err, &fault):
		return fault.Code
	}
	return 0
}

// firstPacket reads the CONNECT. Its Version is set when an answer can be made.
func (c *conn) firstPacket() (packet.Connect, error) {
	for {
		h, body, ok, err := c.frames.next(&c.b.lim)
		if err != nil {
			return packet.Connect{}, err
		}
		if !ok {
			if h.Type != 0 && h.Type != packet.CONNECT {
				return packet.Connect{}, fmt.Errorf("packet %d before CONNECT", h.Type) // 3.1.0-1
			}
			if err := c.frames.fill(c.nc); err != nil {
				return packet.Connect{}, err
			}
			continue
		}
		if h.Type != packet.CONNECT {
			return packet.Connect{}, fmt.Errorf("packet %d before CONNECT", h.Type)
		}
		p, err := packet.DecodeConnect(body)
		if p.Version != packet.V31 && p.Version != packet.V311 {
			p.Version = packet.V5 // of unknown versions the newest may understand us
		}
		return p, err
	}
}

// admit decides about a CONNECT and, if it is let in, gives it its session and
// sends the CONNACK.
func (b *Broker) admit(c *conn, p packet.Connect) error {
	c.version = p.Version
	if b.isClosing() {
		return refuse(packet.ServerUnavailable, "%w", ErrClosed)
	}
	if b.full() {
		return refuse(packet.ServerBusy, "there are %d connections: connect later"+b.lim.raise("connections"), b.lim.Connections)
	}
	if p.AuthMethod != "" {
		return refuse(packet.BadAuthenticationMethod, "enhanced authentication %.40q is not offered", p.AuthMethod)
	}
	id, err := b.identify(c, p)
	if err != nil {
		return err
	}
	clientID, err := b.clientID(p, id)
	if err != nil {
		return err
	}
	b.paceConnect(id, clientID)
	if err := b.checkWill(p.Will, id); err != nil {
		return err
	}
	ack := b.settings(c, p, id)
	if p.ClientID == "" {
		ack.AssignedID = clientID
	}
	if size := len(packet.AppendConnack(nil, c.version, ack)); !c.fits(size) {
		return refuse(packet.PacketTooLarge, "maximum packet size of %d bytes; CONNACK alone has %d", c.maxPacket, size)
	}
	return b.attach(c, p, id, clientID, ack)
}

func (b *Broker) full() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.conns) > b.lim.Connections
}

func (b *Broker) identify(c *conn, p packet.Connect) (mqtt.Identity, error) {
	ctx, cancel := context.WithTimeout(context.Background(), b.lim.ConnectTimeout)
	defer cancel()
	creds := Credentials{ClientID: p.ClientID, Username: p.Username, Password: p.Password, Remote: c.nc.RemoteAddr(), Plain: c.plain}
	state := tlsState(c.nc)
	if state != nil && len(state.VerifiedChains) > 0 {
		creds.Certificates = state.PeerCertificates
	}
	c.began = time.Now()
	id, err := b.conf.Authenticate(ctx, creds)
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	switch {
	case errors.Is(err, ErrUnavailable): // some clients give up for good when not authorized
		return id, refuse(packet.ServerUnavailable, "authenticate: %w", err)
	case err != nil:
		return id, refuse(packet.NotAuthorized, "authenticate: %w", err)
	}
	if id.Name == "" || id.Access == nil {
		return id, refuse(packet.NotAuthorized, "authenticate: nobody")
	}
	if id.Device {
		if err := ota.ValidateDeviceID(id.Name); err != nil {
			return id, refuse(packet.NotAuthorized, "%w", err)
		}
	}
	return id, nil
}

func tlsState(nc net.Conn) *tls.ConnectionState {
	switch t := nc.(type) {
	case *tls.Conn:
		s := t.ConnectionState()
		return &s
	case *webSocket:
		return t.request.TLS
	}
	return nil
}

// clientID is the client id that the session goes by (3.1.3.1).
func (b *Broker) clientID(p packet.Connect, id mqtt.Identity) (string, error) {
	switch {
	case p.ClientID == "" && p.Version == packet.V31:
		return "", refuse(packet.ClientIDNotValid, "empty client id; MQTT 3.1 wants one")
	case strings.ContainsAny(p.ClientID, "+#"): // it may end up in a topic
		return "", refuse(packet.ClientIDNotValid, "client id %.140q has a wildcard", p.ClientID)
	case p.ClientID == "" && p.Version != packet.V5 && !p.CleanStart:
		return "", refuse(packet.ClientIDNotValid, "empty client id without a clean session") // MQTT 3.1.1, 3.1.3-8
	case id.Device && p.ClientID != "" && p.ClientID != id.Name:
		return "", refuse(packet.ClientIDNotValid, "device %s claims the client id %.140q", id.Name, p.ClientID)
	case id.Device:
		return id.Name, nil
	case p.ClientID == "":
		return "auto-" + uuid.NewString(), nil
	case len(p.ClientID) > b.lim.ClientIDBytes:
		return "", refuse(packet.ClientIDNotValid, "client id of %d bytes; at most %d: take a shorter one"+b.lim.raise("client-id-bytes"), len(p.ClientID), b.lim.ClientIDBytes)
	}
	return p.ClientID, nil
}

func (b *Broker) checkWill(w *packet.Will, id mqtt.Identity) error {
	if w == nil {
		return nil
	}
	if err := b.checkTopic(w.Topic); err != nil {
		return refuse(packet.TopicNameInvalid, "will: %w", err)
	}
	if !id.Access.MayPublish(w.Topic) {
		return refuse(packet.NotAuthorized, "%s: will for the topic %.140q", id.Name, w.Topic)
	}
	return nil
}

// settings takes over what the client asks for and says what it gets instead.
func (b *Broker) settings(c *conn, p packet.Connect, id mqtt.Identity) packet.Connack {
	c.window = min(int(p.ReceiveMaximum), b.lim.Inflight)
	c.maxPacket, c.terse = int(p.MaximumPacket), p.NoProblemInfo
	c.outAliases = aliases{most: min(p.AliasMaximum, b.lim.TopicAliases)}
	ack := packet.Connack{
		ReceiveMaximum: b.lim.ReceiveMaximum, MaximumPacket: uint32(b.lim.PacketBytes), AliasMaximum: b.lim.TopicAliases,
	}
	keepAlive := time.Duration(p.KeepAlive) * time.Second
	switch {
	case keepAlive > 0 && keepAlive <= b.lim.KeepAlive:
	case p.Version == packet.V5:
		keepAlive, c.shortened = b.lim.KeepAlive, true
		seconds := uint16(max(keepAlive/time.Second, 1))
		ack.ServerKeepAlive = &seconds
	default:
		if err := askByTCP(c.nc, b.lim.KeepAlive); err != nil {
			b.log.Warn("no TCP keep-alive: a client that is lost may keep its place", "client", p.ClientID, "error", err)
		}
	}
	c.idle = keepAlive * 3 / 2
	expiry := b.expiry(p.SessionExpiry, id)
	if seconds := uint32(expiry / time.Second); p.Version == packet.V5 && seconds != p.SessionExpiry {
		ack.SessionExpiry = &seconds
	}
	return ack
}

// expiry is the session expiry that a client gets for what it asked.
func (b *Broker) expiry(seconds uint32, id mqtt.Identity) time.Duration {
	if id.Passing {
		return 0
	}
	return min(time.Duration(seconds)*time.Second, b.lim.SessionExpiry)
}

func (b *Broker) checkTopic(topic string) error {
	if len(topic) > b.lim.TopicBytes {
		return fmt.Errorf("topic of %d bytes; at most %d: take a shorter one"+b.lim.raise("topic-bytes"), len(topic), b.lim.TopicBytes)
	}
	levels := 1
	for i := range len(topic) {
		if topic[i] == '/' {
			levels++
		}
	}
	if levels > b.lim.TopicLevels {
		return fmt.Errorf("topic of %d levels; at most %d: take one with fewer"+b.lim.raise("topic-levels"), levels, b.lim.TopicLevels)
	}
	return nil
}

func deviceKey(id string) string { return "d/" + id }

// sessionKey keeps devices apart from clients that choose their own ids, and
// those of different identities from each other.
func sessionKey(id mqtt.Identity, clientID string) string {
	if id.Device {
		return deviceKey(id.Name)
	}
	return "c/" + id.Name + "/" + clientID
}

// attach makes c the connection of its session, once the one before has left, and
// sends CONNACK, what was in flight, and what waits.
func (b *Broker) attach(c *conn, p packet.Connect, id mqtt.Identity, clientID string, ack packet.Connack) error {
	ctx, cancel := context.WithTimeout(context.Background(), b.lim.ConnectTimeout)
	defer cancel()
	for {
		before, ended, err := b.claim(c, p, id, clientID, ack)
		if ended != nil { // its end is durable before a new one begins: a kill does not bring it back
			b.bury(ended)
			if err := b.journal.written(ctx); err != nil {
				b.log.Error("session not stored", "client", clientID, "error", err)
				return refuse(packet.ServerUnavailable, "the end of the former session could not be stored: %w", err)
			}
			continue
		}
		if err != nil || before == nil {
			return err
		}
		before.close(packet.SessionTakenOver, "taken over")
		select {
		case <-before.done:
		case <-ctx.Done():
			return refuse(packet.ServerBusy, "the former connection has not ended within %s: connect later"+b.lim.raise("connect-timeout"), b.lim.ConnectTimeout)
		case <-b.quit:
			return refuse(packet.ServerUnavailable, "%w", ErrClosed)
		}
	}
}

// claim gives c its session unless before still holds it, or it ended, to make room for a
// new one.
func (b *Broker) claim(c *conn, p packet.Connect, id mqtt.Identity, clientID string, ack packet.Connack) (before *conn, ended *session, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closing {
		return nil, nil, refuse(packet.ServerUnavailable, "%w", ErrClosed)
	}
	key := sessionKey(id, clientID)
	s := b.sessions[key]
	if s != nil {
		if before, ended = s.yield(p); before != nil {
			return before, nil, nil
		}
		if ended != nil {
			b.leave(s)
			return nil, ended, nil
		}
	}
	expiry := b.expiry(p.SessionExpiry, id)
	if !id.Device && expiry > 0 && (s == nil || !s.counted) && b.lasting[id.Name] >= b.lim.Sessions {
		return nil, nil, refuse(packet.QuotaExceeded, "%d sessions with an expiry of %.140q: connect without one, with a client id that has one already"+b.lim.raise("sessions"), b.lim.Sessions, id.Name)
	}
	ack.SessionPresent = s != nil && c.version != packet.V31 // which has no such flag
	if s == nil {
		s = &session{b: b, key: key, clientID: clientID, subs: map[string]*subscription{}}
		b.sessions[key] = s
	}
	b.count(s, id, expiry)
	b.conns[c.nc] = c
	s.begin(c, p, id, ack)
	return nil, nil, nil
}

// yield names the connection that still has s, or ends s if its time is over or p starts
// anew. Broker.mu is held.
func (s *session) yield(p packet.Connect) (before *conn, ended *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		return s.conn, nil
	}
	if !p.CleanStart && !s.over(time.Now()) {
		return nil, nil
	}
	if s.expiry == 0 { // it ended with a process, and the client is back in time
		s.will = nil
	}
	s.end()
	return nil, s
}
