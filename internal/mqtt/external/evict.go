package external

import (
	"context"
	"crypto/tls"
	"fmt"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"

	"github.com/otad/otad/internal/mqtt"
)

// evictPauses are how long to wait before each time that a session is ended. The
// first is at once; the others are for a device that came back before the broker
// had read that it is revoked.
var evictPauses = []time.Duration{0, time.Second, 2 * time.Second, 5 * time.Second, 20 * time.Second, 40 * time.Second}

// maxEvicting is how many sessions are ended at the same time.
const maxEvicting = 8

// Evict ends the device's session in the background, again and again for
// about a minute: MQTT has no word for it, so otad connects under the device's
// client id with StandIn, which the broker takes for the device itself, ends the
// session and goes. The broker has to refuse the device by itself when it comes
// back, and does not say when a session began.
func (b *Broker) Evict(e mqtt.Eviction) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.conf.StandIn == nil || b.closing || b.evicted[e.DeviceID] {
		return
	}
	b.evicted[e.DeviceID] = true
	b.wg.Go(func() {
		b.evict(e.DeviceID, e.Reason)
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.evicted, e.DeviceID)
	})
}

func (b *Broker) evict(deviceID, reason string) {
	for _, pause := range evictPauses {
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-b.done.Done():
			timer.Stop()
			return
		}
		if err := b.takeOver(deviceID); err != nil && b.done.Err() == nil {
			b.conf.Logger.Warn("session at the broker not ended, trying again in a moment", "device", deviceID, "reason", reason, "error", err)
		}
	}
}

// takeOver connects in the device's place and leaves no session behind (MQTT 5,
// 3.1.4: the server disconnects the client that had the client id).
func (b *Broker) takeOver(deviceID string) error {
	select {
	case b.evicting <- struct{}{}:
		defer func() { <-b.evicting }()
	case <-b.done.Done():
		return b.done.Err()
	}
	conf, err := b.conf.StandIn(deviceID)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(b.done, connectTimeout)
	defer cancel()
	conn, err := (&tls.Dialer{Config: conf}).DialContext(ctx, "tcp", b.device.Host)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // closed already where it went well
	c := paho.NewClient(paho.ClientConfig{Conn: packets.NewThreadSafeConn(conn)})
	none, one := uint32(0), uint16(1)
	ack, err := c.Connect(ctx, &paho.Connect{
		ClientID: deviceID, CleanStart: true, KeepAlive: keepAlive,
		Properties: &paho.ConnectProperties{SessionExpiryInterval: &none, ReceiveMaximum: &one},
	})
	if err != nil && ack != nil {
		return fmt.Errorf("%w: reason 0x%02x", ErrRefused, ack.ReasonCode)
	} else if err != nil {
		return err
	}
	return c.Disconnect(&paho.Disconnect{})
}
