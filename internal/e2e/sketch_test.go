package e2e

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// The sketch that most ESP32 users start from: MQTT 3.1.1, clean session, user
// name and password over TLS, topics of its own, a will.
func TestSketchWithAPassword(t *testing.T) {
	s := newSite(t, nil, "--topic-publish", "sensors/{device}/#", "--topic-subscribe", "sensors/{device}/command,sensors/{device}/status")
	secret := map[string]string{}
	for _, id := range []string{"esp-1", "esp-2"} {
		s.must("device", "create", id, "--hardware", "esp32")
		secret[id] = strings.TrimSpace(s.must("device", "credential", "set-password", id, "-q"))
	}
	as := func(id, password string) []string {
		return []string{"-h", "localhost", "-p", port(s.ports[2]), "--cafile", s.path("server", "ca.pem"), "-V", "mqttv311", "-i", id, "-u", id, "-P", password}
	}
	jwtEnded := s.jwts(t, "esp-2", as)
	one := as("esp-1", secret["esp-1"])
	device := func() (d struct {
		Reachability, OfflineReason string
	}) {
		s.get(&d, "device", "show", "esp-1")
		return d
	}

	// What it sends to its own topics is taken, and a command reaches it.
	output(t, append([]string{"mosquitto_pub", "-q", "0", "-t", "sensors/esp-1/temperature", "-m", "21.5"}, one...)...)
	output(t, append([]string{"mosquitto_pub", "-q", "1", "-t", "sensors/esp-1/status", "-m", "online"}, one...)...)
	if out := output(t, append([]string{"mosquitto_rr", "-W", "30", "-t", "sensors/esp-1/command", "-e", "sensors/esp-1/command", "-m", "blink"}, one...)...); strings.TrimSpace(out) != "blink" {
		t.Errorf("the command came as %q", out)
	}

	// It is online while it is, its will is published when it dies, and both are seen.
	live := start(t, "mosquitto_sub", s.path("esp-1.sub"), nil, append([]string{"stdbuf", "-oL", "mosquitto_sub", "-d", "-t", "sensors/esp-1/command",
		"--will-topic", "sensors/esp-1/status", "--will-payload", "offline", "--will-retain"}, one...)...)
	until(t, "the device to be online", func() bool { return device().Reachability == "online" })
	for _, want := range []string{"otad_mqtt_connections 2\n", "otad_mqtt_subscriptions 2\n", "otad_mqtt_retained_messages 0\n", "otad_devices_online 2\n"} {
		if text := s.metrics(); !strings.Contains(text, want) { // it, and the one with a JWT
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	live.kill()
	until(t, "the device to be offline", func() bool { d := device(); return d.Reachability == "offline" && d.OfflineReason != "" })
	if list := strings.Fields(s.must("device", "list", "-o", "wide", "--no-headers", "--select", `id = "esp-1"`)); !slices.Contains(list, "offline") {
		t.Errorf("device list says %q", list)
	}
	if list := strings.Fields(s.must("device", "list", "--no-headers", "--select", "online = true")); !slices.Contains(list, "esp-2") || slices.Contains(list, "esp-1") {
		t.Errorf("online are %q", list)
	}
	if out := output(t, append([]string{"mosquitto_sub", "-C", "1", "-W", "30", "-t", "sensors/esp-1/status"}, one...)...); strings.TrimSpace(out) != "offline" {
		t.Errorf("the will came as %q", out)
	}

	// Nothing else is.
	for _, c := range []struct {
		name  string
		flags []string
	}{
		{"another's topic", slices.Concat([]string{"-t", "sensors/esp-2/temperature", "-m", "x"}, one)},
		{"a topic of nobody", slices.Concat([]string{"-t", "factory/x", "-m", "x"}, one)},
		{"another's will", slices.Concat([]string{"-t", "sensors/esp-1/x", "-m", "x", "--will-topic", "sensors/esp-2/status", "--will-payload", "x"}, one)},
		{"wrong password", append([]string{"-t", "sensors/esp-1/x", "-m", "x"}, as("esp-1", secret["esp-2"])...)},
		{"no password", append([]string{"-t", "sensors/esp-1/x", "-m", "x"}, one[:len(one)-2]...)},
		{"another's client id", append([]string{"-t", "sensors/esp-1/x", "-m", "x", "-i", "esp-2"}, slices.DeleteFunc(slices.Clone(one), func(f string) bool { return f == "-i" || f == "esp-1" })...)},
	} {
		if out, err := try(t, append([]string{"mosquitto_pub", "-q", "1"}, c.flags...)...); err == nil {
			t.Errorf("%s: taken, says %q", c.name, out)
		}
	}

	// A new password ends the session of the old one; revoking ends it for good.
	live = start(t, "mosquitto_sub", s.path("esp-1.sub2"), nil, append([]string{"stdbuf", "-oL", "mosquitto_sub", "-d", "-t", "sensors/esp-1/command"}, one...)...)
	until(t, "the device to be online", func() bool { return device().Reachability == "online" })
	changed := as("esp-1", strings.TrimSpace(s.must("device", "credential", "set-password", "esp-1", "-q")))
	until(t, "the old password to be refused", func() bool { return strings.Contains(live.text(), "CONNACK (5)") })
	live.kill()
	output(t, append([]string{"mosquitto_pub", "-q", "1", "-t", "sensors/esp-1/x", "-m", "x"}, changed...)...)
	jwtEnded()
	live = start(t, "mosquitto_sub", s.path("esp-1.sub3"), nil, append([]string{"stdbuf", "-oL", "mosquitto_sub", "-d", "-t", "sensors/esp-1/command"}, changed...)...)
	until(t, "the device to be online", func() bool { return device().Reachability == "online" })
	s.must("device", "revoke", "esp-1", "--yes")
	revoked := time.Now()
	until(t, "the session of a revoked device to end", func() bool { return strings.Contains(live.text(), "CONNACK (5)") })
	t.Logf("out %v after it was revoked", time.Since(revoked).Round(10*time.Millisecond))
	live.kill()
	if out, err := try(t, append([]string{"mosquitto_pub", "-q", "1", "-t", "sensors/esp-1/x", "-m", "x"}, changed...)...); err == nil {
		t.Errorf("a revoked device is let in: %q", out)
	}
	s.check()
}
