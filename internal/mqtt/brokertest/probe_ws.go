package brokertest

import (
	"bufio"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

// wsConn is a WebSocket client (RFC 6455) that can do wrong what a library would
// not: it sends what it is given as one binary frame.
type wsConn struct {
	net.Conn
	in   *bufio.Reader
	left int64 // of the frame that is being read
}

const (
	wsContinuation = 0
	wsText         = 1
	wsBinary       = 2
	wsClose        = 8
	wsPing         = 9
	wsPong         = 10
	wsFinal        = 0x80
)

// dialWS does the opening handshake with that subprotocol.
func (p *probe) dialWS(protocol string) (*wsConn, *http.Response) {
	u, err := url.Parse(p.target.WebSocket)
	if err != nil {
		p.fatalf("WebSocket: %v", err)
	}
	nc, err := net.DialTimeout("tcp", u.Host, patience)
	if err != nil {
		p.fatalf("WebSocket: %v", err)
	}
	p.cleanup(func() { _ = nc.Close() })
	key := make([]byte, 16)
	_, _ = rand.Read(key) // never fails
	req := &http.Request{Method: http.MethodGet, URL: u, Host: u.Host, ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{
		"Upgrade": {"websocket"}, "Connection": {"Upgrade"}, "Sec-Websocket-Version": {"13"},
		"Sec-Websocket-Key": {base64.StdEncoding.EncodeToString(key)},
	}}
	if protocol != "" {
		req.Header.Set("Sec-Websocket-Protocol", protocol)
	}
	_ = nc.SetDeadline(time.Now().Add(patience))
	if err := req.Write(nc); err != nil {
		p.fatalf("WebSocket: %v", err)
	}
	c := &wsConn{Conn: nc, in: bufio.NewReader(nc)}
	resp, err := http.ReadResponse(c.in, req)
	if err != nil {
		p.fatalf("WebSocket: %v", err)
	}
	return c, resp
}

// frame sends one frame, masked as a client must.
func (c *wsConn) frame(first byte, payload []byte) error {
	b := []byte{first}
	switch n := len(payload); {
	case n < 126:
		b = append(b, 0x80|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, 0x80|127), uint64(n))
	}
	mask := [4]byte{1, 2, 3, 4}
	b = append(b, mask[:]...)
	for i, x := range payload {
		b = append(b, x^mask[i%4])
	}
	_, err := c.Conn.Write(b)
	return err
}

// Write implements io.Writer: one binary frame.
func (c *wsConn) Write(b []byte) (int, error) { return len(b), c.frame(wsFinal|wsBinary, b) }

// Read implements io.Reader over the payloads of binary frames.
func (c *wsConn) Read(b []byte) (int, error) {
	for c.left == 0 {
		if err := c.header(); err != nil {
			return 0, err
		}
	}
	n, err := c.in.Read(b[:min(int64(len(b)), c.left)])
	c.left -= int64(n)
	return n, err
}

func (c *wsConn) header() error {
	var h [2]byte
	if _, err := io.ReadFull(c.in, h[:]); err != nil {
		return err
	}
	if h[1]&0x80 != 0 {
		return errors.New("a masked frame from the server")
	}
	n := int64(h[1])
	var long [8]byte
	switch n {
	case 126:
		if _, err := io.ReadFull(c.in, long[6:]); err != nil {
			return err
		}
		n = int64(binary.BigEndian.Uint64(long[:]))
	case 127:
		if _, err := io.ReadFull(c.in, long[:]); err != nil {
			return err
		}
		n = int64(binary.BigEndian.Uint64(long[:]))
	}
	if n > maxProbePacket {
		return fmt.Errorf("a frame of %d bytes", n)
	}
	switch h[0] & 0xf {
	case wsBinary, wsContinuation:
		c.left = n
		return nil
	case wsClose:
		return io.EOF
	case wsPing, wsPong:
		_, err := io.CopyN(io.Discard, c.in, n)
		return err
	}
	return fmt.Errorf("a frame of type %d", h[0]&0xf)
}

// webSocket is clause 6 of MQTT 5.
func (p *probe) webSocket() {
	if p.target.WebSocket == "" {
		return
	}
	nc, resp := p.dialWS("mqtt")
	if resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Sec-Websocket-Protocol") != "mqtt" {
		p.fatalf("opening: %s, subprotocol %q", resp.Status, resp.Header.Get("Sec-Websocket-Protocol"))
	}
	ws := p.over(nc, v5)
	ws.mustConnect(hello{id: "ws"})
	ws.mustSub(1, "ws/#")
	tcp := p.client(v5, "tcp")
	tcp.mustPub(out{topic: "ws/1", payload: "1", qos: 1})
	ws.wants("1")
	tcp.mustSub(1, "tcp")
	// Packets are a stream: frames may end anywhere (MQTT-6.0.0-2).
	both := append(out{topic: "tcp", payload: "a", qos: 1}.encode(v5, 50), out{topic: "tcp", payload: "b", qos: 1}.encode(v5, 51)...)
	ws.send(both)
	for i := range both {
		_ = nc.frame(wsFinal|wsBinary, both[i:i+1])
	}
	_ = nc.frame(wsBinary, both[:5])                // a message of two fragments
	_ = nc.frame(wsFinal|wsContinuation, both[5:])  //
	_ = nc.frame(wsFinal|wsPing, []byte("between")) // and control frames between
	for range 3 {
		tcp.wants("a")
		tcp.wants("b")
	}
	for range 6 {
		ws.await(puback)
	}
	large := make([]byte, 100_000)
	ws.mustPub(out{topic: "tcp", payload: string(large), qos: 1})
	tcp.wants(string(large))
	tcp.mustPub(out{topic: "ws/2", payload: string(large), qos: 1})
	ws.wants(string(large))

	nc, _ = p.dialWS("mqtt") // MQTT-6.0.0-1
	text := p.over(nc, v5)
	text.idle = 5 * time.Second
	text.mustConnect(hello{id: "text"})
	_ = nc.frame(wsFinal|wsText, frame(pingreq<<4))
	for {
		got, err := text.tryRead()
		if err != nil {
			if isTimeout(err) {
				p.errorf("a text frame is taken")
			}
			break
		}
		if got.kind == pingresp {
			p.errorf("a packet in a text frame is answered")
		}
	}
	nc, _ = p.dialWS("mqttv3.1")
	_ = nc.Close()
	old, resp := p.dialWS("mqtt")
	if resp.StatusCode == http.StatusSwitchingProtocols {
		o := p.over(old, v311)
		o.mustConnect(hello{id: "old"})
		o.mustPub(out{topic: "ws/3", payload: "3", qos: 2})
		ws.wants("3")
		o.goodbye()
	}
	ws.goodbye()
}
