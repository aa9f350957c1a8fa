package brokertest

import (
	"bytes"
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
)

// patience bounds every wait for something that must happen.
const patience = 20 * time.Second

// device is an MQTT 5 client as a device would run it.
type device struct {
	t      *testing.T
	id     string
	cli    *paho.Client
	got    chan *paho.Publish
	closed chan struct{} // closed when the broker or the network ended it
}

// option changes the CONNECT of a device.
type option func(*paho.Connect)

func withClientID(id string) option { return func(c *paho.Connect) { c.ClientID = id } }

func withWill(topic, payload string) option {
	return func(c *paho.Connect) {
		c.WillMessage = &paho.WillMessage{Topic: topic, Payload: []byte(payload), QoS: 1}
	}
}

// connect returns a device with the certificate name cn.
func (h Harness) connect(t *testing.T, cn string, opts ...option) *device {
	t.Helper()
	d, err := h.tryConnect(t, cn, opts...)
	if err != nil {
		t.Fatalf("connect %s: %v", cn, err)
	}
	return d
}

func (h Harness) tryConnect(t *testing.T, cn string, opts ...option) (*device, error) {
	t.Helper()
	nc, err := h.Dial(t, cn)
	if err != nil {
		return nil, err
	}
	d := &device{t: t, id: cn, got: make(chan *paho.Publish, 10_000), closed: make(chan struct{})}
	var once sync.Once
	down := func() { once.Do(func() { close(d.closed) }) }
	d.cli = paho.NewClient(paho.ClientConfig{
		Conn:               packets.NewThreadSafeConn(nc),
		PacketTimeout:      patience,
		OnClientError:      func(error) { down() },
		OnServerDisconnect: func(*paho.Disconnect) { down() },
		OnPublishReceived: []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
			d.got <- p.Packet
			return true, nil
		}},
	})
	receiveMaximum := uint16(20)
	cp := &paho.Connect{
		ClientID: cn, KeepAlive: 30, CleanStart: true,
		Properties: &paho.ConnectProperties{ReceiveMaximum: &receiveMaximum},
	}
	for _, o := range opts {
		o(cp)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := d.cli.Connect(ctx, cp); err != nil {
		_ = nc.Close()
		return nil, err
	}
	t.Cleanup(d.disconnect)
	return d, nil
}

// disconnect leaves as MQTT wants it, without a will.
func (d *device) disconnect() { _ = d.cli.Disconnect(&paho.Disconnect{}) }

// crash ends the network connection without a word.
func (d *device) crash() { d.cli.TerminateConnectionForTest(); <-d.cli.Done() }

// whileConnected ends with the connection: the client library would wait on.
func (d *device) whileConnected() (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	go func() {
		select {
		case <-d.cli.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, cancel
}

// publish sends with QoS 1 and returns once the broker acknowledged it.
func (d *device) publish(topic, payload string) error {
	ctx, cancel := d.whileConnected()
	defer cancel()
	_, err := d.cli.Publish(ctx, &paho.Publish{Topic: topic, Payload: []byte(payload), QoS: 1})
	return err
}

func (d *device) mustPublish(topic, payload string) {
	d.t.Helper()
	if err := d.publish(topic, payload); err != nil {
		d.t.Fatalf("%s publishes to %s: %v", d.id, topic, err)
	}
}

// subscribe returns the broker's refusal.
func (d *device) subscribe(filter string) error {
	ctx, cancel := d.whileConnected()
	defer cancel()
	_, err := d.cli.Subscribe(ctx, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: filter, QoS: 1}}})
	return err
}

func (d *device) mustSubscribe(filter string) {
	d.t.Helper()
	if err := d.subscribe(filter); err != nil {
		d.t.Fatalf("%s subscribes to %s: %v", d.id, filter, err)
	}
}

// next is the next message the device gets.
func (d *device) next() *paho.Publish {
	d.t.Helper()
	return receive(d.t, d.got, "message to "+d.id)
}

// raw speaks packets, for what the client library refuses to send.
type raw struct {
	t  *testing.T
	nc net.Conn
}

func (h Harness) raw(t *testing.T, cn string) *raw {
	t.Helper()
	nc, err := h.Dial(t, cn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(patience))
	r := &raw{t: t, nc: nc}
	cp := packets.NewControlPacket(packets.CONNECT)
	c := cp.Content.(*packets.Connect)
	c.ClientID, c.KeepAlive, c.CleanStart = cn, 30, true
	r.send(cp)
	if got, err := packets.ReadPacket(nc); err != nil || got.Type != packets.CONNACK {
		t.Fatalf("connect %s: %v, %v", cn, got, err)
	}
	return r
}

func (r *raw) send(p *packets.ControlPacket) {
	r.t.Helper()
	var buf bytes.Buffer
	if _, err := p.WriteTo(&buf); err != nil {
		r.t.Fatal(err)
	}
	_, _ = r.nc.Write(buf.Bytes()) // the broker may hang up in the middle
}

func (r *raw) publish(p packets.Publish) {
	r.t.Helper()
	cp := packets.NewControlPacket(packets.PUBLISH)
	p.Properties = &packets.Properties{}
	*cp.Content.(*packets.Publish) = p
	cp.Flags = p.QoS << 1
	if p.Retain {
		cp.Flags |= 1
	}
	r.send(cp)
}

// wantEnd reads until the connection ends and fails on a success PUBACK.
func (r *raw) wantEnd(why string) {
	r.t.Helper()
	for {
		p, err := packets.ReadPacket(r.nc)
		if ne, ok := err.(net.Error); ok && ne.Timeout() {
			r.t.Fatalf("%s: the connection stays", why)
		}
		if err != nil {
			return
		}
		if ack, ok := p.Content.(*packets.Puback); ok && ack.ReasonCode < 0x80 {
			r.t.Fatalf("%s: acknowledged", why)
		}
	}
}

// receive waits for a value of ch.
func receive[T any](t *testing.T, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatalf("no %s within %v", what, patience)
		panic("unreachable")
	}
}
