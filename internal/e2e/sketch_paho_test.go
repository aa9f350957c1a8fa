package e2e

import (
	"strings"
	"testing"
)

// sketchPaho is the sketch of the device guide as paho says it, with a program on
// the server's machine that listens and commands by the loopback listener.
func sketchPaho(t *testing.T, s *site) {
	const id = "esp-paho"
	s.must("device", "create", id, "--hardware", "esp32")
	secret := strings.TrimSpace(s.must("device", "credential", "set-password", id, "-q"))
	home := []string{"-h", "127.0.0.1", "-p", port(s.plain)}
	dashboard := start(t, "mosquitto_sub", s.path("dashboard"), nil, append([]string{"stdbuf", "-oL", "mosquitto_sub", "-d", "-v", "-t", "sensors/#"}, home...)...)
	hears := func(what string) {
		t.Helper()
		until(t, "the dashboard to hear "+what, func() bool { return strings.Contains(dashboard.text(), what) })
	}
	hears("Subscribed")
	sketch := func(secret string) *proc {
		return start(t, "sketch.py", s.path("sketch"), []string{"SECRET=" + secret}, python, "clients/sketch.py", "localhost", port(s.ports[2]), id, s.path("server", "ca.pem"))
	}
	wrong := sketch("not " + secret)
	until(t, "the wrong password to be refused", func() bool { return strings.Contains(wrong.text(), "connect 5") })
	wrong.kill()

	p := sketch(secret)
	hears("sensors/esp-paho/status online")
	hears("sensors/esp-paho/temperature 21.5")
	s.online(id, true)
	output(t, append([]string{"mosquitto_pub", "-t", "sensors/esp-paho/command", "-m", "blink"}, home...)...)
	hears("sensors/esp-paho/led blink")
	p.kill()
	hears("sensors/esp-paho/status offline")
	s.online(id, false)
}
