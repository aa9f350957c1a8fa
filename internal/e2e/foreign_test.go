package e2e

import "testing"

// TestForeignClients runs the unmodified clients of other houses against one
// server, all at a time, each with devices of its own.
func TestForeignClients(t *testing.T) {
	t.Parallel()
	plain := freeAddr(t)
	s := newSite(t, nil, "--job-links", "1h", "--mqtt-plain", plain, "--mqtt-plain-auth", "none",
		"--topic-publish", "sensors/{device}/#", "--topic-subscribe", "sensors/{device}/command")
	s.plain = plain
	s.release("1.0.0", 300_000, true)
	t.Run("of", func(t *testing.T) {
		for _, c := range []struct {
			name string
			run  func(*testing.T, *site)
		}{
			{"AWS SDK v2, MQTT 3.1.1", func(t *testing.T, s *site) { sdk2(t, s, "3.1.1", "sdk2-v3") }},
			{"AWS SDK v2, MQTT 5", func(t *testing.T, s *site) { sdk2(t, s, "5", "sdk2-v5") }},
			{"AWS SDK v2, provisioning, MQTT 3.1.1", func(t *testing.T, s *site) { sdk2Provisioning(t, s, "3.1.1", "sn-3") }},
			{"AWS SDK v2, provisioning, MQTT 5", func(t *testing.T, s *site) { sdk2Provisioning(t, s, "5", "sn-5") }},
			{"AWS SDK v1, its jobs agent", sdk1Agent},
			{"AWS SDK v1, a lamp and its app", sdk1Lamp},
			{"mosquitto's clients", mosquittoClients},
			{"a shell", guideShell},
			{"an ESP32's sketch in paho", sketchPaho},
			{"paho in Python", func(t *testing.T, s *site) { guideSensor(t, s, "paho-1", "sensor.py", s.at.MQTT, python) }},
			{"AWS SDK v2 as in the guide", func(t *testing.T, s *site) { guideSensor(t, s, "sdk2-guide", "sensor-aws.js", s.at.MQTT, "node") }},
			{"MQTT.js", func(t *testing.T, s *site) { guideSensor(t, s, "mqttjs-1", "sensor.js", s.at.MQTT, "node") }},
			{"MQTT.js over WebSocket", func(t *testing.T, s *site) {
				guideSensor(t, s, "mqttjs-ws", "sensor.js", "wss://localhost:"+port(s.ports[1])+"/mqtt", "node")
			}},
		} {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				c.run(t, s.of(t))
			})
		}
	})
	s.check()
}

// of is the site as a subtest sees it, which fails by itself.
func (s *site) of(t *testing.T) *site {
	mine := *s
	mine.t = t
	return &mine
}
