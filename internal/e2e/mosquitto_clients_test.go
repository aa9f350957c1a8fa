package e2e

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
)

// mosquittoClients are Debian's mosquitto_pub, _sub and _rr over TLS, for both
// versions of the protocol and with the names that AWS devices ask for in ALPN.
func mosquittoClients(t *testing.T, s *site) {
	s.foreign("mosq-other")
	for _, c := range []struct {
		name, id string
		flags    []string
	}{
		{"MQTT 5", "mosq-5", []string{"-V", "mqttv5"}},
		{"MQTT 3.1.1", "mosq-3", []string{"-V", "mqttv311"}},
		{"MQTT 3.1.1, ALPN of AWS", "mosq-alpn", []string{"-V", "mqttv311", "--tls-alpn", "x-amzn-mqtt-ca"}},
		{"MQTT 5, ALPN mqtt", "mosq-mqtt", []string{"-V", "mqttv5", "--tls-alpn", "mqtt"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := s.of(t)
			s.foreign(c.id)
			mosquittoShadow(t, s, c.id, slices.Concat(s.files(c.id), []string{"-i", c.id}, c.flags))
		})
	}
	t.Run("refused", func(t *testing.T) {
		t.Parallel()
		mosquittoRefused(t, s.of(t))
	})
}

func mosquittoShadow(t *testing.T, s *site, id string, flags []string) {
	shadow := "$aws/things/" + id + "/shadow"
	answer := func(ask, topic, message string) object {
		t.Helper()
		out := output(t, append([]string{"mosquitto_rr", "-q", "1", "-W", "30", "-t", shadow + ask, "-e", shadow + topic, "-m", message}, flags...)...)
		var o object
		if err := json.Unmarshal([]byte(out), &o); err != nil {
			t.Fatalf("%v in %q", err, out)
		}
		return o
	}
	answer("/update", "/update/accepted", `{"state":{"reported":{"temperature":21.5}},"clientToken":"m"}`).
		has(t, map[string]any{"state.reported.temperature": 21.5, "version": 1.0, "clientToken": "m"})
	answer("/get", "/get/accepted", "").has(t, map[string]any{"state.reported.temperature": 21.5})
	answer("/update", "/update/rejected", `{"state":{"reported":{"temperature":0}},"version":7}`).has(t, map[string]any{"code": 409.0})
	answer("/update", "/update/rejected", `{"state":`).has(t, map[string]any{"code": 400.0})

	deltas := start(t, "mosquitto_sub", s.path(id+".sub"), nil, append([]string{"stdbuf", "-oL", "mosquitto_sub", "-d", "-q", "1", "-C", "1", "-W", "60", "-t", shadow + "/update/delta"}, flags...)...)
	until(t, "the subscription", func() bool { return strings.Contains(deltas.text(), "Subscribed") })
	s.must("shadow", "set", id, "interval=30")
	<-deltas.done
	if out := deltas.text(); !strings.Contains(out, `"interval":30`) {
		t.Errorf("mosquitto_sub says %s", out)
	}
	output(t, append([]string{"mosquitto_pub", "-q", "1", "-t", shadow + "/update", "-m", `{"state":{"reported":{"interval":30}}}`}, flags...)...)
	s.shadow(id).has(t, map[string]any{"state.reported.interval": 30.0, "state.reported.temperature": 21.5, "state.delta": nil})
}

// mosquittoRefused: who is not let in, and what is not taken.
func mosquittoRefused(t *testing.T, s *site) {
	s.foreign("mosq-spy")
	mine := slices.Concat(s.files("mosq-spy"), []string{"-V", "mqttv5", "-q", "1", "-i", "mosq-spy"})
	for _, c := range []struct {
		name  string
		flags []string
		says  string
	}{
		{"topic of another device", slices.Concat(mine, []string{"-t", "$aws/things/mosq-other/shadow/update", "-m", `{"state":{"reported":{"x":1}}}`}), "Not authorized"},
		{"topic of nobody", slices.Concat(mine, []string{"-t", "factory/line/1", "-m", "x"}), "Not authorized"},
		{"client id of another device", slices.Concat(s.files("mosq-spy"), []string{"-V", "mqttv5", "-i", "mosq-other", "-t", "a", "-m", "x"}), "lient"},
		{"no certificate", []string{"-h", "localhost", "-p", port(s.ports[2]), "--cafile", s.path("mosq-spy", "ca.pem"), "-i", "mosq-spy", "-t", "a", "-m", "x"}, ""},
		{"another CA", []string{"-h", "localhost", "-p", port(s.ports[2]), "--capath", "/etc/ssl/certs", "-i", "mosq-spy", "-t", "a", "-m", "x"}, ""},
	} {
		out, err := try(t, append([]string{"mosquitto_pub"}, c.flags...)...)
		if (err == nil && c.says == "") || !strings.Contains(out, c.says) {
			t.Errorf("%s: %v, says %q, want %q", c.name, err, out, c.says)
		}
	}
	if _, errOut, status := s.ctl("shadow", "get", "mosq-other"); status != 3 {
		t.Errorf("the other device got a shadow: status %d %s", status, errOut)
	}
	out, _ := try(t, append([]string{"mosquitto_sub", "-W", "5", "-t", "$aws/things/mosq-other/#"}, mine...)...)
	if !strings.Contains(out, "denied") && !strings.Contains(out, "Not authorized") {
		t.Errorf("a subscription to another device says %q", out)
	}
}
