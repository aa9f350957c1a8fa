package main

import (
	"github.com/otad/otad/internal/fleet"
	"github.com/otad/otad/internal/mqtt/broker"
	"github.com/otad/otad/internal/observability"
)

// What /metrics shows beside what observability measures itself. docs/operations.md
// has all of it.

var deviceFigures = []observability.Figure[int]{
	{Name: "otad_devices_online", Help: "Devices connected to this replica.", Of: func(n int) float64 { return float64(n) }},
}

var loginFigures = []observability.Figure[fleet.LoginFigures]{
	{Name: "otad_device_logins_denied_total", Help: "Logins of devices at the broker that were denied.", Total: true, Of: func(f fleet.LoginFigures) float64 { return float64(f.Denied) }},
	{Name: "otad_device_logins_waited_total", Help: "Logins denied unlooked at, as there were too many wrong passwords before.", Total: true, Of: func(f fleet.LoginFigures) float64 { return float64(f.Waited) }},
}

var webhookFigures = []observability.Figure[fleet.WebhookFigures]{
	{Name: "otad_webhooks_enabled", Help: "Webhooks that are enabled.", Of: func(f fleet.WebhookFigures) float64 { return float64(f.Enabled) }},
	{Name: "otad_webhooks_failing", Help: "Webhooks that are enabled and whose last attempt failed.", Of: func(f fleet.WebhookFigures) float64 { return float64(f.Failing) }},
	{Name: "otad_webhook_events_behind", Help: "Events that wait for the webhook that is furthest behind.", Of: func(f fleet.WebhookFigures) float64 { return float64(f.Behind) }},
	{Name: "otad_webhook_dead_letters", Help: "Messages that were given up and are kept.", Of: func(f fleet.WebhookFigures) float64 { return float64(f.Dead) }},
	{Name: "otad_webhook_lost_events", Help: "Events that webhooks neither delivered nor keep.", Of: func(f fleet.WebhookFigures) float64 { return float64(f.Lost) }},
}

var brokerFigures = []observability.Figure[broker.Stats]{
	{Name: "otad_mqtt_connections", Help: "MQTT clients connected.", Of: func(s broker.Stats) float64 { return float64(s.Connections) }},
	{Name: "otad_mqtt_sessions", Help: "MQTT sessions, with and without a connection.", Of: func(s broker.Stats) float64 { return float64(s.Sessions) }},
	{Name: "otad_mqtt_subscriptions", Help: "Topic filters of all sessions.", Of: func(s broker.Stats) float64 { return float64(s.Subscriptions) }},
	{Name: "otad_mqtt_queued_messages", Help: "Messages that wait for clients or are in flight.", Of: func(s broker.Stats) float64 { return float64(s.Queued) }},
	{Name: "otad_mqtt_retained_messages", Help: "Retained messages.", Of: func(s broker.Stats) float64 { return float64(s.Retained) }},
	{Name: "otad_mqtt_received_packets_total", Help: "Packets received.", Total: true, Of: func(s broker.Stats) float64 { return float64(s.Received) }},
	{Name: "otad_mqtt_sent_messages_total", Help: "Messages sent to clients.", Total: true, Of: func(s broker.Stats) float64 { return float64(s.Sent) }},
	{Name: "otad_mqtt_sent_bytes_total", Help: "Bytes sent to clients.", Total: true, Of: func(s broker.Stats) float64 { return float64(s.BytesSent) }},
	{Name: "otad_mqtt_dropped_messages_total", Help: "Messages of QoS 0 dropped for want of room.", Total: true, Of: func(s broker.Stats) float64 { return float64(s.Dropped) }},
	{Name: "otad_mqtt_missed_messages_total", Help: "Messages of otad itself for which a client had no room.", Total: true, Of: func(s broker.Stats) float64 { return float64(s.Missed) }},
	{Name: "otad_mqtt_slowed_clients_total", Help: "Times that a client was ahead of its rates and had to wait.", Total: true, Of: func(s broker.Stats) float64 { return float64(s.Slowed) }},
	{Name: "otad_mqtt_refused_connections_total", Help: "Connections refused.", Total: true, Of: func(s broker.Stats) float64 { return float64(s.Refused) }},
}
