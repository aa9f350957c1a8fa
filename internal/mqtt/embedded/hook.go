package embedded

import (
	"errors"
	"fmt"
	"time"

	mochi "github.com/mochi-mqtt/server/v2"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/otad/otad/internal/mqtt"
	"github.com/otad/otad/pkg/ota"
)

// hook is where the engine asks the broker.
type hook struct {
	mochi.HookBase
	b *Broker
}

// ID implements mochi.Hook.
func (h *hook) ID() string { return "otad" }

// Provides implements mochi.Hook.
func (h *hook) Provides(event byte) bool {
	switch event {
	case mochi.OnConnect, mochi.OnConnectAuthenticate, mochi.OnACLCheck, mochi.OnSessionEstablished,
		mochi.OnPacketRead, mochi.OnPacketEncode, mochi.OnSubscribe, mochi.OnPublish, mochi.OnWillSent:
		return true
	}
	return false
}

// OnConnect decides about a connection. It answers a refusal itself: the engine
// would close the connection without a word.
func (h *hook) OnConnect(cl *mochi.Client, pk packets.Packet) error {
	c, ok := cl.Net.Conn.(*conn)
	if !ok {
		return packets.ErrServerUnavailable
	}
	id, code, err := h.b.admit(c, pk)
	if err == nil {
		code = packets.ErrServerUnavailable
		err = h.b.claim(c, cl, id)
	}
	if err != nil {
		return errors.Join(err, h.b.server.SendConnack(cl, code, false, nil))
	}
	if pk.Connect.ClientIdentifier == "" {
		cl.ID = id
		cl.Properties.Props.AssignedClientID = id
	}
	cl.Properties.Props.TopicAliasMaximum = 0 // the engine resends with aliases the client never heard
	if pk.ProtocolVersion == 5 && pk.Properties.SessionExpiryInterval == 0 {
		cl.Properties.Will.WillDelayInterval = 0 // the will is due when the session ends
	}
	if limit := uint16(h.b.lim.KeepAlive / time.Second); cl.State.Keepalive == 0 || cl.State.Keepalive > limit {
		cl.State.Keepalive, cl.State.ServerKeepalive = limit, true
	}
	return nil
}

// admit returns the device id, or the answer to the client and, for the log,
// the reason.
func (b *Broker) admit(c *conn, pk packets.Packet) (string, packets.Code, error) {
	if b.isClosing() {
		return "", packets.ErrServerUnavailable, ErrClosed
	}
	id, err := b.conf.Authenticate(c.peerCertificates(), string(pk.Connect.Username), pk.Connect.Password, c.RemoteAddr())
	if err != nil {
		return "", packets.ErrNotAuthorized, fmt.Errorf("authenticate: %w", err)
	}
	if err := ota.ValidateDeviceID(id); err != nil {
		return "", packets.ErrNotAuthorized, err
	}
	if claimed := pk.Connect.ClientIdentifier; claimed != "" && claimed != id {
		return "", packets.ErrClientIdentifierNotValid, fmt.Errorf("device %s claims the client id %.140q", id, claimed)
	}
	if pk.Connect.WillFlag && !owns(id, pk.Connect.WillTopic) {
		return "", packets.ErrNotAuthorized, fmt.Errorf("device %s: will for the topic %.140q", id, pk.Connect.WillTopic)
	}
	return id, packets.Code{}, nil
}

// OnConnectAuthenticate implements mochi.Hook; OnConnect has decided.
func (h *hook) OnConnectAuthenticate(cl *mochi.Client, _ packets.Packet) bool {
	c, ok := cl.Net.Conn.(*conn)
	return ok && c.device != nil
}

// OnSessionEstablished implements mochi.Hook.
func (h *hook) OnSessionEstablished(cl *mochi.Client, _ packets.Packet) {
	h.b.arrived(cl.Net.Conn.(*conn))
}

// OnACLCheck implements mochi.Hook for publishes, filters and deliveries alike.
func (h *hook) OnACLCheck(cl *mochi.Client, topic string, _ bool) bool {
	c, ok := cl.Net.Conn.(*conn)
	return ok && owns(c.id, topic) // never by what the client calls itself
}

// OnPacketRead refuses what the engine would let pass. An error ends the
// connection.
func (h *hook) OnPacketRead(cl *mochi.Client, pk packets.Packet) (packets.Packet, error) {
	c := cl.Net.Conn.(*conn)
	if c.condemned() != "" {
		return pk, packets.ErrRejectPacket // read ahead before this side ended it
	}
	switch pk.FixedHeader.Type {
	case packets.Publish:
		if !mochi.IsValidFilter(pk.TopicName, true) { // the engine would drop it in silence
			return pk, h.end(c, packets.ErrTopicNameInvalid)
		}
		if pk.FixedHeader.Qos > 1 {
			return pk, h.end(c, packets.ErrQosNotSupported)
		}
		if pk.FixedHeader.Retain {
			return pk, h.end(c, packets.ErrRetainNotSupported)
		}
	case packets.Disconnect: // may change the expiry that CONNACK capped
		limit := uint32(h.b.lim.SessionExpiry / time.Second)
		pk.Properties.SessionExpiryInterval = min(pk.Properties.SessionExpiryInterval, limit)
	}
	return pk, nil
}

func (h *hook) end(c *conn, code packets.Code) error {
	h.b.end(c, code)
	return packets.ErrRejectPacket
}

// OnPacketEncode completes the engine's CONNACK: limits that it keeps to itself,
// and return codes of 3.1.1 where it would send those of 5.
func (h *hook) OnPacketEncode(cl *mochi.Client, pk packets.Packet) packets.Packet {
	const unavailable3, notAuthorized3 = 3, 5
	switch refused := pk.ReasonCode >= packets.ErrUnspecifiedError.Code; {
	case pk.FixedHeader.Type != packets.Connack:
	case !refused:
		pk.Properties.MaximumPacketSize = uint32(h.b.lim.PacketBytes)
		pk.Properties.RetainAvailableFlag, pk.Properties.RetainAvailable = true, 0
		pk.Properties.SharedSubAvailableFlag, pk.Properties.SharedSubAvailable = true, 0
	case cl.Properties.ProtocolVersion == 5:
	case pk.ReasonCode == packets.ErrNotAuthorized.Code:
		pk.ReasonCode = notAuthorized3
	default:
		pk.ReasonCode = unavailable3
	}
	return pk
}

// OnSubscribe bounds the filters of a device. An emptied filter is answered as
// invalid.
func (h *hook) OnSubscribe(cl *mochi.Client, pk packets.Packet) packets.Packet {
	have := cl.State.Subscriptions.GetAll()
	for i, sub := range pk.Filters {
		if _, known := have[sub.Filter]; known {
			continue
		}
		if len(have) >= h.b.lim.Subscriptions {
			pk.Filters[i].Filter = ""
			continue
		}
		have[sub.Filter] = sub
	}
	return pk
}

// OnPublish hands an inbound publish to the handler. What it returns decides
// about the PUBACK: nil sends it, a Code with QoS 1 and MQTT 5 sends that code,
// ErrRejectPacket sends nothing. Any other error would be acknowledged.
func (h *hook) OnPublish(cl *mochi.Client, pk packets.Packet) (packets.Packet, error) {
	if cl.Net.Inline {
		return pk, nil
	}
	c := cl.Net.Conn.(*conn)
	code, err := h.b.handle(c.id, message(pk))
	if err == nil {
		return pk, nil
	}
	h.b.log.Warn("message not taken", "device", c.id, "topic", pk.TopicName, "error", err)
	if pk.FixedHeader.Qos == 0 {
		return pk, packets.ErrRejectPacket
	}
	if cl.Properties.ProtocolVersion == 5 {
		return pk, code
	}
	h.b.end(c, packets.Code{Reason: "message not taken"}) // what follows must not overtake it
	return pk, packets.ErrRejectPacket
}

// handle runs the handler if one of its filters matches. On an error the code
// is what an MQTT 5 client is told.
func (b *Broker) handle(id string, m mqtt.Message) (packets.Code, error) {
	if m.ResponseTopic != "" && !owns(id, m.ResponseTopic) {
		return packets.ErrNotAuthorized, fmt.Errorf("response topic %.140q belongs to someone else", m.ResponseTopic)
	}
	sub := b.subscription()
	if sub == nil {
		return packets.ErrServerBusy, errors.New("no subscriber yet")
	}
	if err := sub.ctx.Err(); err != nil {
		return packets.ErrServerBusy, err
	}
	if !matchesAny(sub.filters, m.Topic) {
		return packets.Code{}, nil
	}
	return packets.ErrImplementationSpecificError, sub.handle(sub.ctx, m)
}

// OnWillSent hands a will to the handler. Nobody can be told of an error.
func (h *hook) OnWillSent(cl *mochi.Client, pk packets.Packet) {
	c, ok := cl.Net.Conn.(*conn)
	if !ok || c.device == nil {
		return
	}
	if pk.Connect.WillProperties.WillDelayInterval == 0 {
		h.b.handleWill(c.id, message(pk)) // on the connection's goroutine
		return
	}
	h.b.mu.Lock() // on the engine's event loop, which must not wait
	defer h.b.mu.Unlock()
	if !h.b.closing {
		h.b.wg.Go(func() { h.b.handleLateWill(c.id, message(pk)) })
	}
}

// handleLateWill waits for the device's turn. If the device is back by then,
// its will is void.
func (b *Broker) handleLateWill(id string, m mqtt.Message) {
	d := b.acquire(id)
	defer b.release(id, d)
	select {
	case d.slot <- struct{}{}:
		defer func() { <-d.slot }()
		b.handleWill(id, m)
	default:
	}
}

func (b *Broker) handleWill(id string, m mqtt.Message) {
	if _, err := b.handle(id, m); err != nil {
		b.log.Warn("will not taken", "device", id, "topic", m.Topic, "error", err)
	}
}

func message(pk packets.Packet) mqtt.Message {
	return mqtt.Message{
		Topic:           pk.TopicName,
		Payload:         pk.Payload,
		QoS:             pk.FixedHeader.Qos,
		ResponseTopic:   pk.Properties.ResponseTopic,
		CorrelationData: pk.Properties.CorrelationData,
		Expiry:          time.Duration(pk.Properties.MessageExpiryInterval) * time.Second,
	}
}
