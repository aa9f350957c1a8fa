package brokertest

import (
	"testing"

	"github.com/otad/otad/internal/testserver"
)

// mosquittoKnown is what Mosquitto 2.0.11 (Debian 12) gets wrong or leaves out.
var mosquittoKnown = map[string][]string{
	"T5 shared subscription, a member offline":            {"the online member got 25 of 50", "the member that was away got 25"},
	"T5 shared subscription, a member dies with messages": {"the member that is left got"},
	"T7 over the client's maximum packet size":            {"i/o timeout"},
	"T8 will at the end of the session":                   {"i/o timeout"},
	"T8 will when the session is begun anew":              {"i/o timeout"},
	"retained":                                            {"a shared subscription gets nothing that is retained"},
	"reason codes that are no failure":                    {"PUBREL of an unknown id is answered by PUBCOMP 77, 0x00"},
	"WebSocket":                                           {"a packet in a text frame is answered", "a text frame is taken"},
	"T12 CONNECT": {
		"data of no authentication: the connection is accepted", "a will with payload format 2: the connection is accepted",
		"a client id with +: the connection is accepted", "a client id with #: the connection is accepted",
	},
	"T12 CONNECT flood":         {"memory grew"},
	"T12 packets of MQTT 3.1.1": {"PINGRESP", "PINGREQ with a body", "PINGREQ with flags", "PUBACK with more", "SUBACK"},
	"T12 packets": {
		"UNSUBACK", "SUBACK", "PINGRESP", "PUBLISH with alias 0: code 0x81", "PUBLISH with a subscription identifier",
		"PUBLISH with payload format 2", "PUBLISH with an answer to a wildcard", "PUBACK with flags", "PUBREC with flags",
		"PUBCOMP with flags", "PINGREQ with flags", "PINGREQ with a body",
	},
	"T12 subscriptions": {
		"SUBSCRIBE, shared and no local", `"$share/" is granted`, `"$share/g" is granted`, `"$share/g/" is granted`,
		`"$share//a" is granted`, `"$share/+/a" is granted`,
	},
}

func TestProbesOnMosquitto(t *testing.T) {
	RunProbes(t, func(t *testing.T) ProbeTarget {
		b := testserver.PlainMosquitto(t)
		return ProbeTarget{
			Addr: b.Addr, WebSocket: "ws://" + b.WebSocket + "/mqtt", Known: mosquittoKnown,
			PacketLimit:     262144,
			ServerKeepAlive: 65535,
			Tries:           3,
			Resident: func() int64 {
				n, err := b.Resident()
				must(t, err)
				return n
			},
		}
	})
}

// Mosquitto with everything on that makes it store, which it does once a second.
func TestDurableProbesOnMosquitto(t *testing.T) {
	RunDurableProbes(t, func(t *testing.T) ProbeTarget {
		b := testserver.PlainMosquitto(t, "persistence true", "autosave_on_changes true", "autosave_interval 1")
		return ProbeTarget{
			Addr:  b.Addr,
			Tries: 3,
			// It writes after it has acknowledged, so what a kill under load finds is a
			// matter of luck; at rest it can be told to write.
			Lucky:   []string{"T13 killed under load", "T13 QoS 2 exactly once over a kill"},
			Restart: func() { b.Kill(); must(t, b.Start()) },
			Save:    func() { must(t, b.Save()) },
		}
	})
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}
