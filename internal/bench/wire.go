package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"

	"github.com/eclipse/paho.golang/packets"
)

// Types of MQTT packets, the upper half of the first byte.
const (
	typePublish = 3
	typePuback  = 4
)

// maxPacket bounds what is read of the broker.
const maxPacket = 1 << 20

// wire is an MQTT 5 connection with as little work on this side as can be: the
// generator shares the processors with what it measures.
type wire struct {
	nc  net.Conn
	in  *bufio.Reader
	buf []byte // of the last packet
}

func newWire(nc net.Conn) *wire { return newWireSize(nc, 4*kib) }

func newWireSize(nc net.Conn, size int) *wire {
	return &wire{nc: nc, in: bufio.NewReaderSize(nc, size)}
}

// hello is what matters of a CONNECT here.
type hello struct {
	id             string // and the user name, where there is a password
	password       string
	receiveMaximum uint16 // 0: unset
}

// open opens a session and subscribes to the filters, if there are any.
func (w *wire) open(h hello, qos byte, filters ...string) error {
	connect := packets.NewControlPacket(packets.CONNECT)
	c := connect.Content.(*packets.Connect)
	c.ClientID, c.KeepAlive, c.CleanStart = h.id, 600, true
	if h.password != "" {
		c.UsernameFlag, c.PasswordFlag, c.Username, c.Password = true, true, h.id, []byte(h.password)
	}
	if h.receiveMaximum > 0 {
		c.Properties = &packets.Properties{ReceiveMaximum: &h.receiveMaximum}
	}
	if err := w.exchange(connect, packets.CONNACK); err != nil {
		return err
	}
	if len(filters) == 0 {
		return nil
	}
	subscribe := packets.NewControlPacket(packets.SUBSCRIBE)
	s := subscribe.Content.(*packets.Subscribe)
	s.PacketID = 1
	for _, f := range filters {
		s.Subscriptions = append(s.Subscriptions, packets.SubOptions{Topic: f, QoS: qos})
	}
	return w.exchange(subscribe, packets.SUBACK)
}

func (w *wire) exchange(p *packets.ControlPacket, answer byte) error {
	var b bytes.Buffer
	if _, err := p.WriteTo(&b); err != nil {
		return err
	}
	if _, err := w.nc.Write(b.Bytes()); err != nil {
		return err
	}
	got, err := packets.ReadPacket(w.in)
	if err != nil {
		return err
	}
	if got.Type != answer {
		return fmt.Errorf("packet of type %d in answer to type %d", got.Type, p.Type)
	}
	if c, ok := got.Content.(*packets.Connack); ok && c.ReasonCode != 0 {
		return fmt.Errorf("refused: reason code 0x%02x", c.ReasonCode)
	}
	return nil
}

// publishPacket is a QoS 1 PUBLISH without properties.
func publishPacket(to []byte, topic string, id uint16, payload []byte) []byte {
	to = append(to, typePublish<<4|1<<1)
	to = binary.AppendUvarint(to, uint64(2+len(topic)+2+1+len(payload)))
	to = binary.BigEndian.AppendUint16(to, uint16(len(topic)))
	to = append(to, topic...)
	to = binary.BigEndian.AppendUint16(to, id)
	to = append(to, 0)
	return append(to, payload...)
}

// read returns the type of the next packet and what follows its header, valid
// until the next call.
func (w *wire) read() (kind byte, flags byte, body []byte, err error) {
	first, err := w.in.ReadByte()
	if err != nil {
		return 0, 0, nil, err
	}
	n, err := binary.ReadUvarint(w.in)
	if err != nil {
		return 0, 0, nil, err
	}
	if n > maxPacket {
		return 0, 0, nil, fmt.Errorf("packet of %d bytes", n)
	}
	if uint64(cap(w.buf)) < n {
		w.buf = make([]byte, n)
	}
	body = w.buf[:n]
	_, err = io.ReadFull(w.in, body)
	return first >> 4, first & 0xf, body, err
}

// delivery is the topic's length and the packet id of a PUBLISH of QoS 1.
func delivery(body []byte) (topic []byte, id uint16, err error) {
	if len(body) < 2 {
		return nil, 0, io.ErrUnexpectedEOF
	}
	n := int(binary.BigEndian.Uint16(body))
	if len(body) < 4+n {
		return nil, 0, io.ErrUnexpectedEOF
	}
	return body[2 : 2+n], binary.BigEndian.Uint16(body[2+n:]), nil
}
