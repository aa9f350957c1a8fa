package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/coder/websocket"
)

func (b *Broker) listen(ctx context.Context) error {
	// MQTT has a keep alive of its own; that of TCP costs four system calls a connection
	// and is switched on for those that need it: askByTCP.
	lc := net.ListenConfig{KeepAlive: -1}
	if b.conf.TLSAddr != "" {
		if b.conf.TLS == nil {
			return errors.New("TLSAddr without TLS configuration")
		}
		l, err := lc.Listen(ctx, "tcp", b.conf.TLSAddr)
		if err != nil {
			return err
		}
		b.tls = tls.NewListener(l, withMQTTProtocols(b.conf.TLS))
		b.wg.Go(func() { b.accept(b.tls, false) })
	}
	if b.conf.PlainAddr != "" {
		if err := requireLoopback(b.conf.PlainAddr); err != nil {
			return err
		}
		l, err := lc.Listen(ctx, "tcp", b.conf.PlainAddr)
		if err != nil {
			return err
		}
		b.plain = l
		b.wg.Go(func() { b.accept(b.plain, true) })
	}
	return nil
}

// tcpProbes is how many questions TCP asks before it gives a connection up, and
// maxTCPSilence how long it waits with the first one; Linux takes 9 h at most.
const (
	tcpProbes     = 9
	maxTCPSilence = 2 * time.Hour
)

// askByTCP lets the kernel ask a client that is silent for that long whether it is
// still there, and end the connection after half of it again. It is for clients
// before MQTT 5 with a keep alive above the limit, or none: they can not be told of
// a shorter one and may be silent, but one that lost its power must not keep its
// place. A WebSocket comes by net/http, whose listener asks by itself.
func askByTCP(nc net.Conn, silence time.Duration) error {
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
	tcp, ok := nc.(*net.TCPConn)
	if !ok {
		return nil
	}
	silence = min(silence, maxTCPSilence)
	return tcp.SetKeepAliveConfig(net.KeepAliveConfig{
		Enable: true, Idle: silence, Interval: max(silence/2/tcpProbes, time.Second), Count: tcpProbes,
	})
}

// withMQTTProtocols offers the protocol names that device SDKs ask for. A client
// that names others only would be turned away otherwise.
func withMQTTProtocols(c *tls.Config) *tls.Config {
	c = c.Clone()
	c.NextProtos = []string{"x-amzn-mqtt-ca", "mqtt"}
	return c
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

// accept serves connections until l is closed.
func (b *Broker) accept(l net.Listener, plain bool) {
	for {
		nc, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			b.log.Error("accept", "error", err)
			if !b.pause(time.Second) { // out of file descriptors, most likely
				return
			}
			continue
		}
		if !b.register(nc) {
			_ = nc.Close()
			return
		}
		go b.serve(nc, plain)
	}
}

// pause waits for d; false when the broker is closed in the meantime.
func (b *Broker) pause(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-b.quit:
		return false
	}
}

// register counts nc among what Close ends and waits for.
func (b *Broker) register(nc net.Conn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closing {
		return false
	}
	b.conns[nc] = nil
	b.wg.Add(1)
	return true
}

func (b *Broker) unregister(nc net.Conn) {
	b.mu.Lock()
	delete(b.conns, nc)
	b.mu.Unlock()
	b.wg.Done()
}

// ServeHTTP takes MQTT over WebSocket (6). The caller mounts it, as a rule at
// /mqtt of a TLS server. It returns when the connection has ended.
func (b *Broker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ws, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"mqtt", "mqttv3.1"}})
	if err != nil {
		return // Accept has answered
	}
	if ws.Subprotocol() == "" {
		_ = ws.Close(websocket.StatusPolicyViolation, "the subprotocol mqtt is required") // 6.0.0-3
		return
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
	defer cancel()
	nc := &webSocket{Conn: websocket.NetConn(ctx, ws, websocket.MessageBinary), request: r, closed: make(chan struct{})}
	if !b.register(nc) {
		_ = ws.Close(websocket.StatusGoingAway, "server shutting down")
		return
	}
	b.serve(nc, r.TLS == nil)
}

// webSocket is a connection that knows the request it came by, and when a deadline of
// its has passed, which the one below says in words of its own.
type webSocket struct {
	net.Conn
	request         *http.Request
	readBy, writeBy atomic.Pointer[time.Time]
	writing         atomic.Bool
	closing         sync.Once
	closed          chan struct{}
}

// Read implements net.Conn. When the deadline of a write has passed, that ends the
// connection, and the write is who says so.
func (w *webSocket) Read(b []byte) (int, error) {
	n, err := w.Conn.Read(b)
	if err != nil && w.writing.Load() && late(err, w.writeBy.Load()) != err {
		<-w.closed
	}
	return n, late(err, w.readBy.Load())
}

// Write implements net.Conn.
func (w *webSocket) Write(b []byte) (int, error) {
	w.writing.Store(true)
	n, err := w.Conn.Write(b)
	if err = late(err, w.writeBy.Load()); err == nil {
		w.writing.Store(false)
	}
	return n, err
}

// Close implements net.Conn.
func (w *webSocket) Close() error {
	w.closing.Do(func() { close(w.closed) })
	return w.Conn.Close()
}

// late is err, or says that this deadline has passed.
func late(err error, by *time.Time) error {
	if err == nil || by == nil || by.IsZero() || time.Now().Before(*by) {
		return err
	}
	return fmt.Errorf("%w: %w", os.ErrDeadlineExceeded, err)
}

// SetDeadline implements net.Conn.
func (w *webSocket) SetDeadline(t time.Time) error {
	return errors.Join(w.SetReadDeadline(t), w.SetWriteDeadline(t))
}

// SetReadDeadline implements net.Conn.
func (w *webSocket) SetReadDeadline(t time.Time) error {
	w.readBy.Store(&t)
	return w.Conn.SetReadDeadline(t)
}

// SetWriteDeadline implements net.Conn.
func (w *webSocket) SetWriteDeadline(t time.Time) error {
	w.writeBy.Store(&t)
	return w.Conn.SetWriteDeadline(t)
}

// RemoteAddr is that of the network connection below.
func (w *webSocket) RemoteAddr() net.Addr {
	a, err := net.ResolveTCPAddr("tcp", w.request.RemoteAddr)
	if err != nil {
		return w.Conn.RemoteAddr()
	}
	return a
}
