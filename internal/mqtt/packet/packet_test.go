package packet

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	paho "github.com/eclipse/paho.golang/packets"
	"github.com/google/go-cmp/cmp"
)

func ptr[T any](v T) *T { return &v }

// written is a packet as paho writes it, taken apart.
func written(t *testing.T, p paho.Packet) (Header, []byte) {
	t.Helper()
	var b bytes.Buffer
	if _, err := p.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	h, n, err := ParseHeader(b.Bytes())
	if err != nil || n == 0 || b.Len() != n+h.Size {
		t.Fatalf("header %+v of %d bytes, %v", h, n, err)
	}
	return h, b.Bytes()[n:]
}

// read is what paho makes of our bytes.
func read[T paho.Packet](t *testing.T, b []byte) T {
	t.Helper()
	p, err := paho.ReadPacket(bytes.NewReader(b))
	if err != nil {
		t.Fatalf("% x: %v", b, err)
	}
	got, ok := p.Content.(T)
	if !ok {
		t.Fatalf("% x is %T", b, p.Content)
	}
	return got
}

func TestConnectOfAnotherLibrary(t *testing.T) {
	_, body := written(t, &paho.Connect{
		ProtocolName: "MQTT", ProtocolVersion: 5, ClientID: "gw-1", KeepAlive: 30, CleanStart: true,
		UsernameFlag: true, Username: "u", PasswordFlag: true, Password: []byte{0, 1},
		WillFlag: true, WillTopic: "ota/gw-1/presence", WillMessage: []byte("gone"), WillQOS: 1, WillRetain: true,
		WillProperties: &paho.Properties{WillDelayInterval: ptr(uint32(7))},
		Properties: &paho.Properties{
			SessionExpiryInterval: ptr(uint32(60)), ReceiveMaximum: ptr(uint16(5)), MaximumPacketSize: ptr(uint32(1000)),
			TopicAliasMaximum: ptr(uint16(3)), RequestProblemInfo: ptr(byte(0)), User: []paho.User{{Key: "a", Value: "b"}},
		},
	})
	got, err := DecodeConnect(body)
	if err != nil {
		t.Fatal(err)
	}
	want := Connect{
		Version: V5, CleanStart: true, KeepAlive: 30, ClientID: "gw-1", Username: "u", Password: []byte{0, 1}, HasUser: true, HasPass: true,
		Will:          &Will{Topic: "ota/gw-1/presence", Payload: []byte("gone"), QoS: 1, Retain: true, Delay: 7},
		SessionExpiry: 60, ReceiveMaximum: 5, MaximumPacket: 1000, AliasMaximum: 3, NoProblemInfo: true,
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// The other library leaves these properties of a will out.
func TestWillProperties(t *testing.T) {
	body := "\x00\x04MQTT\x05\x06\x00\x1e\x00\x00\x01c" + "\x0c\x18\x00\x00\x00\x07\x02\x00\x00\x00\x09\x01\x01" + "\x00\x01w\x00\x00"
	got, err := DecodeConnect([]byte(body))
	want := &Will{Topic: "w", Payload: []byte{}, Delay: 7, Expiry: 9, HasExpiry: true, Props: []byte{propPayloadFormat, 1}}
	if d := cmp.Diff(want, got.Will); d != "" || err != nil {
		t.Error(d, err)
	}
}

func TestPublishBothWays(t *testing.T) {
	h, body := written(t, &paho.Publish{
		Topic: "a/b", QoS: 2, Duplicate: true, Retain: true, PacketID: 77, Payload: []byte("data"),
		Properties: &paho.Properties{
			MessageExpiry: ptr(uint32(5)), TopicAlias: ptr(uint16(2)), ResponseTopic: "a/r", CorrelationData: []byte{9}, PayloadFormat: ptr(byte(1)),
			User: []paho.User{{Key: "k", Value: "1"}, {Key: "k", Value: "2"}},
		},
	})
	p, err := DecodePublish(h.Flags, body, V5)
	if err != nil {
		t.Fatal(err)
	}
	if string(p.Topic) != "a/b" || p.QoS != 2 || !p.Dup || !p.Retain || p.ID != 77 || string(p.Payload) != "data" || p.Expiry != 5 || p.Alias != 2 {
		t.Errorf("%+v", p)
	}
	if d := cmp.Diff(Attributes{"a/r", []byte{9}, []UserProperty{{"k", "1"}, {"k", "2"}}}, ParseAttributes(p.Props)); d != "" {
		t.Error(d)
	}
	for _, ids := range [][]uint32{nil, {1, 200, 268435455}} {
		d := Delivery{Topic: "a/b", Payload: p.Payload, Props: p.Props, QoS: 1, ID: 3, Expiry: 4, HasExpiry: true, SubIDs: ids}
		out := AppendPublish(nil, V5, d)
		if len(out) != PublishSize(V5, d) {
			t.Errorf("size %d, said %d", len(out), PublishSize(V5, d))
		}
		got := read[*paho.Publish](t, out)
		if got.Topic != "a/b" || got.PacketID != 3 || *got.Properties.MessageExpiry != 4 || string(got.Payload) != "data" ||
			got.Properties.ResponseTopic != "a/r" || len(got.Properties.User) != 2 || *got.Properties.PayloadFormat != 1 {
			t.Errorf("%+v", got)
		}
	}
	d := Delivery{Topic: "t", Payload: []byte("p"), Props: p.Props, QoS: 0, SubIDs: []uint32{1}}
	if old := AppendPublish(nil, V311, d); !bytes.Equal(old, []byte{0x30, 4, 0, 1, 't', 'p'}) || PublishSize(V311, d) != len(old) {
		t.Errorf("to 3.1.1: % x", old)
	}
}

func TestAnswersAreReadByAnotherLibrary(t *testing.T) {
	keep, expiry := uint16(60), uint32(0)
	c := read[*paho.Connack](t, AppendConnack(nil, V5, Connack{
		SessionPresent: true, AssignedID: "auto", ServerKeepAlive: &keep, SessionExpiry: &expiry, ReceiveMaximum: 20, MaximumPacket: 256, AliasMaximum: 9,
	}))
	if !c.SessionPresent || c.Properties.AssignedClientID != "auto" || *c.Properties.ServerKeepAlive != 60 || *c.Properties.SessionExpiryInterval != 0 ||
		*c.Properties.ReceiveMaximum != 20 || *c.Properties.MaximumPacketSize != 256 || *c.Properties.TopicAliasMaximum != 9 {
		t.Errorf("%+v", c)
	}
	if a := read[*paho.Puback](t, AppendAck(nil, V5, PUBACK, Ack{5, QuotaExceeded}, "full")); a.PacketID != 5 || a.ReasonCode != 0x97 || a.Properties.ReasonString != "full" {
		t.Errorf("%+v", a)
	}
	if a := read[*paho.Pubrel](t, AppendAck(nil, V5, PUBREL, Ack{5, PacketIDNotFound}, "")); a.PacketID != 5 || a.ReasonCode != 0x92 {
		t.Errorf("%+v", a)
	}
	if s := read[*paho.Suback](t, AppendSuback(nil, V5, 4, []Code{1, NotAuthorized})); s.PacketID != 4 || !bytes.Equal(s.Reasons, []byte{1, 0x87}) {
		t.Errorf("%+v", s)
	}
	if s := AppendSuback(nil, V311, 4, []Code{1, NotAuthorized}); !bytes.Equal(s, []byte{0x90, 4, 0, 4, 1, 0x80}) {
		t.Errorf("% x", s)
	}
	if u := read[*paho.Unsuback](t, AppendUnsuback(nil, V5, 4, []Code{0x11})); u.PacketID != 4 || !bytes.Equal(u.Reasons, []byte{0x11}) {
		t.Errorf("%+v", u)
	}
	if d := read[*paho.Disconnect](t, AppendDisconnect(nil, SessionTakenOver, "taken over")); d.ReasonCode != 0x8e || d.Properties.ReasonString != "taken over" {
		t.Errorf("%+v", d)
	}
	for code, want := range map[Code]byte{Success: 0, UnsupportedVersion: 1, ClientIDNotValid: 2, ServerBusy: 3, BadUserNameOrPassword: 4, NotAuthorized: 5} {
		if b := AppendConnack(nil, V311, Connack{Code: code}); b[3] != want {
			t.Errorf("code %#x is %d to 3.1.1, want %d", code, b[3], want)
		}
	}
}

func TestSubscribeOfAnotherLibrary(t *testing.T) {
	_, body := written(t, &paho.Subscribe{
		PacketID: 8, Properties: &paho.Properties{SubscriptionIdentifier: ptr(300)},
		Subscriptions: []paho.SubOptions{{Topic: "a/+", QoS: 2, NoLocal: true, RetainAsPublished: true, RetainHandling: 1}, {Topic: "#"}},
	})
	got, err := DecodeSubscribe(body, V5)
	want := Subscribe{ID: 8, SubID: 300, Subscriptions: []Subscription{{"a/+", 2, true, true, 1}, {Filter: "#"}}}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Error(d, err)
	}
	_, body = written(t, &paho.Unsubscribe{PacketID: 9, Properties: &paho.Properties{}, Topics: []string{"a", "b"}})
	u, err := DecodeUnsubscribe(body, V5)
	if d := cmp.Diff(Unsubscribe{9, []string{"a", "b"}}, u); d != "" || err != nil {
		t.Error(d, err)
	}
	_, body = written(t, &paho.Disconnect{ReasonCode: 4, Properties: &paho.Properties{SessionExpiryInterval: ptr(uint32(3)), ReasonString: "bye"}})
	d, err := DecodeDisconnect(body, V5)
	if (d != Disconnect{4, 3, true}) || err != nil {
		t.Errorf("%+v, %v", d, err)
	}
}

// Every packet that is cut short is an error, never a panic, and never half read.
func TestCutAtEveryByte(t *testing.T) {
	whole := map[string]func([]byte) error{}
	bodies := map[string][]byte{}
	enter := func(name string, p paho.Packet, f func([]byte) error) {
		_, bodies[name] = written(t, p)
		whole[name] = f
	}
	enter("CONNECT", &paho.Connect{
		ProtocolName: "MQTT", ProtocolVersion: 5, ClientID: "c", UsernameFlag: true, Username: "u", PasswordFlag: true, Password: []byte("p"),
		WillFlag: true, WillTopic: "w", WillMessage: []byte("m"), WillProperties: &paho.Properties{ContentType: "x"}, Properties: &paho.Properties{ReceiveMaximum: ptr(uint16(1))},
	}, func(b []byte) error { _, err := DecodeConnect(b); return err })
	enter("SUBSCRIBE", &paho.Subscribe{PacketID: 1, Properties: &paho.Properties{SubscriptionIdentifier: ptr(1)}, Subscriptions: []paho.SubOptions{{Topic: "abc"}}},
		func(b []byte) error { _, err := DecodeSubscribe(b, V5); return err })
	enter("UNSUBSCRIBE", &paho.Unsubscribe{PacketID: 1, Properties: &paho.Properties{User: []paho.User{{Key: "k", Value: "v"}}}, Topics: []string{"abc"}},
		func(b []byte) error { _, err := DecodeUnsubscribe(b, V5); return err })
	for name, body := range bodies {
		if err := whole[name](body); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for n := range body {
			var fault *Error
			if err := whole[name](body[:n:n]); !errors.As(err, &fault) {
				t.Errorf("%s cut at %d: %v", name, n, err)
			}
		}
		if err := whole[name](append(bytes.Clone(body), 0)); err == nil {
			t.Errorf("%s with a byte more was accepted", name)
		}
	}
}

func TestMalformed(t *testing.T) {
	text := func(s string) string { return string(appendText(nil, s)) }
	connect := func(level byte, flags byte, rest string) string {
		return text("MQTT") + string([]byte{level, flags, 0, 30}) + rest
	}
	dec := map[string]func(string) error{
		"CONNECT":     func(s string) error { _, err := DecodeConnect([]byte(s)); return err },
		"PUBLISH":     func(s string) error { _, err := DecodePublish(2, []byte(s), V5); return err },
		"SUBSCRIBE":   func(s string) error { _, err := DecodeSubscribe([]byte(s), V5); return err },
		"SUBSCRIBE 3": func(s string) error { _, err := DecodeSubscribe([]byte(s), V311); return err },
		"UNSUBSCRIBE": func(s string) error { _, err := DecodeUnsubscribe([]byte(s), V5); return err },
		"PUBACK":      func(s string) error { _, err := DecodeAck([]byte(s), V5); return err },
		"DISCONNECT":  func(s string) error { _, err := DecodeDisconnect([]byte(s), V5); return err },
	}
	for _, c := range []struct {
		kind, name, body string
		code             Code
	}{
		{"CONNECT", "protocol name", text("HTTP") + "\x05\x02\x00\x1e\x00" + text("c"), UnsupportedVersion},
		{"CONNECT", "protocol level 6", connect(6, 2, "\x00"+text("c")), UnsupportedVersion},
		{"CONNECT", "level 3 of MQTT", connect(3, 2, text("c")), UnsupportedVersion},
		{"CONNECT", "reserved flag", connect(5, 3, "\x00"+text("c")), MalformedPacket},
		{"CONNECT", "will QoS without a will", connect(5, 0x0a, "\x00"+text("c")), MalformedPacket},
		{"CONNECT", "will retain without a will", connect(5, 0x22, "\x00"+text("c")), MalformedPacket},
		{"CONNECT", "will QoS 3", connect(5, 0x1e, "\x00"+text("c")+"\x00"+text("w")+text("")), MalformedPacket},
		{"CONNECT", "password without user, 3.1.1", connect(4, 0x42, text("c")+text("p")), MalformedPacket},
		{"CONNECT", "will topic with a wildcard", connect(5, 0x06, "\x00"+text("c")+"\x00"+text("w/#")+text("")), TopicNameInvalid},
		{"CONNECT", "client id not UTF-8", connect(5, 2, "\x00"+text("\xff")), MalformedPacket},
		{"CONNECT", "client id with U+0000", connect(5, 2, "\x00"+text("a\x00")), MalformedPacket},
		{"CONNECT", "client id of a surrogate", connect(5, 2, "\x00"+text("\xed\xa0\x80")), MalformedPacket},
		{"CONNECT", "receive maximum 0", connect(5, 2, "\x03\x21\x00\x00"+text("c")), ProtocolError},
		{"CONNECT", "maximum packet size 0", connect(5, 2, "\x05\x27\x00\x00\x00\x00"+text("c")), ProtocolError},
		{"CONNECT", "a property twice", connect(5, 2, "\x06\x21\x00\x01\x21\x00\x01"+text("c")), ProtocolError},
		{"CONNECT", "a property of PUBLISH", connect(5, 2, "\x03\x23\x00\x01"+text("c")), ProtocolError},
		{"CONNECT", "an unknown property", connect(5, 2, "\x01\x7f"+text("c")), MalformedPacket},
		{"CONNECT", "properties longer than the packet", connect(5, 2, "\x7f"+text("c")), MalformedPacket},
		{"CONNECT", "a property past the list", connect(5, 2, "\x02\x21\x00\x01"+text("c")), MalformedPacket},
		{"CONNECT", "request problem information 2", connect(5, 2, "\x02\x17\x02"+text("c")), ProtocolError},
		{"PUBLISH", "packet id 0", text("t") + "\x00\x00\x00", ProtocolError},
		{"PUBLISH", "neither topic nor alias", text("") + "\x00\x01\x00", ProtocolError},
		{"PUBLISH", "subscription identifier from a client", text("t") + "\x00\x01\x02\x0b\x01", ProtocolError},
		{"PUBLISH", "response topic with a wildcard", text("t") + "\x00\x01\x04\x08\x00\x01#", ProtocolError},
		{"PUBLISH", "topic not UTF-8", text("\xc0\xaf") + "\x00\x01\x00", MalformedPacket},
		{"SUBSCRIBE", "no filter", "\x00\x01\x00", ProtocolError},
		{"SUBSCRIBE", "packet id 0", "\x00\x00\x00" + text("t") + "\x00", ProtocolError},
		{"SUBSCRIBE", "QoS 3", "\x00\x01\x00" + text("t") + "\x03", MalformedPacket},
		{"SUBSCRIBE", "retain handling 3", "\x00\x01\x00" + text("t") + "\x30", MalformedPacket},
		{"SUBSCRIBE", "reserved options", "\x00\x01\x00" + text("t") + "\x40", MalformedPacket},
		{"SUBSCRIBE", "subscription identifier 0", "\x00\x01\x02\x0b\x00" + text("t") + "\x00", ProtocolError},
		{"SUBSCRIBE 3", "options of MQTT 5", "\x00\x01" + text("t") + "\x04", MalformedPacket},
		{"UNSUBSCRIBE", "no filter", "\x00\x01\x00", ProtocolError},
		{"PUBACK", "packet id 0", "\x00\x00", ProtocolError},
		{"PUBACK", "bytes after the properties", "\x00\x01\x00\x00\x00", MalformedPacket},
		{"DISCONNECT", "a property of CONNECT only", "\x00\x03\x21\x00\x01", ProtocolError},
	} {
		var fault *Error
		if err := dec[c.kind](c.body); !errors.As(err, &fault) || fault.Code != c.code || fault.Text == "" {
			t.Errorf("%s, %s: %v, want code %#x", c.kind, c.name, err, c.code)
		}
	}
}

func TestHeaders(t *testing.T) {
	for in, want := range map[string]string{
		"\x00\x00": "reserved", "\x36\x00": "QoS 3", "\x38\x00": "DUP", "\x60\x00": "flags", "\x80\x00": "flags", "\x11\x00": "flags",
		"\x30\xff\xff\xff\xff\x01": "four bytes", "\x30\x80\x00": "more bytes than it needs",
	} {
		if _, n, err := ParseHeader([]byte(in)); err == nil || n != 0 || !strings.Contains(err.Error(), want) {
			t.Errorf("% x: %d, %v; want %q", in, n, err, want)
		}
	}
	for _, in := range []string{"", "\x30", "\x30\x80", "\x30\xff\xff\xff"} {
		if _, n, err := ParseHeader([]byte(in)); n != 0 || err != nil {
			t.Errorf("% x: %d, %v; want to wait for more", in, n, err)
		}
	}
	if h, n, err := ParseHeader([]byte("\x30\xff\xff\xff\x7f")); h.Size != 268435455 || n != MaxHeaderBytes || err != nil {
		t.Errorf("%+v, %d, %v", h, n, err)
	}
}

func TestFilters(t *testing.T) {
	for f, want := range map[string]bool{
		"a": true, "/": true, "#": true, "+": true, "a/#": true, "+/a/+": true, "a//b": true, "$SYS/#": true, "a b/ü": true,
		"": false, "a#": false, "a/#/b": false, "#/a": false, "a+/b": false, "a\x00": false, "\xff": false, "a/b#": false,
	} {
		if ValidFilter(f) != want {
			t.Errorf("filter %q: %v", f, !want)
		}
	}
	for name, want := range map[string]bool{"a": true, "/": true, "": false, "a/+": false, "#": false, "a\x00": false} {
		if ValidTopicName(name) != want {
			t.Errorf("name %q: %v", name, !want)
		}
	}
}

// What we accept, another library reads in the same way after we wrote it.
func FuzzPublish(f *testing.F) {
	f.Add(byte(2), []byte("\x00\x01t\x00\x01\x00data"))
	f.Add(byte(0), []byte("\x00\x01t\x0a\x02\x00\x00\x00\x05\x26\x00\x00\x00\x00x"))
	f.Fuzz(func(t *testing.T, flags byte, body []byte) {
		h := Header{Type: PUBLISH, Flags: flags & 15}
		if h.checkFlags() != nil {
			return
		}
		p, err := DecodePublish(h.Flags, body, V5)
		if err != nil || len(p.Topic) == 0 {
			return
		}
		out := AppendPublish(nil, V5, Delivery{
			Topic: string(p.Topic), Payload: p.Payload, Props: p.Props, QoS: p.QoS, Dup: p.Dup, Retain: p.Retain, ID: p.ID, Expiry: p.Expiry, HasExpiry: p.HasExpiry,
		})
		got := read[*paho.Publish](t, out)
		if got.Topic != string(p.Topic) || !bytes.Equal(got.Payload, p.Payload) || got.PacketID != p.ID || got.QoS != p.QoS {
			t.Fatalf("% x became %+v", body, got)
		}
		a := ParseAttributes(p.Props)
		if a.ResponseTopic != got.Properties.ResponseTopic || !bytes.Equal(a.CorrelationData, got.Properties.CorrelationData) || len(a.User) != len(got.Properties.User) {
			t.Fatalf("%+v against %+v", a, got.Properties)
		}
	})
}

// No bytes make a decoder panic.
func FuzzDecode(f *testing.F) {
	f.Add(byte(1), []byte("\x00\x04MQTT\x05\x02\x00\x1e\x00\x00\x01c"))
	f.Add(byte(8), []byte("\x00\x01\x00\x00\x01t\x00"))
	f.Fuzz(func(_ *testing.T, kind byte, body []byte) {
		for _, v := range []byte{V31, V311, V5} {
			switch Type(kind % 16) {
			case CONNECT:
				_, _ = DecodeConnect(body)
			case PUBLISH:
				_, _ = DecodePublish(kind>>4, body, v)
			case SUBSCRIBE:
				_, _ = DecodeSubscribe(body, v)
			case UNSUBSCRIBE:
				_, _ = DecodeUnsubscribe(body, v)
			case DISCONNECT:
				_, _ = DecodeDisconnect(body, v)
			default:
				_, _ = DecodeAck(body, v)
				_ = ParseAttributes(body)
			}
		}
	})
}
